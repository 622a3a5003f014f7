// e^x and 1 / (1 + e^-x) for vectors of float32.

#pragma once

#include "tile.h"

namespace {

constexpr float TERMS[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 1.0f / 2, 1.0f, 1.0f};

// e^x for x <= 0, with a relative error of 1e-7: 2^n e^r, where n is x / ln 2 rounded to an integer, and e^r is
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

// 1 / (1 + e^-x), of a power that cannot overflow.
inline Floats sigmoid(Floats x) {
    const Floats e = exponential(x < 0 ? x : -x), one = 1.0f + Floats{};
    return (x < 0 ? e : one) / (one + e);
}

}  // namespace
