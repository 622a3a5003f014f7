// Rows of integers times weights of integers, with a scale for each group of 32: see ops/quantized.py.
//
// A weight W (out, in) lies in blocks of 16 columns of the product (16 rows of W), a block in groups of 32 along `in`,
// a group in quads: 4 neighbours of column 0, then those of column 1, ... That is what one instruction (AVX512-VNNI)
// multiplies with 4 numbers of x that all columns share. Numbers are stored with ZERO added, without a sign; int4 has
// quads i and i + 4 of a group in one byte, the earlier one in the lower half.

#pragma once

#include "tile.h"

namespace {

constexpr int64_t GROUP = QUANT_GROUP, COLUMNS = QUANT_ROWS, QUADS = GROUP / QUANT_QUAD;

struct Int8 {
    static constexpr int ZERO = 128;
    static constexpr int64_t BYTES = COLUMNS * GROUP;  // of a group in a block
};
struct Int4 {
    static constexpr int ZERO = 8;
    static constexpr int64_t BYTES = COLUMNS * GROUP / 2;
};

// Rows of x, each number rounded to a multiple of its group's scale.
struct Rows {
    int8_t *numbers;     // (rows, in)
    float *scales;       // (rows, groups)
    int32_t *sums;       // (rows, groups): minus ZERO times the sum of the numbers, where a group's products start
    int64_t in, groups;  // both multiples of a group
};

inline int64_t groups_of(int64_t in) { return (in + GROUP - 1) / GROUP; }

constexpr float TINY = 7.888609e-31f;  // 2^-100: the numbers of a group that has none as large become 0

// A group's largest absolute value, from its bits; NaN if any number is infinite or NaN. Without their sign, floats are
// ordered as their bits are, and NaN is above infinity.
inline float size_of(uint32_t most) {
    if (most >= 0x7f800000) most = 0x7fc00000;
    float v;
    memcpy(&v, &most, sizeof v);
    return v;
}

// The factor for a group's numbers before they are rounded to integers.
inline float inverse_scale(float most) { return most >= TINY || most != most ? 1 / most * 127 : 0; }

template <typename T>
inline float round_group(const T *x, int64_t count, int8_t *numbers, int32_t *sum) {
    uint32_t most = 0;
    for (int64_t i = 0; i < count; ++i) {
        const float v = value(x[i]);
        uint32_t bits;
        memcpy(&bits, &v, sizeof bits);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    const float inverse = inverse_scale(size_of(most));
    *sum = 0;
    for (int64_t i = 0; i < GROUP; ++i) {
        const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, ties to even
        const float rounded = (i < count ? value(x[i]) * inverse : 0) + magic;
        int32_t bits;
        memcpy(&bits, &rounded, sizeof bits);
        numbers[i] = (int8_t)(bits - 0x4b400000);
        *sum += numbers[i];
    }
    return size_of(most);
}

#if defined(__AVX512F__)

inline __m512 widen(const BFloat16 *from) {
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16);
}
inline __m512 widen(const float *from) { return _mm512_loadu_ps(from); }

template <typename T>
inline float round_whole_group(const T *x, int8_t *numbers, int32_t *sum) {
    const __m512 first = widen(x), second = widen(x + 16);
    const __m512i no_sign = _mm512_set1_epi32(0x7fffffff);
    const float most = size_of(_mm512_reduce_max_epu32(
        _mm512_max_epu32(_mm512_and_si512((__m512i)first, no_sign), _mm512_and_si512((__m512i)second, no_sign))));
    const __m512 inverse = _mm512_set1_ps(inverse_scale(most));
    const __m512i low = _mm512_cvtps_epi32(_mm512_mul_ps(first, inverse));
    const __m512i high = _mm512_cvtps_epi32(_mm512_mul_ps(second, inverse));
    _mm_storeu_si128((__m128i *)numbers, _mm512_cvtepi32_epi8(low));
    _mm_storeu_si128((__m128i *)(numbers + 16), _mm512_cvtepi32_epi8(high));
    *sum = _mm512_reduce_add_epi32(_mm512_add_epi32(low, high));
    return most;
}

#else

template <typename T>
inline float round_whole_group(const T *x, int8_t *numbers, int32_t *sum) {
    return round_group(x, GROUP, numbers, sum);
}

#endif

template <typename T>
inline void quantize_row(const T *x, int64_t count, const Rows &to, int64_t row, int zero) {
    for (int64_t group = 0; group < to.groups; ++group, x += GROUP, count -= GROUP) {
        int8_t *numbers = to.numbers + row * to.in + group * GROUP;
        int32_t sum;
        const float most = count >= GROUP ? round_whole_group(x, numbers, &sum) : round_group(x, count, numbers, &sum);
        to.scales[row * to.groups + group] = most / 127;
        to.sums[row * to.groups + group] = -zero * sum;
    }
}

#if defined(__AVX512VNNI__)

constexpr int64_t FAR = 2048;  // bytes; the prefetch distance

inline void load_quads(const uint8_t *w, Int8, __m512i *quads) {
    for (int i = 0; i < QUADS; ++i) quads[i] = _mm512_loadu_si512(w + 64 * i);
}

inline void load_quads(const uint8_t *w, Int4, __m512i *quads) {
    const __m512i low = _mm512_set1_epi8(15);
    for (int i = 0; i < QUADS / 2; ++i) {
        const __m512i both = _mm512_loadu_si512(w + 64 * i);
        quads[i] = _mm512_and_si512(both, low);
        quads[i + QUADS / 2] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
    }
}

// The products of ROWS rows, from `row` on, with the 16 columns of a block.
template <int ROWS, typename Kind>
inline void multiply_block(const Rows &x, int64_t row, const uint8_t *w, const BFloat16 *scales,
                           float (*products)[COLUMNS]) {
    __m512 sums[ROWS];
    for (int r = 0; r < ROWS; ++r) sums[r] = _mm512_setzero_ps();
    const int8_t *numbers = x.numbers + row * x.in;
    const float *x_scales = x.scales + row * x.groups;
    const int32_t *starts = x.sums + row * x.groups;
    for (int64_t group = 0; group < x.groups; ++group, w += Kind::BYTES, scales += COLUMNS, numbers += GROUP) {
        __m512i quads[QUADS], total[ROWS];
        load_quads(w, Kind(), quads);
        for (int r = 0; r < ROWS; ++r) total[r] = _mm512_set1_epi32(starts[r * x.groups + group]);
        if constexpr (ROWS > 2)  // for one or two rows memory is the limit
            for (int64_t line = 0; line < Kind::BYTES; line += 64) __builtin_prefetch(w + FAR + line, 0, 3);
        for (int i = 0; i < QUADS; ++i)
            for (int r = 0; r < ROWS; ++r) {
                int32_t four;
                memcpy(&four, numbers + r * x.in + 4 * i, sizeof four);
                total[r] = _mm512_dpbusd_epi32(total[r], quads[i], _mm512_set1_epi32(four));
            }
        const __m512 scale = widen(scales);
        for (int r = 0; r < ROWS; ++r)
            sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total[r]),
                                      _mm512_mul_ps(scale, _mm512_set1_ps(x_scales[r * x.groups + group])), sums[r]);
    }
    for (int r = 0; r < ROWS; ++r) _mm512_storeu_ps(products[r], sums[r]);
}

