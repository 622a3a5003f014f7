// Rotary embedding on a CPU in one pass over memory: every pair (a, b) of features is rotated by its angle.
//
//   (a, b) -> (a cos - b sin, b cos + a sin)
//
// The gradient is the same with the other sign of sin. The arithmetic is float32, in the order of the formula, and a
// result is rounded to its dtype once, last. Source: Su et al. 2021, arXiv:2104.09864. Built by build.py.

#include "vectors.h"

namespace {

struct Rotated {
    Pair a, b;
};

inline Rotated rotate_pair(Pair a, Pair b, Pair cos, Pair sin) { return {a * cos - b * sin, b * cos + a * sin}; }

// Pairs i and half + i. `cos` and `sin` are in the order of memory; those of bfloat16 have to be as it is loaded.
template <typename T>
inline Pair angles(const float *from, int64_t count) {
    const Pair here = count == STEP ? load(from) : load(from, count);
    return sizeof(T) == sizeof(float) ? here : deinterleave(here);
}

template <typename T>
inline void rotate_halves(const T *x, T *y, const float *cos, const float *sin, int64_t half, float sign) {
    for (int64_t i = 0; i < half; i += STEP) {
        const int64_t count = half - i < STEP ? half - i : STEP;
        const bool whole = count == STEP;
        const Pair a = whole ? load(x + i) : load(x + i, count);
        const Pair b = whole ? load(x + half + i) : load(x + half + i, count);
        const Rotated here = rotate_pair(a, b, angles<T>(cos + i, count), angles<T>(sin + i, count) * sign);
        if (whole) {
            store<false>(y + i, here.a);
            store<false>(y + half + i, here.b);
        } else {
            store(y + i, here.a, count);
            store(y + half + i, here.b, count);
        }
    }
}

// Pairs 2i and 2i + 1: a step of x holds LANES of them.
template <typename T>
inline void rotate_neighbours(const T *x, T *y, const float *cos, const float *sin, int64_t half, float sign) {
    for (int64_t i = 0; i < half; i += LANES) {
        const int64_t count = half - i < LANES ? half - i : LANES;
        const bool whole = count == LANES;
        const Pair read = whole ? load(x + 2 * i) : load(x + 2 * i, 2 * count);
        const Pair pairs = sizeof(T) == sizeof(float) ? deinterleave(read) : read;
        float angles[STEP] = {};
        memcpy(angles, cos + i, count * sizeof(float));
        memcpy(angles + LANES, sin + i, count * sizeof(float));
        const Pair angle_pair = load(angles);
        const Floats c = angle_pair.first, s = angle_pair.second * sign;
        const Pair rotated = {pairs.first * c - pairs.second * s, pairs.second * c + pairs.first * s};
        const Pair written = sizeof(T) == sizeof(float) ? interleave(rotated) : rotated;
        if (whole)
            store<false>(y + 2 * i, written);
        else
            store(y + 2 * i, written, 2 * count);
    }
}

template <typename T>
int rotate(const RopeCall &call) {
    const auto at = [](const int64_t *strides, int64_t batch, int64_t head, int64_t token) {
        return batch * strides[0] + head * strides[1] + token * strides[2];
    };
    const float sign = call.backwards ? -1 : 1;
    // Heads innermost: the heads of a token mostly lie side by side and share their angles.
    parallel_for(
        call.batch * call.seq, call.heads * 2 * call.half, call.threads, [&](int64_t, int64_t start, int64_t stop) {
            for (int64_t row = start; row < stop; ++row)
                for (int64_t head = 0, batch = row / call.seq, token = row % call.seq; head < call.heads; ++head) {
                    const T *x = (const T *)call.x + at(call.x_strides, batch, head, token);
                    T *y = (T *)call.y + at(call.y_strides, batch, head, token);
                    const float *cos = call.cos + at(call.cos_strides, batch, head, token);
                    const float *sin = call.sin + at(call.sin_strides, batch, head, token);
                    if (call.interleaved)
                        rotate_neighbours(x, y, cos, sin, call.half, sign);
                    else
                        rotate_halves(x, y, cos, sin, call.half, sign);
                }
        });
    return 0;
}

}  // namespace

extern "C" int rope_float32(const RopeCall *call) { return rotate<float>(*call); }
extern "C" int rope_bfloat16(const RopeCall *call) { return rotate<BFloat16>(*call); }
