// 1 / sqrt(mean(x^2) + eps), RMSNorm's factor: sums in float32, long ones in double.

#pragma once

#include <cfloat>
#include <cmath>

#include "vectors.h"

namespace {

constexpr int64_t CHUNK = 64 * STEP;  // numbers that are summed in float32 before the sum goes on in double

// The sum of term(i) over whole steps and of rest(i, count) for what is left: float32 in each lane, then double.
template <typename Term, typename Rest>
inline double sum_over(int64_t width, Term term, Rest rest) {
    double total = 0;
    int64_t i = 0;
    while (i + STEP <= width) {
        Pair even = {}, odd = {};  // two sums, so that one addition does not wait for the other
        const int64_t stop = i + CHUNK < width ? i + CHUNK : width;
        for (; i + 2 * STEP <= stop; i += 2 * STEP) {
            even = even + term(i);
            odd = odd + term(i + STEP);
        }
        if (i + STEP <= stop) {
            even = even + term(i);
            i += STEP;
        }
        total += sum_lanes(even + odd);
    }
    return i < width ? total + sum_lanes(rest(i, width - i)) : total;
}

// The squares of 1e18 fit into float32, their sum does not. Infinite or NaN inputs give the same result either way.
inline bool overflowed(double sum) { return __builtin_expect(!(std::fabs(sum) <= FLT_MAX), 0); }

template <typename X>
double products_in_double(const X *a, const X *b, const float *weight, int64_t width) {
    double sum = 0;
    for (int64_t i = 0; i < width; i += STEP) {
        const int64_t count = width - i < STEP ? width - i : STEP;
        const Pair pairs[] = {load(a + i, count), load(b + i, count), weight ? load(weight + i) : Pair{} + 1};
        for (int64_t j = 0; j < LANES; ++j) {
            sum += (double)pairs[0].first[j] * pairs[1].first[j] * pairs[2].first[j];
            sum += (double)pairs[0].second[j] * pairs[1].second[j] * pairs[2].second[j];
        }
    }
    return sum;
}

template <typename X>
inline float inverse_root(const X *x, int64_t width, double eps) {
    double sum = sum_over(
        width, [=](int64_t i) { return load(x + i) * load(x + i); },
        [=](int64_t i, int64_t count) { return load(x + i, count) * load(x + i, count); });
    if (overflowed(sum)) sum = products_in_double(x, x, nullptr, width);
    return (float)(1 / std::sqrt(sum / (double)width + eps));
}

}  // namespace
