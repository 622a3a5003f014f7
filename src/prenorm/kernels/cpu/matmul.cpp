// C = A B or C += A B of large matrices, at nearly the peak rate of the processor for any strides of A and B: the
// gradients of weights are products of two transposes. A and B are float32 or bfloat16, C is float32.
//
// The numbers of B are packed in panels as wide as a tile, in the order in which they are read; those of A as well, a
// panel as tall as a tile at a time, right before it is multiplied with those of B. A tile's sums stay in registers.
// Every sum is float32 and runs in the order of the inner axis, whatever the number of threads. Source: Goto and van de
// Geijn 2008, "Anatomy of high-performance matrix multiplication". Built by build.py.

#include "tile.h"

namespace {

#if defined(__AVX512F__)
constexpr int64_t MR = 14;  // rows of a tile: 2 * 14 vectors of sums, 2 of B and 1 of A fill 32 registers
#else
constexpr int64_t MR = 6;  // likewise of 16
#endif
constexpr int64_t NR = 2 * LANES;  // columns of a tile
constexpr int64_t KC = 256;        // words along the inner axis: a panel of A fits the first cache
constexpr int64_t NC = 24 * NR;    // columns of B that a panel of A meets at a time, at most: they fit the L2 cache

// How numbers of type T are packed: how many are IN a word, a word from memory, and sum + a . b of vectors of words.
template <typename T>
struct Packing {
    static constexpr int64_t IN = 1;
    static float word(const T *from, int64_t, int64_t) { return value(*from); }
    static Floats add(Floats a, Floats b, Floats sum) { return multiply_add(a, b, sum); }
};

#if BFLOAT16_PRODUCTS
template <>
struct Packing<BFloat16> {  // pairs: two neighbours along the inner axis
    static constexpr int64_t IN = 2;
    static float word(const BFloat16 *from, int64_t next, int64_t depth) {
        const uint32_t bits = from->bits | (depth > 1 ? (uint32_t)from[next].bits << 16 : 0);
        float word;
        memcpy(&word, &bits, sizeof word);
        return word;
    }
    static Floats add(Floats a, Floats b, Floats sum) {
        return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
    }
};

// `count` words, at most LANES, each a pair from two rows.
inline Floats bfloat16_pairs(const BFloat16 *row, int64_t next, int64_t depth, int64_t count) {
    const __mmask16 mask = count < LANES ? (1u << count) - 1 : 0xffff;
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, row));
    if (depth < 2) return (Floats)low;
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, row + next));
    return (Floats)_mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}
#endif

struct Square {
    Floats rows[LANES];
};

inline Square transposed(Square from) {
#pragma GCC unroll 4
    for (int64_t round = 1; round < LANES; round *= 2) {
        Square to;
#pragma GCC unroll 8
        for (int64_t i = 0; i < LANES / 2; ++i) {
            const Pair mixed = interleave({from.rows[i], from.rows[i + LANES / 2]});
            to.rows[2 * i] = mixed.first, to.rows[2 * i + 1] = mixed.second;
        }
        from = to;
    }
    return from;
}

inline int64_t ceil_div(int64_t count, int64_t size) { return (count + size - 1) / size; }

// SIZE vectors of `depth` numbers as words [depth / IN][SIZE], with zeros beyond `count` vectors: their numbers lie
// `next` apart, one vector `stride` from another. If SIZE is not a multiple of LANES, a store of LANES words
// overlaps the words after its own, so every word must be stored last by its owner. Up to LANES words past the end are
// overwritten.
template <int64_t SIZE, typename T>
inline void pack(const T *from, int64_t stride, int64_t next, int64_t count, int64_t depth, float *to) {
    constexpr int64_t IN = Packing<T>::IN;
    constexpr bool SAME = IN * sizeof(T) == sizeof(float);  // a word has the bits of its numbers
    int64_t k = 0;
    if (stride == 1 && count >= SIZE && SAME) {
        for (; k < depth; k += IN, to += SIZE)
            if constexpr (IN == 1) memcpy(to, from + k * next, SIZE * sizeof(float));
#if BFLOAT16_PRODUCTS
            else
                for (int64_t start = 0; start < SIZE; start += LANES) {
                    const int64_t some = SIZE - start < LANES ? SIZE - start : LANES;
                    const Floats here = bfloat16_pairs(from + k * next + start, next, depth - k, some);
                    memcpy(to + start, &here, sizeof here);
                }
#endif
        return;
    }
    if (next == 1 && SAME)
        for (; k + LANES * IN <= depth; k += LANES * IN, to += LANES * SIZE)
            // The last vectors first: their stores overlap the first words of the row below.
            for (int64_t start = (SIZE - 1) / LANES * LANES; start >= 0; start -= LANES) {
                Square here;
#pragma GCC unroll 16
                for (int64_t i = 0; i < LANES; ++i) {
                    here.rows[i] = Floats{};
                    if (start + i < SIZE && start + i < count)
                        memcpy(here.rows + i, from + (start + i) * stride + k, sizeof(Floats));
                }
                here = transposed(here);
#pragma GCC unroll 16
                for (int64_t i = 0; i < LANES; ++i) memcpy(to + i * SIZE + start, here.rows + i, sizeof(Floats));
            }
    for (; k < depth; k += IN, to += SIZE)
        for (int64_t i = 0; i < SIZE; ++i)
            to[i] = i < count ? Packing<T>::word(from + i * stride + k * next, next, depth - k) : 0;
}

