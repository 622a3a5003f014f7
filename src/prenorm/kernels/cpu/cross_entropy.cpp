// The losses of rows of logits, and their gradients written over the logits, while a row is in the cache:
//
//   loss = log(sum(e^(x - max))) + max - x[target]      x <- e^(x - max) / sum(e^(x - max)) - (1 at target)
//
// A row without a target has loss 0 and gradient 0. The arithmetic is float32, long sums go on in double, and a
// gradient is rounded to the dtype of the logits once, last. A row's result never depends on the other rows. Built by
// build.py.

#include <cmath>

#include "exponential.h"
#include "row_max.h"

namespace {

constexpr int64_t CHUNK = 64 * STEP;  // numbers that are summed in float32 before the sum goes on in double

inline Pair exponential(Pair x) { return {exponential(x.first), exponential(x.second)}; }

template <typename T>
inline double sum_of_exponentials(const T *x, int64_t width, float max) {
    double total = 0;
    for (int64_t start = 0; start < width; start += CHUNK) {
        Pair sum = {};
        const int64_t stop = start + CHUNK < width ? start + CHUNK : width;
        by_steps(start, stop, [&](int64_t i, auto count) { sum = sum + exponential(read(x + i, count) + -max); });
        total += sum_lanes(sum);
    }
    return total;
}

template <typename T>
inline float row(T *x, int64_t target, int64_t width, bool gradient) {
    const float max = row_max(x, width);
    const double sum = sum_of_exponentials(x, width, max);
    // log(sum), which is 1 or more: 1 is taken off exactly. The log of glibc 2.29 would keep out systems of before.
    const double loss = std::log1p(sum - 1) + ((double)max - value(x[target]));
    if (!gradient) return (float)loss;
    const float inverse = (float)(1 / sum);
    const float at_target = exponential(value(x[target]) - max + Floats{})[0] * inverse - 1;
    by_steps(0, width, [&](int64_t i, auto count) {
        const Pair here = exponential(read(x + i, count) + -max) * inverse;
        if (count == STEP)
            store<false>(x + i, here);
        else
            store(x + i, here, count);
    });
    put(x + target, at_target);
    return (float)loss;
}

template <typename T>
int cross_entropy(const CrossEntropyCall &call) {
    parallel_for(call.rows, call.width, call.threads, [&](int64_t, int64_t start, int64_t stop) {
        for (int64_t i = start; i < stop; ++i) {
            T *x = (T *)call.logits + i * call.width;
            const bool kept = call.targets[i] != call.ignored;
            call.losses[i] = kept ? row(x, call.targets[i], call.width, call.gradient) : 0;
            if (!kept && call.gradient) memset(x, 0, call.width * sizeof(T));
        }
    });
    return 0;
}

}  // namespace

extern "C" int cross_entropy_float32(const CrossEntropyCall *call) { return cross_entropy<float>(*call); }
extern "C" int cross_entropy_bfloat16(const CrossEntropyCall *call) { return cross_entropy<BFloat16>(*call); }
