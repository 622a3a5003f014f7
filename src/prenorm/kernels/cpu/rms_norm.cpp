// RMSNorm on a CPU, forward and backward, in one pass over memory: a row is read once, and once more from the cache.
//
//   y  = weight * x * inv                                      inv = 1 / sqrt(mean(x^2) + eps), one for each row
//   dx = inv * (g * weight - x * inv * mean(g * weight * x * inv))
//   dw = sum over rows of g * x * inv
//
// x, y, g and dx have one dtype, weight and dw have one. The arithmetic is float32, long sums go on in double, and a
// result is rounded to its dtype once, last. What a row gives never depends on the other rows.
// Source: Zhang and Sennrich 2019, arXiv:1910.07467. Built by build.py; without headers of torch or Python, so that
// a compiler takes two seconds for it.

#include "mean_square.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

constexpr int64_t BLOCK = 32;           // rows whose part of dw is summed in float32 before it goes on in double
constexpr int64_t LARGE = 24 << 20;     // bytes; a larger result would not stay in any cache
constexpr int64_t HUGE_PAGE = 2 << 20;  // bytes

// --- weights, and gradients of weights, as float32 in the order that a step of X has ---

inline int64_t padded(int64_t width) { return (width + STEP - 1) / STEP * STEP; }

template <typename X, typename W>
inline Pair load_weight(const W *weight) {
    if (sizeof(X) == sizeof(W)) return load(weight);
    float apart[STEP];
    const float *together = (const float *)weight;
    for (int64_t i = 0; i < LANES; ++i) apart[i] = together[2 * i];
    for (int64_t i = 0; i < LANES; ++i) apart[LANES + i] = together[2 * i + 1];
    return load(apart);
}

template <typename X, typename W>
inline void store_weight(W *weight, Pair pair) {
    if (sizeof(X) == sizeof(W)) return store<false>(weight, pair);
    float apart[STEP];
    store<false>(apart, pair);
    for (int64_t i = 0; i < STEP; ++i) ((float *)weight)[i] = apart[i / 2 + i % 2 * LANES];
}

template <typename X, typename W>
void read_weight(const W *weight, float *prepared, int64_t width) {
    int64_t i = 0;
    for (; i + STEP <= width; i += STEP) store<false>(prepared + i, load_weight<X>(weight + i));
    if (i < width) {
        W rest[STEP] = {};
        memcpy(rest, weight + i, (width - i) * sizeof(W));
        store<false>(prepared + i, load_weight<X>(rest));
    }
}

template <typename X, typename W>
void write_weight(const double *totals, W *weight, int64_t width) {
    for (int64_t i = 0; i < width; i += STEP) {
        float rounded[STEP];
        for (int64_t j = 0; j < STEP; ++j) rounded[j] = (float)totals[i + j];
        W stored[STEP];
        store_weight<X>(stored, load(rounded));
        memcpy(weight + i, stored, (width - i < STEP ? width - i : STEP) * sizeof(W));
    }
}

// --- shared by forward and backward ---