// A tile of C from a panel of A and one of B, `depth` words of each.
template <typename T>
inline void multiply_tile(const float *a, const float *b, int64_t depth, float *c, int64_t c_stride, int64_t rows,
                          int64_t columns, bool add) {
    Pair sums[MR] = {};
    for (int64_t r = 0; r < rows && add; ++r)
        for (int64_t i = 0; i < columns; i += LANES) __builtin_prefetch(c + r * c_stride + i, 1);
    for (int64_t k = 0; k < depth; ++k, a += MR, b += NR) {
        const Pair here = load(b);
#pragma GCC unroll 14
        for (int64_t r = 0; r < MR; ++r) {
            const Floats one = a[r] - Floats{};  // not + 0, which the compiler must keep: -0 + 0 is 0
            sums[r] = {Packing<T>::add(one, here.first, sums[r].first),
                       Packing<T>::add(one, here.second, sums[r].second)};
        }
    }
    const bool whole = columns == NR;
#pragma GCC unroll 14
    for (int64_t r = 0; r < MR; ++r) {
        float *to = c + r * c_stride;
        if (r >= rows) continue;
        if (whole)
            store<false>(to, add ? load(to) + sums[r] : sums[r]);
        else
            store(to, add ? load(to, columns) + sums[r] : sums[r], columns);
    }
}

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Numbers start .. start + depth of the inner axis of B, as panels.
template <typename T>
void pack_columns(const MatmulCall &call, int64_t start, int64_t depth, float *packed) {
    const int64_t row = call.b_strides[0], column = call.b_strides[1];
    const int64_t words = ceil_div(depth, Packing<T>::IN), step = LANES * Packing<T>::IN;
    parallel_for(ceil_div(call.columns, NR), NR * depth, call.threads,
                 [=, &call](int64_t, int64_t first, int64_t last) {
                     // A few rows of every panel at a time: B is read along its rows if columns are contiguous.
                     for (int64_t k = 0; k < depth; k += step)
                         for (int64_t i = first; i < last; ++i)
                             pack<NR>((const T *)call.b + i * NR * column + (start + k) * row, column, row,
                                      call.columns - i * NR, smaller(depth - k, step),
                                      packed + (i * words + k / Packing<T>::IN) * NR);
                 });
}

// Multiply by packed B: its columns in the outer loop, so that they stay in the cache for many panels of A.
template <typename T>
void multiply(const MatmulCall &call, int64_t start, int64_t depth, const float *packed, bool add) {
    const int64_t words = ceil_div(depth, Packing<T>::IN), panels = ceil_div(call.rows, MR);
    const int64_t blocks = ceil_div(call.columns, NC);
    const int64_t width = ceil_div(ceil_div(call.columns, blocks), NR) * NR;  // about the same in all pieces
    parallel_for(blocks * panels, MR * width * 8, call.threads, [=, &call](int64_t, int64_t i, int64_t last) {
        float a[MR * KC + LANES];
        for (; i < last; ++i) {
            const int64_t row = i % panels * MR, from = i / panels * width;
            pack<MR>((const T *)call.a + row * call.a_strides[0] + start * call.a_strides[1], call.a_strides[0],
                     call.a_strides[1], call.rows - row, depth, a);
            for (int64_t column = from; column < smaller(from + width, call.columns); column += NR)
                multiply_tile<T>(a, packed + column * words, words, call.c + row * call.c_stride + column,
                                 call.c_stride, smaller(call.rows - row, MR), smaller(call.columns - column, NR), add);
        }
    });
}

template <typename T>
int matmul(const MatmulCall &call) {
    constexpr int64_t NUMBERS = KC * Packing<T>::IN;
    constexpr int64_t LINE = 64 / sizeof(float);  // a cache line, which the panels begin with
    const Buffer<float> room(ceil_div(call.columns, NR) * NR * KC + LINE);
    if (!room.start) return 1;
    float *packed = (float *)(((uintptr_t)room.start + 63) / 64 * 64);
    for (int64_t start = 0; start < call.depth; start += NUMBERS) {
        const int64_t depth = smaller(call.depth - start, NUMBERS);
        pack_columns<T>(call, start, depth, packed);
        multiply<T>(call, start, depth, packed, call.add || start > 0);
    }
    return 0;
}

}  // namespace

extern "C" int matmul_float32(const MatmulCall *call) { return matmul<float>(*call); }
extern "C" int matmul_bfloat16(const MatmulCall *call) { return matmul<BFloat16>(*call); }