#elif defined(__AVX2__)

// Half a block at a time: 8 columns, whose sums fit the registers for 8 rows.
constexpr int64_t HALF = COLUMNS / 2;

inline __m256 widen_half(const BFloat16 *from) {
    return (__m256)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from)), 16);
}

// A group of a row as its products need it: of bytes up to 255, two products do not fit 16 bits, so numbers of 8 bits
// are multiplied as numbers of 16, the even ones of each quad and the odd ones.
inline void load_row(const int8_t *numbers, Int8, int32_t (*x)[QUADS]) {
    const __m256i both = _mm256_loadu_si256((const __m256i *)numbers);
    _mm256_storeu_si256((__m256i *)x[0], _mm256_srai_epi16(_mm256_slli_epi16(both, 8), 8));
    _mm256_storeu_si256((__m256i *)x[1], _mm256_srai_epi16(both, 8));
}
inline void load_row(const int8_t *numbers, Int4, int32_t (*x)[QUADS]) { memcpy(x[0], numbers, GROUP); }

// The products of a group of ROWS rows with half a block, added to total.
template <int ROWS>
inline void multiply_half(const int32_t (*x)[2][QUADS], const uint8_t *w, Int8, __m256i *total) {
    for (int i = 0; i < QUADS; ++i) {
        const __m256i both = _mm256_loadu_si256((const __m256i *)(w + 64 * i));
        const __m256i even = _mm256_and_si256(both, _mm256_set1_epi16(255)), odd = _mm256_srli_epi16(both, 8);
        for (int r = 0; r < ROWS; ++r) {
            total[r] = _mm256_add_epi32(total[r], _mm256_madd_epi16(even, _mm256_set1_epi32(x[r][0][i])));
            total[r] = _mm256_add_epi32(total[r], _mm256_madd_epi16(odd, _mm256_set1_epi32(x[r][1][i])));
        }
    }
}

