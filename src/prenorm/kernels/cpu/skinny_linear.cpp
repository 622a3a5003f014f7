// Products of a few rows with a large weight, as in decoding: y = x W^T + b, where x has 1 to 8 rows.
//
// The weight is read once, at the speed of memory, and as it lies in a parameter (out, in): nothing is packed, so
// there is no copy that could be out of date. x, W, b and y have one dtype; products and sums are float32, and a
// result is rounded to its dtype once, last. What a row gives depends neither on what is in the other rows nor on
// how many threads there are. Built by build.py.

#include "tile.h"

namespace {

template <typename T>
void skinny_linear(const T *x, const T *w, const T *bias, T *y, int64_t rows, int64_t in, int64_t out,
                   int64_t threads) {
    parallel_for(out, in, threads, [=](int64_t, int64_t start, int64_t stop) {
        with_rows(rows, [=](auto n) {
            multiply_weight<n.value>(x, w + start * in, in, stop - start, [=](int r, int64_t c, float sum) {
                put(y + r * out + start + c, bias ? sum + value(bias[start + c]) : sum);
            });
        });
    });
}

}  // namespace

// What Python calls.

#define FOR_DTYPE(T, NAME)                                                                                             \
    extern "C" int skinny_linear_##NAME(const SkinnyLinearCall *call) {                                                \
        skinny_linear((const T *)call->x, (const T *)call->weight, (const T *)call->bias, (T *)call->y, call->rows,    \
                      call->in_features, call->out_features, call->threads);                                           \
        return 0;                                                                                                      \
    }

FOR_DTYPE(float, float32)
FOR_DTYPE(BFloat16, bfloat16)
