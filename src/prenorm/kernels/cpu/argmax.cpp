// The index of each row's maximum, the first of equal ones: the greedy choice among logits.
//
// A row that holds NaN, or whose maximum is not finite, gives -1. Built by build.py.

#include "row_max.h"

namespace {

constexpr int64_t CHUNK = 32 * STEP;

template <typename T>
inline bool holds_nan(const T *x, int64_t width) {
    Words found = {};
    by_steps(0, width, [&](int64_t i, auto count) {
        const Pair here = read(x + i, count);
        found |= (Words)(here.first != here.first) | (Words)(here.second != here.second);
    });
    const Words none = {};
    return memcmp(&found, &none, sizeof none) != 0;
}

template <typename T>
inline int64_t first_maximum(const T *x, int64_t width) {
    float most = -INFINITY;
    int64_t at = -1;
    for (int64_t start = 0; start < width; start += CHUNK) {
        const int64_t count = start + CHUNK < width ? CHUNK : width - start;
        if (holds_nan(x + start, count)) return -1;
        const float here = row_max(x + start, count);
        if (here > most) most = here, at = start;
    }
    if (at < 0 || most == INFINITY) return -1;
    while (value(x[at]) != most) ++at;
    return at;
}

}  // namespace

// What Python calls.

#define FOR_DTYPE(T, NAME)                                                                                             \
    extern "C" int argmax_##NAME(const ArgmaxCall *call) {                                                             \
        parallel_for(call->rows, call->width, call->threads, [=](int64_t, int64_t start, int64_t stop) {               \
            for (int64_t row = start; row < stop; ++row)                                                               \
                call->indices[row] = first_maximum((const T *)call->x + row * call->width, call->width);               \
        });                                                                                                            \
        return 0;                                                                                                      \
    }

FOR_DTYPE(float, float32)
FOR_DTYPE(BFloat16, bfloat16)
