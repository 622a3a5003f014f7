// softmax(q K^T / sqrt(head_dim)) V for the queries of one group of heads; scores, softmax and sums in float32.

#pragma once

#include <cmath>

#include "exponential.h"

namespace {

// Scores -> weights that are not divided by their sum yet, and that sum; masked ones are -infinity.
inline float soften(float *scores, int64_t count) {
    float most = -INFINITY;
    for (int64_t i = 0; i < count; ++i) most = scores[i] > most ? scores[i] : most;
    if (most == -INFINITY) most = 0;  // nothing to attend to
    Floats sum = {};
    for (int64_t i = 0; i < count; i += LANES) {
        Floats here = -INFINITY + Floats{};
        const int64_t some = count - i < LANES ? count - i : LANES;
        memcpy(&here, scores + i, some * sizeof(float));
        here = exponential(here - most);
        sum += here;
        memcpy(scores + i, &here, some * sizeof(float));
    }
    return add_up(sum);
}

// ROWS queries of one group, q (ROWS, head_dim), to y of the same shape.
template <int ROWS, typename T>
inline void attend(const T *q, const T *k, int64_t k_seq, const T *v, int64_t v_seq, const uint8_t *allowed, T *y,
                   int64_t keys, int64_t head_dim, float *scores) {
    const float scale = 1 / std::sqrt((float)head_dim);
    multiply_rows<ROWS>(q, head_dim, k, k_seq, head_dim, keys, [=](int r, int64_t key, float product) {
        scores[r * keys + key] = !allowed || allowed[key] ? product * scale : -INFINITY;
    });
    float inverse[ROWS];
    for (int r = 0; r < ROWS; ++r) {
        const float sum = soften(scores + r * keys, keys);
        inverse[r] = sum == 0 ? 0 : 1 / sum;
    }
    for (int64_t d = 0; d < head_dim; d += STEP) {
        Pair sums[ROWS] = {};
        for (int64_t key = 0; key < keys; ++key) {
            const Pair here = load(v + key * v_seq + d);
            for (int r = 0; r < ROWS; ++r) {
                const Floats weight = scores[r * keys + key] + Floats{};
                sums[r] = {multiply_add(here.first, weight, sums[r].first),
                           multiply_add(here.second, weight, sums[r].second)};
            }
        }
        for (int r = 0; r < ROWS; ++r) store<false>(y + r * head_dim + d, sums[r] * inverse[r]);
    }
}

}  // namespace
