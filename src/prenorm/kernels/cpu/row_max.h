// The maximum of a row of any length.

#pragma once

#include <cmath>
#include <type_traits>

#include "tile.h"

namespace {

inline Pair maximum(Pair a, Pair b) {
    return {a.first > b.first ? a.first : b.first, a.second > b.second ? a.second : b.second};
}

// The last `count` numbers of a row, then -infinity, which changes no maximum and whose exponential is 0.
template <typename T>
inline Pair load_rest(const T *from, int64_t count) {
    T padded[STEP];
    for (int64_t i = 0; i < STEP; ++i) put(padded + i, -INFINITY);
    memcpy(padded, from, count * sizeof(T));
    return load(padded);
}

// run(start, count) for every step; the last may be short.
template <typename Run>
inline void by_steps(int64_t start, int64_t stop, Run run) {
    int64_t i = start;
    for (; i + STEP <= stop; i += STEP) run(i, std::integral_constant<int64_t, STEP>());
    if (i < stop) run(i, stop - i);
}

template <typename T>
inline Pair read(const T *from, int64_t count) {
    return count == STEP ? load(from) : load_rest(from, count);
}

// Ignores NaN.
template <typename T>
inline float row_max(const T *x, int64_t width) {
    Pair most = Pair{} + -INFINITY;
    by_steps(0, width, [&](int64_t i, auto count) { most = maximum(read(x + i, count), most); });
    float all[STEP], one = -INFINITY;
    store<false>(all, most);
    for (const float v : all) one = v > one ? v : one;
    return one;
}

}  // namespace