// Sums of a group's products with numbers up to 15 fit 16 bits: at most 16 * 15 * 127 = 30,480.
template <int ROWS>
inline void multiply_half(const int32_t (*x)[2][QUADS], const uint8_t *w, Int4, __m256i *total) {
    const __m256i mask = _mm256_set1_epi8(15);
    __m256i sums[ROWS];
    for (int r = 0; r < ROWS; ++r) sums[r] = _mm256_setzero_si256();
    for (int i = 0; i < QUADS / 2; ++i) {
        const __m256i both = _mm256_loadu_si256((const __m256i *)(w + 64 * i));
        const __m256i low = _mm256_and_si256(both, mask), high = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
        for (int r = 0; r < ROWS; ++r) {
            sums[r] = _mm256_add_epi16(sums[r], _mm256_maddubs_epi16(low, _mm256_set1_epi32(x[r][0][i])));
            sums[r] = _mm256_add_epi16(sums[r], _mm256_maddubs_epi16(high, _mm256_set1_epi32(x[r][0][i + QUADS / 2])));
            keep(sums[r]);  // or compilers put the additions off, with more products than registers hold
        }
    }
    for (int r = 0; r < ROWS; ++r)
        total[r] = _mm256_add_epi32(total[r], _mm256_madd_epi16(sums[r], _mm256_set1_epi16(1)));
}

template <int ROWS, typename Kind>
inline void multiply_block(const Rows &x, int64_t row, const uint8_t *w, const BFloat16 *scales,
                           float (*products)[COLUMNS]) {
    memset(products, 0, ROWS * sizeof *products);
    for (int64_t group = 0; group < x.groups; ++group, w += Kind::BYTES, scales += COLUMNS) {
        int32_t numbers[ROWS][2][QUADS];
        for (int r = 0; r < ROWS; ++r) load_row(x.numbers + (row + r) * x.in + group * GROUP, Kind(), numbers[r]);
        for (int64_t column = 0; column < COLUMNS; column += HALF) {
            __m256i total[ROWS];
            for (int r = 0; r < ROWS; ++r) total[r] = _mm256_set1_epi32(x.sums[(row + r) * x.groups + group]);
            read_again(numbers);  // or compilers spread every number over a vector once for both halves, in memory
            multiply_half<ROWS>(numbers, w + 4 * column, Kind(), total);
            const __m256 scale = widen_half(scales + column);
            for (int r = 0; r < ROWS; ++r) {
                const __m256 factor = _mm256_mul_ps(scale, _mm256_set1_ps(x.scales[(row + r) * x.groups + group]));
                float *sum = products[r] + column;
                _mm256_storeu_ps(sum, _mm256_fmadd_ps(_mm256_cvtepi32_ps(total[r]), factor, _mm256_loadu_ps(sum)));
            }
        }
    }
}

#else

inline int number(const uint8_t *w, Int8, int64_t quad, int64_t column, int64_t i) {
    return w[quad * 64 + column * 4 + i];
}
inline int number(const uint8_t *w, Int4, int64_t quad, int64_t column, int64_t i) {
    return w[quad % 4 * 64 + column * 4 + i] >> quad / 4 * 4 & 15;
}

template <int ROWS, typename Kind>
inline void multiply_block(const Rows &x, int64_t row, const uint8_t *w, const BFloat16 *scales,
                           float (*products)[COLUMNS]) {
    memset(products, 0, ROWS * sizeof *products);
    for (int64_t group = 0; group < x.groups; ++group, w += Kind::BYTES, scales += COLUMNS)
        for (int r = 0; r < ROWS; ++r) {
            const int64_t at = (row + r) * x.groups + group;
            const int8_t *numbers = x.numbers + (row + r) * x.in + group * GROUP;
            for (int64_t c = 0; c < COLUMNS; ++c) {
                int32_t total = x.sums[at];
                for (int64_t quad = 0; quad < QUADS; ++quad)
                    for (int64_t i = 0; i < 4; ++i) total += number(w, Kind(), quad, c, i) * numbers[quad * 4 + i];
                products[r][c] += (float)total * (value(scales[c]) * x.scales[at]);
            }
        }
}

#endif

// Calls run(row, column, products, count) for ROWS rows from `row` on and the columns from start to stop, up to 16
// neighbours at a time; start is a multiple of 16.
template <int ROWS, typename Kind, typename Run>
inline void multiply_columns(const Rows &x, int64_t row, const uint8_t *w, const BFloat16 *scales, int64_t start,
                             int64_t stop, Run run) {
    for (int64_t column = start; column < stop; column += COLUMNS) {
        float products[ROWS][COLUMNS];
        const int64_t groups = column / COLUMNS * x.groups;
        multiply_block<ROWS, Kind>(x, row, w + groups * Kind::BYTES, scales + groups * COLUMNS, products);
        for (int r = 0; r < ROWS; ++r) run(r, column, products[r], stop - column < COLUMNS ? stop - column : COLUMNS);
    }
}

}  // namespace
