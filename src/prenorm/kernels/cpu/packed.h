// Products of small blocks of matrices at the speed of the processor's multipliers: sums stay in registers, one factor
// is read a number at a time, the other a vector at a time.
//
// bfloat16 is multiplied in pairs (two neighbours along the sum in one word) if the processor can do that; otherwise it
// is packed as float32. A packed number is a 32-bit word either way, so one loop serves both.

#pragma once

#include "tile.h"

namespace {

#if defined(__AVX512F__)
constexpr int64_t TILE = 8, WIDTH = 2;  // rows and vectors whose sums the registers hold
#elif defined(__AVX2__)
constexpr int64_t TILE = 6, WIDTH = 2;  // 12 sums, 2 of b and one of a: 15 of 16
#else
constexpr int64_t TILE = 4, WIDTH = 2;
#endif
constexpr int64_t PANEL = WIDTH * LANES;  // columns of a tile

struct BFloat16Pair {
    uint32_t bits;
};

// How numbers of type T are packed: the type of a word, and how many numbers are IN one.
template <typename T>
struct Packing {
    typedef float Word;
    static constexpr int64_t IN = 1;
};

#if BFLOAT16_PRODUCTS
template <>
struct Packing<BFloat16> {
    typedef BFloat16Pair Word;
    static constexpr int64_t IN = 2;
};
#endif

template <typename T>
using Packed = typename Packing<T>::Word;

inline Floats broadcast(float x) { return x - Floats{}; }  // not x + 0, which the compiler must keep: -0 + 0 is 0
inline Floats broadcast(BFloat16Pair x) { return (Floats)(x.bits + Words{}); }

inline Floats add_word(float, Floats a, Floats b, Floats sum) { return multiply_add(a, b, sum); }
#if BFLOAT16_PRODUCTS
inline Floats add_word(BFloat16Pair, Floats a, Floats b, Floats sum) {
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
#endif

inline Floats load_vector(const void *from) {
    Floats v;
    memcpy(&v, from, sizeof v);
    return v;
}

// sums[r][c] += a[r * A_ROW + k * A_STEP] * b[k * b_step + c] over k < depth, in the order of k: a row's numbers do not
// depend on what is beside it. The strides of a are constants, so that one address serves all rows.
template <int64_t A_ROW, int64_t A_STEP, int64_t VECTORS, typename Word>
inline void add_tile(const Word *a, const Word *b, int64_t b_step, int64_t depth, Floats (&sums)[TILE][WIDTH]) {
    for (int64_t k = 0; k < depth; ++k, a += A_STEP, b += b_step) {
        Floats bs[VECTORS];
#pragma GCC unroll 2
        for (int64_t c = 0; c < VECTORS; ++c) bs[c] = load_vector(b + c * LANES);
#pragma GCC unroll 8
        for (int64_t r = 0; r < TILE; ++r) {
            const Floats as = broadcast(a[r * A_ROW]);
#pragma GCC unroll 2
            for (int64_t c = 0; c < VECTORS; ++c) sums[r][c] = add_word(Word(), as, bs[c], sums[r][c]);
        }
    }
}

// to[r][column] = the product of TILE rows of a with a panel of b.
template <int64_t A_ROW, typename Word>
void multiply_panel(const Word *a, const Word *b, int64_t depth, float *to, int64_t to_row) {
    Floats sums[TILE][WIDTH] = {};
    add_tile<A_ROW, 1, WIDTH>(a, b, PANEL, depth, sums);
#pragma GCC unroll 16
    for (int64_t r = 0; r < TILE; ++r)
#pragma GCC unroll 16
        for (int64_t c = 0; c < WIDTH; ++c) memcpy(to + r * to_row + c * LANES, &sums[r][c], sizeof(Floats));
}

// to[r][column] = factor[r] * to[r][column] + the product of TILE rows of a with b; `columns` is a multiple of LANES.
// The product is summed by itself before it is added: a sum of sums is more exact than one long sum.
template <int64_t A_ROW, int64_t A_STEP, typename Word>
inline void add_rows(const Word *a, const Word *b, int64_t b_step, int64_t depth, int64_t columns, const float *factor,
                     float *to) {
    const auto panel = [&](auto vectors, int64_t column) {
        Floats sums[TILE][WIDTH] = {};
        add_tile<A_ROW, A_STEP, vectors.value>(a, b + column, b_step, depth, sums);
#pragma GCC unroll 8
        for (int64_t r = 0; r < TILE; ++r)
#pragma GCC unroll 2
            for (int64_t c = 0; c < vectors.value; ++c) {
                float *at = to + r * columns + column + c * LANES;
                const Floats before = load_vector(at);
                const Floats after = sums[r][c] + (factor ? before * factor[r] : before);
                memcpy(at, &after, sizeof after);
            }
    };
    int64_t column = 0;
    for (; column + PANEL <= columns; column += PANEL) panel(std::integral_constant<int64_t, WIDTH>(), column);
    for (; column < columns; column += LANES) panel(std::integral_constant<int64_t, 1>(), column);
}

// --- packing ---

// `width` numbers of a row as words along the row.
inline void pack_row(const float *from, int64_t width, float *to) { memcpy(to, from, width * sizeof(float)); }
inline void pack_row(const BFloat16 *from, int64_t width, BFloat16Pair *to) {
    memcpy(to, from, width * sizeof(BFloat16));
}
inline void pack_row(const BFloat16 *from, int64_t width, float *to) {
    for (int64_t i = 0; i < width; ++i) {
        const float number = value(from[i]);
        memcpy(to + i, &number, sizeof number);  // what `to` points to may be part of a vector
    }
}

// Transpose a square of words: swap halves, then quarters, ...
template <int64_t SIZE>
inline void transpose(Words (&rows)[LANES]) {
    if constexpr (SIZE < LANES) {
        Words low, high;
#pragma GCC unroll 16
        for (int64_t i = 0; i < LANES; ++i) low[i] = i & SIZE ? LANES + i - SIZE : i;
#pragma GCC unroll 16
        for (int64_t i = 0; i < LANES; ++i) high[i] = i & SIZE ? LANES + i : i + SIZE;
#pragma GCC unroll 16
        for (int64_t i = 0; i < LANES; ++i) {
            if (i & SIZE) continue;
            const Words a = rows[i], b = rows[i + SIZE];
            rows[i] = __builtin_shuffle(a, b, low);
            rows[i + SIZE] = __builtin_shuffle(a, b, high);
        }
        transpose<2 * SIZE>(rows);
    }
}

// Rows of `width` numbers as columns: to[word][row] for panels of PANEL rows, one after the other; missing rows zeros.
template <typename T>
void pack_columns(const T *from, int64_t stride, int64_t rows, int64_t width, Packed<T> *to) {
    constexpr int64_t IN = Packing<T>::IN;
    const int64_t words = width / IN;
    for (int64_t first = 0; first < rows || first % PANEL; first += LANES) {
        Packed<T> *panel = to + first / PANEL * PANEL * words + first % PANEL;
        const T *row = from + first * stride;
        const auto square_at = [&](int64_t word, auto some) {
            Words square[LANES] = {};
#pragma GCC unroll 16
            for (int64_t r = 0; r < LANES; ++r)
                if (first + r < rows) pack_row(row + r * stride + word * IN, some * IN, (Packed<T> *)&square[r]);
            transpose<1>(square);
#pragma GCC unroll 16
            for (int64_t i = 0; i < LANES; ++i)
                if (i < some) memcpy(panel + (word + i) * PANEL, &square[i], sizeof(Words));
        };
        int64_t word = 0;
        for (; word + LANES <= words; word += LANES) square_at(word, std::integral_constant<int64_t, LANES>());
        if (word < words) square_at(word, words - word);
    }
}

// Rows of `width` numbers below each other: to[row][column], bfloat16 as pairs from two rows; a missing second row is
// zeros.
template <typename T>
void pack_rows(const T *from, int64_t stride, int64_t rows, int64_t width, float *to) {
    for (int64_t r = 0; r < rows; ++r) pack_row(from + r * stride, width, to + r * width);
}

inline void pack_rows(const BFloat16 *from, int64_t stride, int64_t rows, int64_t width, BFloat16Pair *to) {
    typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
    for (int64_t r = 0; r < rows; r += 2)
        for (int64_t i = 0; i < width; i += LANES) {
            Halves first, second = {};
            memcpy(&first, from + r * stride + i, sizeof first);
            if (r + 1 < rows) memcpy(&second, from + (r + 1) * stride + i, sizeof second);
            const Words pairs = __builtin_convertvector(first, Words) | __builtin_convertvector(second, Words) << 16;
            memcpy(to + r / 2 * width + i, &pairs, sizeof pairs);
        }
}

// Two vectors of float32, rounded where T is bfloat16, as words along a row.
inline void pack_pair(Pair pair, float *to) { store<false>(to, pair); }
#if BFLOAT16_PRODUCTS
inline void pack_pair(Pair pair, BFloat16Pair *to) {
    const __m512bh both = _mm512_cvtne2ps_pbh((__m512)pair.second, (__m512)pair.first);
    memcpy(to, &both, sizeof both);
}
#endif

// A vector of float32 as numbers in the order of memory.
inline void store_in_order(float *to, Floats v) { memcpy(to, &v, sizeof v); }
inline void store_in_order(BFloat16 *to, Floats v) {
    typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
    const Halves halves = __builtin_convertvector(round_to_bfloat16(v) >> 16, Halves);
    memcpy(to, &halves, sizeof halves);
}

}  // namespace
