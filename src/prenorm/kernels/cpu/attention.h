// Shared by attention forward and backward: which keys a query sees, and powers of two.

#pragma once

#include <cmath>

#include "packed.h"

namespace {

constexpr float LOG2E = 1.44269504f;
constexpr float LEAST = -126.0f;  // 2^x below it is taken for zero: no weight is a subnormal number, which are slow

// 2^r for |r| <= 1/2 as a polynomial, the highest power first: relative errors 2e-9, and 3e-6 for weights that are
// rounded to bfloat16.
constexpr float EXACT[] = {
    1.53458110e-4f, 1.33999309e-3f, 9.61848907e-3f, 5.55032864e-2f, 2.40226462e-1f, 6.93147182e-1f, 1.0f};
constexpr float ROUGH[] = {9.57010128e-3f, 5.59178591e-2f, 2.40247443e-1f, 6.93121791e-1f, 9.99999285e-1f};

// 2^x for x <= 0; NaN stays NaN.
template <size_t N>
inline Floats power_of_two(Floats x, const float (&terms)[N]) {
#if defined(__AVX512F__)
    const Floats n = (Floats)_mm512_roundscale_ps((__m512)x, 8), r = x - n;  // n: x rounded to an integer
#else
    const Floats magic = broadcast(12582912.0f), shifted = x + magic;  // 1.5 * 2^23: adding it rounds
    const Floats r = x - (shifted - magic);
#endif
    Floats p = broadcast(terms[0]);
    for (size_t i = 1; i < N; ++i) p = multiply_add(p, r, broadcast(terms[i]));
#if defined(__AVX512F__)
    const __mmask16 counts = _mm512_cmp_ps_mask((__m512)x, (__m512)broadcast(LEAST), _CMP_NLT_UQ);  // NaN too
    return (Floats)_mm512_maskz_scalef_ps(counts, (__m512)p, (__m512)n);
#else
    p = x != x ? x : (Floats)((Words)p + ((Words)shifted << 23));  // the digits of n, added to the exponent
    return x < LEAST ? Floats{} : p;
#endif
}

inline Floats weight(float, Floats x) { return power_of_two(x, EXACT); }
inline Floats weight(BFloat16Pair, Floats x) { return power_of_two(x, ROUGH); }

// 2^(score * scale - base), two vectors of them. Rounded after scale, so that the largest score's is 1 exactly.
template <typename Word>
inline Pair weights(Pair scores, float scale, float base) {
    const Pair scaled = scores * scale + -base;
    return {weight(Word(), scaled.first), weight(Word(), scaled.second)};
}

// Of scores, whose weights are powers of two.
inline float scale_of(int64_t head_dim) { return LOG2E / std::sqrt((float)head_dim); }

inline Floats maximum(Floats a, Floats b) {  // b where one is NaN
#if defined(__AVX512F__)
    return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return a > b ? a : b;
#endif
}

inline float max_lane(Floats v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#else
    float most = v[0];
    for (int64_t i = 1; i < LANES; ++i) most = v[i] > most ? v[i] : most;
    return most;
#endif
}

inline int64_t clip(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }
inline int64_t down(int64_t x, int64_t step) { return x / step * step; }
inline int64_t up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }

// What the backward pass must know of a query: its largest score, times scale, and 1 / the sum of its weights. As two
// numbers, since their sum as one logarithm would be less exact than the weights are.
struct Sums {
    float most, inverse;
};

// A tensor's rows: of one token in one head.
template <typename T>
struct Rows {
    T *start;
    const int64_t *strides;
    Rows(T *start, const int64_t *strides) : start(start), strides(strides) {}
    T *at(int64_t b, int64_t h, int64_t i) const { return start + b * strides[0] + h * strides[1] + i * strides[2]; }
    int64_t stride() const { return strides[2]; }
};

struct Range {
    int64_t first, stop;
};

// Which keys a query sees. Queries are the last of the keys; a causal query's keys end at its own position.
struct Visibility {
    const AttentionCall &call;

    int64_t position(int64_t query) const { return call.keys - call.queries + query; }