// Whether a result is written past the caches. So large a result often lies in memory fresh from the system, and the
// first touch of its pages costs more than everything else: with huge pages a third of that.
bool large(void *to, int64_t rows, int64_t row_bytes) {
    const uintptr_t start = (uintptr_t)to, stop = start + rows * row_bytes;
    if (rows * row_bytes < LARGE) return false;
#if defined(MADV_HUGEPAGE)
    const uintptr_t first = (start + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    madvise((void *)first, stop / HUGE_PAGE * HUGE_PAGE - first, MADV_HUGEPAGE);  // advice; failure is harmless
#endif
    return row_bytes % 64 == 0 && start % 64 == 0;
}

void finish_streaming() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

// The weight as read_weight prepares it, without a copy if it needs none.
template <typename X, typename W>
struct Weight {
    const bool as_it_is;
    const Buffer<float> room;
    const float *const start;
    Weight(const W *weight, int64_t width)
        : as_it_is(sizeof(X) == 4 && sizeof(W) == 4 && width % STEP == 0),
          room(as_it_is ? 0 : padded(width)),
          start(as_it_is ? (const float *)weight : room.start) {
        if (!as_it_is && start) read_weight<X>(weight, room.start, width);
    }
};

// --- forward ---

template <bool STREAM, typename X>
inline void scale(const X *x, const float *weight, X *y, int64_t width, float inv) {
    int64_t i = 0;
    for (; i + STEP <= width; i += STEP) store<STREAM>(y + i, load(x + i) * inv * load(weight + i));
    if (i < width) store(y + i, load(x + i, width - i) * inv * load(weight + i), width - i);
}

template <typename X, typename W>
int forward(const X *x, const W *weight, X *y, int64_t rows, int64_t width, double eps, int64_t threads) {
    const Weight<X, W> prepared(weight, width);
    if (!prepared.start) return 1;
    const bool stream = large(y, rows, width * sizeof(X));
    parallel_for(rows, width, threads, [=, &prepared](int64_t, int64_t start, int64_t stop) {
        for (int64_t row = start; row < stop; ++row) {
            const X *from = x + row * width;
            X *to = y + row * width;
            const float inv = inverse_root(from, width, eps);
            if (stream)
                scale<true>(from, prepared.start, to, width, inv);
            else
                scale<false>(from, prepared.start, to, width, inv);
        }
        if (stream) finish_streaming();
    });
    return 0;
}

// --- backward ---

// mean(g * weight * x)
template <typename X>
inline float mean_of_products(const X *g, const X *x, const float *weight, int64_t width) {
    double sum = sum_over(
        width, [=](int64_t i) { return load(g + i) * load(weight + i) * load(x + i); },
        [=](int64_t i, int64_t n) { return load(g + i, n) * load(weight + i) * load(x + i, n); });
    if (overflowed(sum)) sum = products_in_double(g, x, weight, width);
    return (float)(sum / (double)width);
}

// One row's dx, and its part of dw added to `sums`.
template <bool STREAM, bool FOR_X, bool FOR_WEIGHT, typename X>
inline void backward_row(const X *g, const X *x, const float *weight, X *dx, float *sums, int64_t width, double eps) {
    const float inv = inverse_root(x, width, eps);  // recomputed: x is read here anyway, and no tensor need be kept
    const float mean = FOR_X ? mean_of_products(g, x, weight, width) * inv : 0;
    const auto step = [=](int64_t i, Pair g_here, Pair x_here) {
        const Pair normed = x_here * inv;
        if (FOR_WEIGHT) store<false>(sums + i, load(sums + i) + g_here * normed);
        return (g_here * load(weight + i) - normed * mean) * inv;
    };
    int64_t i = 0;
    for (; i + STEP <= width; i += STEP) {
        const Pair dx_here = step(i, load(g + i), load(x + i));
        if (FOR_X) store<STREAM>(dx + i, dx_here);
    }
    if (i < width) {
        const Pair dx_here = step(i, load(g + i, width - i), load(x + i, width - i));
        if (FOR_X) store(dx + i, dx_here, width - i);
    }
}

template <bool FOR_X, bool FOR_WEIGHT, typename X, typename W>
int backward(const X *g, const X *x, const W *weight, X *dx, W *dw, int64_t rows, int64_t width, double eps,
             int64_t threads) {
    const int64_t room = padded(width);
    threads = threads_for(rows, width, threads);
    const Weight<X, W> prepared(weight, width);
    const Buffer<float> all_sums(FOR_WEIGHT ? threads * room : 0);
    const Buffer<double> all_totals(FOR_WEIGHT ? threads * room : 0);
    if (!prepared.start || !all_sums.start || !all_totals.start) return 1;
    const bool stream = FOR_X && large(dx, rows, width * sizeof(X));
    parallel_for(
        rows, width, threads, [=, &prepared, &all_sums, &all_totals](int64_t part, int64_t start, int64_t stop) {
            float *sums = all_sums.start + part * room;
            double *totals = all_totals.start + part * room;
            if (FOR_WEIGHT) memset(sums, 0, room * sizeof(float)), memset(totals, 0, room * sizeof(double));
            for (int64_t row = start; row < stop; ++row) {
                const int64_t at = row * width;
                if (stream)
                    backward_row<true, FOR_X, FOR_WEIGHT>(g + at, x + at, prepared.start, dx + at, sums, width, eps);
                else
                    backward_row<false, FOR_X, FOR_WEIGHT>(g + at, x + at, prepared.start, dx + at, sums, width, eps);
                if (FOR_WEIGHT && ((row - start) % BLOCK == BLOCK - 1 || row == stop - 1)) {
                    for (int64_t i = 0; i < room; ++i) totals[i] += sums[i];
                    memset(sums, 0, room * sizeof(float));
                }
            }
            if (stream) finish_streaming();
        });
    if (FOR_WEIGHT) {
        double *totals = all_totals.start;
        for (int64_t part = 1; part < threads; ++part)
            for (int64_t i = 0; i < room; ++i) totals[i] += totals[part * room + i];
        write_weight<X>(totals, dw, width);
    }
    return 0;
}

}  // namespace

// --- what Python calls: 0 is given, or 1 where memory ran out ---

#define FOR_DTYPES(X, W, NAME)                                                                                         \
    extern "C" int rms_norm_##NAME(const RmsNormCall *call) {                                                          \
        return forward((const X *)call->x, (const W *)call->weight, (X *)call->y, call->rows, call->width, call->eps,  \
                       call->threads);                                                                                 \
    }                                                                                                                  \
    extern "C" int rms_norm_backward_##NAME(const RmsNormCall *call) {                                                 \
        const auto run = !call->dw   ? backward<true, false, X, W>                                                     \
                         : !call->dx ? backward<false, true, X, W>                                                     \
                                     : backward<true, true, X, W>;                                                     \
        return run((const X *)call->g, (const X *)call->x, (const W *)call->weight, (X *)call->dx, (W *)call->dw,      \
                   call->rows, call->width, call->eps, call->threads);                                                 \
    }

FOR_DTYPES(float, float, float32_float32)
FOR_DTYPES(BFloat16, BFloat16, bfloat16_bfloat16)
FOR_DTYPES(BFloat16, float, bfloat16_float32)
