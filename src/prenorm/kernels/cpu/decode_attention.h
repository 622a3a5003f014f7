// softmax(q K^T / sqrt(head_dim)) V for the query heads that share a key head; scores, softmax and sums in float32.

#pragma once

#include <cmath>

#include "exponential.h"

namespace {

// Scores to softmax weights before the division by their sum, which is returned; masked scores are -infinity.
inline float exponentiate(float *scores, int64_t count) {
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
    return sum_lanes(sum);
}

constexpr int64_t VALUES_AHEAD = 16;  // to prefetch

// The weighted sum of all values, their first STEPS steps, to y.
template <int ROWS, int STEPS, typename T>
inline void weighted_sum(const float *weights, const float *inverse, const T *v, int64_t v_seq, T *y, int64_t keys,
                         int64_t head_dim) {
    Pair sums[ROWS][STEPS] = {};
    for (int64_t key = 0; key < keys; ++key) {
        for (int i = 0; i < STEPS; ++i) {
            const T *from = v + key * v_seq + i * STEP;
            prefetch(from + VALUES_AHEAD * v_seq);
            const Pair here = load(from);
            for (int r = 0; r < ROWS; ++r) {
                const Floats weight = weights[r * keys + key] + Floats{};
                sums[r][i] = {multiply_add(here.first, weight, sums[r][i].first),
                              multiply_add(here.second, weight, sums[r][i].second)};
            }
        }
    }
    for (int r = 0; r < ROWS; ++r)
        for (int i = 0; i < STEPS; ++i) store<false>(y + r * head_dim + i * STEP, sums[r][i] * inverse[r]);
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
        const float sum = exponentiate(scores + r * keys, keys);
        inverse[r] = sum == 0 ? 0 : 1 / sum;
    }
    constexpr int WIDE = ROWS <= 2 ? 2 : 1;  // steps: as many as the registers hold sums
    int64_t d = 0;
    for (; d + WIDE * STEP <= head_dim; d += WIDE * STEP)
        weighted_sum<ROWS, WIDE>(scores, inverse, v + d, v_seq, y + d, keys, head_dim);
    for (; d < head_dim; d += STEP) weighted_sum<ROWS, 1>(scores, inverse, v + d, v_seq, y + d, keys, head_dim);
}

}  // namespace
