// What the kernels share: vectors of float32, read from float32 and bfloat16; sums; threads; memory.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "calls.h"

namespace {

#if defined(__AVX512F__)
constexpr int64_t LANES = 16;
#elif defined(__AVX2__)
constexpr int64_t LANES = 8;
#else
constexpr int64_t LANES = 4;
#endif

// The compiler's own vectors: the order of every sum is what is written here, under any optimisation.
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));

constexpr int64_t STEP = 2 * LANES;          // numbers processed at a time
constexpr int64_t WORTH_A_THREAD = 1 << 14;  // numbers; waking a thread costs as much as processing these

// --- a step's numbers: two vectors of float32 ---

// In the order of memory for float32. bfloat16 is the upper half of a float32, so the numbers at even indices are
// the lower halves of the words shifted up, and those at odd indices the upper halves unchanged: nothing crosses lanes,
// which would cost more than the arithmetic.
struct Pair {
    Floats first, second;
};

struct BFloat16 {
    uint16_t bits;
};

inline Pair operator*(Pair a, Pair b) { return {a.first * b.first, a.second * b.second}; }
inline Pair operator*(Pair a, float b) { return {a.first * b, a.second * b}; }
inline Pair operator+(Pair a, float b) { return {a.first + b, a.second + b}; }
inline Pair operator+(Pair a, Pair b) { return {a.first + b.first, a.second + b.second}; }
inline Pair operator-(Pair a, Pair b) { return {a.first - b.first, a.second - b.second}; }

inline Pair load(const float *from) {
    Floats first, second;  // a Pair that memcpy fills would go through the stack
    memcpy(&first, from, sizeof first);
    memcpy(&second, from + LANES, sizeof second);
    return {first, second};
}

inline Pair load(const BFloat16 *from) {
    Words words;
    memcpy(&words, from, sizeof words);
    return {(Floats)(words << 16), (Floats)(words & 0xffff0000)};
}

// The last `count` numbers of a row whose length is not a multiple of STEP, then zeros.
template <typename T>
inline Pair load(const T *from, int64_t count) {
    T padded[STEP] = {};
    memcpy(padded, from, count * sizeof(T));
    return load(padded);
}

// STREAM bypasses the caches; `to` must be aligned to the vector's size.
template <bool STREAM, typename V>
inline void store_vector(void *to, V v) {
#if defined(__AVX512F__)
    if (STREAM) return _mm512_stream_si512((__m512i *)to, (__m512i)v);
#elif defined(__AVX2__)
    if (STREAM) return _mm256_stream_si256((__m256i *)to, (__m256i)v);
#endif
    memcpy(to, &v, sizeof v);
}

template <bool STREAM>
inline void store(float *to, Pair pair) {
    store_vector<STREAM>(to, pair.first);
    store_vector<STREAM>(to + LANES, pair.second);
}

// To nearest, ties to even, in the upper half; the lower half is left over. Infinity stays what it is; a NaN becomes
// the quiet one, because rounding could carry its digits over to infinity or zero.
inline Words round_to_bfloat16(Floats v) {
    const Words bits = (Words)v, quiet_nan = 0x7fc00000 + (Words){};
    return v != v ? quiet_nan : bits + 0x7fff + (bits >> 16 & 1);
}

template <bool STREAM>
inline void store(BFloat16 *to, Pair pair) {
    store_vector<STREAM>(to, round_to_bfloat16(pair.first) >> 16 | (round_to_bfloat16(pair.second) & 0xffff0000));
}

template <typename T>
inline void store(T *to, Pair pair, int64_t count) {
    T padded[STEP];
    store<false>(padded, pair);
    memcpy(to, padded, count * sizeof(T));
}

// A step's numbers at even indices, then those at odd indices: the order in which bfloat16 is loaded. And back.
inline Pair deinterleave(Pair x) {
#if defined(__AVX512F__)
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return {(Floats)_mm512_permutex2var_ps((__m512)x.first, even, (__m512)x.second),
            (Floats)_mm512_permutex2var_ps((__m512)x.first, odd, (__m512)x.second)};
#else
    float from[STEP];
    store<false>(from, x);
    for (int64_t i = 0; i < LANES; ++i) x.first[i] = from[2 * i], x.second[i] = from[2 * i + 1];
    return x;
#endif
}

inline Pair interleave(Pair x) {
#if defined(__AVX512F__)
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    return {(Floats)_mm512_permutex2var_ps((__m512)x.first, low, (__m512)x.second),
            (Floats)_mm512_permutex2var_ps((__m512)x.first, high, (__m512)x.second)};
#else
    float to[STEP];
    for (int64_t i = 0; i < LANES; ++i) to[2 * i] = x.first[i], to[2 * i + 1] = x.second[i];
    return load(to);
#endif
}

// --- sums ---

inline float sum_lanes(Floats v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    float sums[LANES];
    memcpy(sums, &v, sizeof v);
    for (int64_t half = LANES / 2; half > 0; half /= 2)
        for (int64_t i = 0; i < half; ++i) sums[i] += sums[i + half];
    return sums[0];
#endif
}

inline float sum_lanes(Pair pair) { return sum_lanes(pair.first + pair.second); }

// --- threads and memory ---

inline int64_t threads_for(int64_t rows, int64_t width, int64_t threads) {
    const int64_t worth = rows * width / WORTH_A_THREAD, most = worth < rows ? worth : rows;
    return most < 1 ? 1 : most < threads ? most : threads;
}

// run(part, first row, row after the last), one part per thread; small jobs use fewer threads, or one.
template <typename Run>
inline void parallel_for(int64_t rows, int64_t width, int64_t threads, Run run) {
    threads = threads_for(rows, width, threads);
    if (threads == 1) return run(0, 0, rows);  // without OpenMP, which takes a microsecond also for one thread
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t part = 0; part < threads; ++part) run(part, rows * part / threads, rows * (part + 1) / threads);
}

// Memory for numbers, at the start of a cache line, freed at the end of the scope; `start` is null if allocation
// failed.
template <typename T>
struct Buffer {
    T *start;
    explicit Buffer(int64_t count) : start((T *)aligned_alloc(64, (count * sizeof(T) + 64) / 64 * 64)) {}
    ~Buffer() { free(start); }
    Buffer(const Buffer &) = delete;
};

}  // namespace
