// silu(gate) * up on a CPU, forward and backward, in one pass over memory; with s = 1 / (1 + e^-gate):
//
//   y     = gate * s * up
//   dgate = g * up * s * (1 + gate * (1 - s))          dup = g * gate * s
//
// All have one dtype. The arithmetic is float32, and a result is rounded to its dtype once, last.
// Source: Shazeer 2020, arXiv:2002.05202. Built by build.py.

#include "exponential.h"

namespace {

inline Pair sigmoid(Pair x) { return {sigmoid(x.first), sigmoid(x.second)}; }

inline Pair forward_step(Pair gate, Pair up) { return gate * sigmoid(gate) * up; }

struct Gradients {
    Pair gate, up;
};

inline Gradients backward_step(Pair g, Pair gate, Pair up) {
    const Pair s = sigmoid(gate), one = Pair{} + 1;
    return {g * up * (s * (one + gate * (one - s))), g * (gate * s)};
}

template <typename T>
void forward(const T *gate, const T *up, T *y, int64_t start, int64_t stop) {
    int64_t i = start;
    for (; i + STEP <= stop; i += STEP) store<false>(y + i, forward_step(load(gate + i), load(up + i)));
    const int64_t rest = stop - i;
    if (rest > 0) store(y + i, forward_step(load(gate + i, rest), load(up + i, rest)), rest);
}

template <typename T>
void backward(const T *g, const T *gate, const T *up, T *dgate, T *dup, int64_t start, int64_t stop) {
    int64_t i = start;
    for (; i + STEP <= stop; i += STEP) {
        const Gradients here = backward_step(load(g + i), load(gate + i), load(up + i));
        store<false>(dgate + i, here.gate);
        store<false>(dup + i, here.up);
    }
    const int64_t rest = stop - i;
    if (rest > 0) {
        const Gradients here = backward_step(load(g + i, rest), load(gate + i, rest), load(up + i, rest));
        store(dgate + i, here.gate, rest);
        store(dup + i, here.up, rest);
    }
}

// run(start, stop) for parts of `count` numbers, all but the last of whole steps, so that a result's bits depend on no
// other number.
template <typename Run>
void over(int64_t count, int64_t threads, Run run) {
    parallel_for((count + STEP - 1) / STEP, STEP, threads, [=](int64_t, int64_t start, int64_t stop) {
        run(start * STEP, stop * STEP < count ? stop * STEP : count);
    });
}

}  // namespace

#define FOR_DTYPE(T, NAME)                                                                                             \
    extern "C" int silu_gate_##NAME(const SiluGateCall *call) {                                                        \
        over(call->count, call->threads, [=](int64_t start, int64_t stop) {                                            \
            forward((const T *)call->gate, (const T *)call->up, (T *)call->y, start, stop);                            \
        });                                                                                                            \
        return 0;                                                                                                      \
    }                                                                                                                  \
    extern "C" int silu_gate_backward_##NAME(const SiluGateCall *call) {                                               \
        over(call->count, call->threads, [=](int64_t start, int64_t stop) {                                            \
            backward((const T *)call->g, (const T *)call->gate, (const T *)call->up, (T *)call->dgate, (T *)call->dup, \
                     start, stop);                                                                                     \
        });                                                                                                            \
        return 0;                                                                                                      \
    }

FOR_DTYPE(float, float32)
FOR_DTYPE(BFloat16, bfloat16)