    Range of_query(int64_t query) const {
        const int64_t stop = call.causal ? position(query) + 1 : call.keys;
        return {call.window ? clip(stop - call.window, 0, call.keys) : 0, clip(stop, 0, call.keys)};
    }

    // Keys of a block that some of these queries see.
    Range in_block(int64_t query, int64_t query_stop, int64_t block, int64_t size) const {
        return {clip(of_query(query).first - block, 0, size), clip(of_query(query_stop - 1).stop - block, 0, size)};
    }

    // The words (of IN keys each) of a tile's panels that some of these queries see by position.
    Range words(int64_t query, int64_t query_stop, int64_t block, Range panels, int64_t in) const {
        const Range seen = in_block(query, query_stop, block, panels.stop);
        return {(seen.first > panels.first ? seen.first : panels.first) / in, up(seen.stop, in) / in};
    }

    // Queries that may see some of these keys.
    Range of_keys(int64_t key, int64_t key_stop) const {
        const int64_t ahead = call.keys - call.queries;
        return {call.causal ? clip(key - ahead, 0, call.queries) : 0,
                call.window ? clip(key_stop - 1 - ahead + call.window, 0, call.queries) : call.queries};
    }

    const uint8_t *mask(int64_t b, int64_t h, int64_t query, int64_t key) const {
        return call.mask + b * call.mask_strides[0] + h * call.mask_strides[1] + query * call.mask_strides[2] + key;
    }

    // The panels of a block that some of these queries see by position, without outer ones that the mask hides from
    // all.
    Range panels(int64_t b, int64_t h, int64_t query, int64_t query_stop, int64_t block, int64_t size) const {
        const Range seen = in_block(query, query_stop, block, size);
        Range panels = {down(seen.first, PANEL), up(seen.stop, PANEL)};
        if (seen.first >= seen.stop) return {0, 0};
        const auto hidden = [&](int64_t panel) {
            uint8_t any = 0;
            const int64_t stop = panel + PANEL < seen.stop ? panel + PANEL : seen.stop;
            for (int64_t i = query; i < query_stop; ++i)
                for (int64_t key = panel; key < stop; ++key) any |= *mask(b, h, i, block + key);
            return !any;
        };
        if (call.mask) {
            while (panels.first < panels.stop && hidden(panels.first)) panels.first += PANEL;
            while (panels.first < panels.stop && hidden(panels.stop - PANEL)) panels.stop -= PANEL;
        }
        return panels;
    }

    // Writes `instead` for keys that a query may not see, within a block's panels.
    void hide(int64_t b, int64_t h, int64_t query, int64_t block, Range panels, float *numbers, float instead) const {
        const Range seen = of_query(query);
        const int64_t low = clip(seen.first - block, panels.first, panels.stop);
        const int64_t high = clip(seen.stop - block, panels.first, panels.stop);
        for (int64_t key = panels.first; key < low; ++key) numbers[key] = instead;
        for (int64_t key = high; key < panels.stop; ++key) numbers[key] = instead;
        if (!call.mask) return;
        const uint8_t *allowed = mask(b, h, query, block);
        for (int64_t key = low; key < high; ++key) numbers[key] = allowed[key] ? numbers[key] : instead;
    }
};

// One thread's memory, freed at the end of the scope; null if allocation failed.
template <typename T>
struct OwnBuffer {
    T *const start = (T *)aligned_alloc(64, up(sizeof(T), 64));
    ~OwnBuffer() { free(start); }
};

// run(task, scratch) for every task, on whichever thread is free: a task's result does not depend on the others.
template <typename R, typename Run>
inline int each_task(int64_t tasks, int64_t work, int64_t threads, Run run) {
    threads = threads_for(tasks, work, threads);
    int64_t next = 0;
    int failed = 0;
    const auto work_on = [&] {
        const OwnBuffer<R> room;
        if (!room.start) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
        for (int64_t task; room.start && (task = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < tasks;)
            run(task, *room.start);
    };
    if (threads == 1) {
        work_on();
        return failed;
    }
#pragma omp parallel num_threads(threads)
    work_on();
    return failed;
}

}  // namespace
