// Products of 1 to 8 rows with many, both read along their rows, summed in float32.

#pragma once

#include <type_traits>

#include "vectors.h"

namespace {

#if defined(__AVX512BF16__)
#define BFLOAT16_PRODUCTS 1
#else
#define BFLOAT16_PRODUCTS 0
#endif

inline Floats multiply_add(Floats a, Floats b, Floats sum) {
#if defined(__AVX512F__)
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif defined(__AVX2__) && defined(__FMA__)
    return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#else
    return a * b + sum;
#endif
}

// Two vectors of numbers, ready to be multiplied, and sum + x . w over them.

struct BFloat16s {
#if BFLOAT16_PRODUCTS
    __m512bh numbers;
#else
    Pair numbers;
#endif
};

inline Pair ready(const float *from) { return load(from); }
inline Pair ready(const float *from, int64_t count) { return load(from, count); }

inline BFloat16s ready(const BFloat16 *from) {
    BFloat16s to;
#if BFLOAT16_PRODUCTS
    memcpy(&to, from, sizeof to);
#else
    to.numbers = load(from);
#endif
    return to;
}

inline BFloat16s ready(const BFloat16 *from, int64_t count) {
    BFloat16 padded[STEP] = {};
    memcpy(padded, from, count * sizeof(BFloat16));
    return ready(padded);
}

inline Floats add_products(Pair x, Pair w, Floats sum) {
    return multiply_add(x.second, w.second, multiply_add(x.first, w.first, sum));
}

inline Floats add_products(BFloat16s x, BFloat16s w, Floats sum) {
#if BFLOAT16_PRODUCTS
    return (Floats)_mm512_dpbf16_ps((__m512)sum, x.numbers, w.numbers);
#else
    return add_products(x.numbers, w.numbers, sum);
#endif
}

// A vector in a register from here on, and what it is computed from done. A compiler may read memory again in each
// product that it multiplies with, which takes longer than the product where a vector crosses two cache lines.
template <typename V>
inline void keep([[maybe_unused]] V &vector) {
#if defined(__AVX512F__)
    asm("" : "+v"(vector));
#elif defined(__SSE2__)
    asm("" : "+x"(vector));
#elif defined(__aarch64__)
    asm("" : "+w"(vector));
#endif
}
inline void keep(Pair &pair) { keep(pair.first), keep(pair.second); }
inline void keep(BFloat16s &both) { keep(both.numbers); }

// Memory that is read again from here on, though nothing wrote to it.
inline void read_again(const void *from) { asm volatile("" : : "r"(from) : "memory"); }

inline float value(float x) { return x; }
inline float value(BFloat16 x) {
    const uint32_t bits = (uint32_t)x.bits << 16;
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}
inline void put(float *to, float v) { *to = v; }
inline void put(BFloat16 *to, float v) {  // as round_to_bfloat16 rounds
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    to->bits = (uint16_t)((v != v ? 0x7fc00000 : bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// The sums of 16 vectors, each added up in the order of sum_lanes.
inline void sum_lanes_of_16(const Floats *v, float *to) {
#if defined(__AVX512F__)
    __m512 by_four[4];
    for (int i = 0; i < 4; ++i) {
        const __m512 a = (__m512)v[4 * i], b = (__m512)v[4 * i + 1];
        const __m512 c = (__m512)v[4 * i + 2], d = (__m512)v[4 * i + 3];
        const __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
        const __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
        by_four[i] = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    }
    __m512 by_two[2];
    for (int i = 0; i < 2; ++i) {
        const __m512 a = by_four[2 * i], b = by_four[2 * i + 1];
        by_two[i] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    }
    const __m512 low = _mm512_shuffle_ps(by_two[0], by_two[1], 0x44);
    const __m512 all = _mm512_add_ps(low, _mm512_shuffle_ps(by_two[0], by_two[1], 0xee));
    float sums[16];
    memcpy(sums, &all, sizeof sums);
    for (int i = 0; i < 16; ++i) to[i] = sums[i % 4 * 4 + i / 4];
#else
    for (int i = 0; i < 16; ++i) to[i] = sum_lanes(v[i]);
#endif
}

// The processor prefetches within a page of memory, which is a row of w or two. We prefetch what is `ahead` numbers
// later too, into the L2 cache: the L1 cache has no room for it beside x.
template <typename T>
inline void prefetch(const T *from) {
    for (int64_t line = 0; line < STEP * (int64_t)sizeof(T); line += 64)
        __builtin_prefetch((const char *)from + line, 0, 2);
}

// The products of ROWS rows of x with COLUMNS rows of w, `stride` numbers from one to the next, to sums[r][c]. Several
// rows of w at a time, so that every number that is loaded is used several times, and many are on their way at once.
template <int ROWS, int COLUMNS, typename T>
inline void multiply_together(const T *x, int64_t x_stride, const T *w, int64_t w_stride, int64_t width, int64_t ahead,
                              Floats *sums) {
    const auto step = [&](auto at, auto... count) {
        decltype(ready(w)) ws[COLUMNS];
        for (int c = 0; c < COLUMNS; ++c) {
            prefetch(w + c * w_stride + at + ahead);
            ws[c] = ready(w + c * w_stride + at, count...);
        }
        for (int r = 0; r < ROWS; ++r) {
            auto xs = ready(x + r * x_stride + at, count...);
            keep(xs);
            for (int c = 0; c < COLUMNS; ++c) sums[r * COLUMNS + c] = add_products(xs, ws[c], sums[r * COLUMNS + c]);
        }
    };
    int64_t i = 0;
    for (; i + STEP <= width; i += STEP) step(i);
    if (i < width) step(i, width - i);
}

template <int ROWS, int COLUMNS, typename T>
inline void multiply_tile(const T *x, int64_t x_stride, const T *w, int64_t w_stride, int64_t width,
                          float (*products)[COLUMNS]) {
    Floats sums[(ROWS * COLUMNS + 15) / 16 * 16] = {};
    multiply_together<ROWS, COLUMNS>(x, x_stride, w, w_stride, width, COLUMNS * w_stride, sums);  // the next tile
    float added[sizeof sums / sizeof *sums];
    for (int at = 0; at < ROWS * COLUMNS; at += 16) sum_lanes_of_16(sums + at, added + at);
    memcpy(products, added, ROWS * COLUMNS * sizeof(float));
}

// Calls run(row, column, product) for `count` rows of w, about as many at a time as the registers hold sums.
template <int ROWS, typename T, typename Run>
inline void multiply_rows(const T *x, int64_t x_stride, const T *w, int64_t w_stride, int64_t width, int64_t count,
                          Run run) {
    constexpr int COLUMNS = ROWS <= 2 ? 8 : ROWS <= 6 ? 4 : 3;
    int64_t c = 0;
    for (; c + COLUMNS <= count; c += COLUMNS) {
        float products[ROWS][COLUMNS];
        multiply_tile<ROWS, COLUMNS>(x, x_stride, w + c * w_stride, w_stride, width, products);
        for (int i = 0; i < COLUMNS; ++i)
            for (int r = 0; r < ROWS; ++r) run(r, c + i, products[r][i]);
    }
    for (; c < count; ++c) {
        float products[ROWS][1];
        multiply_tile<ROWS, 1>(x, x_stride, w + c * w_stride, w_stride, width, products);
        for (int r = 0; r < ROWS; ++r) run(r, c, products[r][0]);
    }
}

// Numbers. On Zen 4 a quarter and four times of 1024 were slower; on Zen 5 8192 is up to 1.12 times as fast.
#if defined(__x86_64__)
const int64_t AHEAD = (__builtin_cpu_init(), __builtin_cpu_is("amdfam19h")) ? 1024 : 8192;
#else
constexpr int64_t AHEAD = 8192;
#endif

// The same for a weight, whose rows of `width` numbers come from memory. One row of x takes
// them in the order of memory, which processors prefetch best, and sums the lanes of sixteen results at a time. A step
// adds to its sum twice, each time waiting for the sum before. With short vectors it reads a cache line or less in that
// time, which memory is faster than: then four rows of w are read together.
template <int ROWS, typename T, typename Run>
inline void multiply_weight(const T *x, const T *w, int64_t width, int64_t count, Run run) {
    if constexpr (ROWS == 1) {
        constexpr int TOGETHER = LANES < 16 ? 4 : 1;
        const int64_t ahead = TOGETHER == 1 ? AHEAD : TOGETHER * width;
        for (int64_t c = 0; c < count; c += 16) {
            const int64_t columns = count - c < 16 ? count - c : 16;
            const T *from = w + c * width;
            Floats sums[16] = {};
            int64_t i = 0;
            for (; i + TOGETHER <= columns; i += TOGETHER)
                multiply_together<1, TOGETHER>(x, 0, from + i * width, width, width, ahead, sums + i);
            for (; i < columns; ++i) multiply_together<1, 1>(x, 0, from + i * width, width, width, ahead, sums + i);
            float products[16];
            sum_lanes_of_16(sums, products);
            for (int64_t i = 0; i < columns; ++i) run(0, c + i, products[i]);
        }
    } else {
        multiply_rows<ROWS>(x, width, w, width, width, count, run);
    }
}

// run(1) .. run(8), with the number as a compile-time constant; nothing for other numbers.
template <typename Run>
inline void with_rows(int64_t rows, Run run) {
    switch (rows) {
        case 1: return run(std::integral_constant<int, 1>());
        case 2: return run(std::integral_constant<int, 2>());
        case 3: return run(std::integral_constant<int, 3>());
        case 4: return run(std::integral_constant<int, 4>());
        case 5: return run(std::integral_constant<int, 5>());
        case 6: return run(std::integral_constant<int, 6>());
        case 7: return run(std::integral_constant<int, 7>());
        case 8: return run(std::integral_constant<int, 8>());
    }
}

}  // namespace
