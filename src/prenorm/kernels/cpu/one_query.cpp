// Attention of one query a head to many keys, as in decoding: y = softmax(q K^T / sqrt(head_dim)) V.
//
// The heads of a group are rows beside each other, so that its keys and values are read once, where the cache has
// them. q, K, V and y have one dtype; scores, softmax and sums are float32, and a result is rounded once, last. A
// query that may attend to nothing gives zeros. Source: Vaswani et al. 2017, arXiv:1706.03762. Built by native.py.

#include <cmath>

#include "tile.h"

namespace {

constexpr float TERMS[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 1.0f / 2, 1.0f, 1.0f};

// e^x for x <= 0, with a relative error of 1e-7: 2^n e^r, where n is the nearest whole number to x / ln 2, and e^r is
// its Taylor series. Below e^-87 it is zero. NaN stays NaN.
inline Floats exponential(Floats x) {
    const Floats log2e = 1.44269504f + Floats{}, magic = 12582912.0f + Floats{};  // 1.5 * 2^23: adding it rounds
    const Floats shifted = multiply_add(x, log2e, magic), n = shifted - magic;
    Floats r = multiply_add(n, -0.693359375f + Floats{}, x);  // ln 2 in two parts, the first of which has few digits
    r = multiply_add(n, 2.12194440e-4f + Floats{}, r);
    Floats e = 1.0f / 5040 + Floats{};
    for (const float term : TERMS) e = multiply_add(e, r, term + Floats{});
    const Words power = ((Words)shifted - 0x4b400000 + 127) << 23;  // 2^n, from the low digits of what was rounded
    return x < -87.0f ? Floats{} : e * (Floats)power;
}

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

template <typename T>
struct Heads {
    const T *start;
    int64_t batch, head, seq;  // strides, in numbers
    const T *at(int64_t b, int64_t h) const { return start + b * batch + h * head; }
};

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

// --- what Python calls: 0 is given, or 1 where memory ran out ---

struct OneQueryCall {
    const void *q, *k, *v, *mask;  // mask: bytes, (batch or 1, keys), 1 = may attend; null for none
    void *y;                       // q and y are (batch, heads, head_dim), head_dim a multiple of 32
    int64_t batch, heads, groups, keys, head_dim;
    int64_t k_batch, k_head, k_seq, v_batch, v_head, v_seq, mask_batch, mask_key;  // strides, in numbers
    int64_t threads;
};

namespace {

template <typename T>
int one_query(const OneQueryCall &call) {
    const Heads<T> k = {(const T *)call.k, call.k_batch, call.k_head, call.k_seq};
    const Heads<T> v = {(const T *)call.v, call.v_batch, call.v_head, call.v_seq};
    const int64_t rows = call.heads / call.groups, parts = call.batch * call.groups;
    const int64_t width = 2 * call.keys * call.head_dim, threads = threads_for(parts, width, call.threads);
    const int64_t room = (rows < MOST_ROWS ? rows : MOST_ROWS) * call.keys + LANES;
    const Room<float> scores(threads * room);
    const Room<uint8_t> masks(call.mask ? threads * call.keys : 0);
    if (!scores.start || !masks.start) return 1;
    in_parts(parts, width, threads, [=, &call, &scores, &masks](int64_t part, int64_t start, int64_t stop) {
        for (int64_t at = start; at < stop; ++at) {
            const int64_t b = at / call.groups, group = at % call.groups;
            uint8_t *allowed = call.mask ? masks.start + part * call.keys : nullptr;
            for (int64_t key = 0; allowed && key < call.keys; ++key)
                allowed[key] = ((const uint8_t *)call.mask)[b * call.mask_batch + key * call.mask_key];
            for (int64_t row = 0; row < rows; row += MOST_ROWS) {
                const int64_t offset = ((b * call.groups + group) * rows + row) * call.head_dim;
                with_rows(rows - row < MOST_ROWS ? rows - row : MOST_ROWS, [&](auto n) {
                    attend<n.value>((const T *)call.q + offset, k.at(b, group), k.seq, v.at(b, group), v.seq, allowed,
                                    (T *)call.y + offset, call.keys, call.head_dim, scores.start + part * room);
                });
            }
        }
    });
    return 0;
}

}  // namespace

extern "C" int one_query_float32(const OneQueryCall *call) { return one_query<float>(*call); }
extern "C" int one_query_bfloat16(const OneQueryCall *call) { return one_query<BFloat16>(*call); }
