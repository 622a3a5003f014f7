// One step of decoding: a token for each of 1 to 8 rows through all blocks of a model, and its logits.
//
//   x = x + attention(norm1(x)), then x = x + down(silu(gate(norm2(x))) * up(norm2(x))) in each block; head(norm(x))
//
// In one call, so that nothing is done between products but what they need. Every weight is read once, where its
// parameter is; keys and values are stored in the cache. Results are rounded to the model's dtype wherever the blocks'
// own modules round theirs; in between all is float32. What a row gives depends neither on what is in the other
// rows nor on how many threads there are. A file for each dtype includes this, so that two compilers share the work.

#pragma once

#include <omp.h>

#include <algorithm>

#include "attend.h"
#include "mean_square.h"
#include "quantized.h"

namespace {

// A matrix in the model's dtype, or in whole numbers (quantized.h) with their scales.
struct Matrix {
    const void *numbers;
    const BFloat16 *scales;  // null for numbers of the model's dtype
};

template <typename T>
struct Layer {
    Matrix q, k, v, o, gate, up, down;
    const T *norm1, *norm2, *q_bias, *k_bias, *v_bias, *o_bias, *q_norm, *k_norm;
    T *keys, *values;  // (rows, groups, slots + 1, head_dim)
};

struct DecodeStepCall {
    const void *layers;
    const int64_t *tokens;          // (rows)
    const int64_t *places;          // (rows): how many tokens each row of the cache holds
    const void *embedding;          // (vocab, d_model)
    const void *final_norm;         // (d_model)
    Matrix head;                    // (vocab, d_model)
    const float *cos, *sin;         // (max_seq_len, head_dim / 2)
    void *logits;                   // (rows, vocab)
    int64_t num_layers, rows, d_model, d_ff, vocab, heads, groups, head_dim, slots, interleaved;
    int64_t bits, head_bits;        // of the whole numbers of all layers and of the head: 8 or 4; 0 for none
    int64_t threads;
    double eps;
};

// --- what is done to a row ---

template <typename T>
inline void normalise(const T *x, const T *weight, T *y, int64_t width, double eps) {
    const float inv = inverse_root(x, width, eps);
    int64_t i = 0;
    for (; i + STEP <= width; i += STEP) store<false>(y + i, load(x + i) * inv * load(weight + i));
    if (i < width) store(y + i, load(x + i, width - i) * inv * load(weight + i, width - i), width - i);
}

template <typename T>
inline void rotate(T *x, const float *cos, const float *sin, int64_t half, bool interleaved) {
    for (int64_t i = 0; i < half; ++i) {
        T *first = interleaved ? x + 2 * i : x + i, *second = interleaved ? first + 1 : first + half;
        const float a = value(*first), b = value(*second);
        put(first, a * cos[i] - b * sin[i]);
        put(second, b * cos[i] + a * sin[i]);
    }
}

inline Floats silu(Floats x) { return x * sigmoid(x); }

template <typename T>
inline void silu_in_place(T *x, int64_t width) {
    int64_t i = 0;
    for (; i + STEP <= width; i += STEP) {
        const Pair here = load(x + i);
        store<false>(x + i, {silu(here.first), silu(here.second)});
    }
    if (i < width) {
        const Pair here = load(x + i, width - i);
        store(x + i, {silu(here.first), silu(here.second)}, width - i);
    }
}

template <typename T>
inline float rounded(float v) {
    T to;
    put(&to, v);
    return value(to);
}

// --- what is shared among threads ---

struct Span {
    int64_t start, stop;
};

// A part of `count` columns, in whole cache lines.
inline Span span(int64_t count, int64_t part, int64_t parts) {
    const int64_t blocks = (count + 31) / 32;
    const auto edge = [=](int64_t at) { return blocks * at / parts * 32 < count ? blocks * at / parts * 32 : count; };
    return {edge(part), edge(part + 1)};
}

// What becomes of the columns of x W^T + b in y: they are written, added to what is there, or multiply it.
enum Into { WRITE, ADD, MULTIPLY };

// ROWS rows that are about to be multiplied with weights of a kind: T, Int8 or Int4.
template <int ROWS, typename Kind, typename T>
struct Input {
    Rows x;
    Input(const T *from, int64_t in, const Rows &room) : x(room) {
        x.groups = groups_of(in);
        x.in = x.groups * GROUP;
        for (int r = 0; r < ROWS; ++r) quantize_row(from + r * in, in, x, r, Kind::ZERO);
    }
    template <typename Run>
    void multiply(const Matrix &w, Span columns, Run run) const {
        multiply_columns<ROWS, Kind>(x, 0, (const uint8_t *)w.numbers, w.scales, columns.start, columns.stop, run);
    }
};

template <int ROWS, typename T>
struct Input<ROWS, T, T> {
    const T *x;
    int64_t in;
    Input(const T *from, int64_t in, const Rows &) : x(from), in(in) {}
    template <typename Run>
    void multiply(const Matrix &w, Span columns, Run run) const {
        multiply_weight<ROWS>(x, (const T *)w.numbers + columns.start * in, in, columns.stop - columns.start,
                              [=](int r, int64_t c, float sum) { run(r, columns.start + c, &sum, 1); });
    }
};

template <int ROWS, Into INTO, typename Kind, typename T>
__attribute__((noinline)) void project(const Input<ROWS, Kind, T> &x, const Matrix &w, const T *bias, Span columns,
                                       T *y, int64_t out) {
    x.multiply(w, columns, [=](int r, int64_t c, const float *sums, int64_t count) {
        T *to = y + r * out + c;
        for (int64_t i = 0; i < count; ++i) {
            float sum = bias ? sums[i] + value(bias[c + i]) : sums[i];
            if (INTO == ADD) sum = value(to[i]) + rounded<T>(sum);
            if (INTO == MULTIPLY) sum = value(to[i]) * rounded<T>(sum);
            put(to + i, sum);
        }
    });
}

template <typename T>
struct Scratch {
    T *x, *q, *k, *v, *attended, *hidden;  // of all threads: (rows, ...)
    T *normed;                             // of one thread
    Rows whole;
    float *scores;
};

template <int ROWS, typename T>
inline void normalise_rows(const T *x, const T *weight, T *y, const DecodeStepCall &call) {
    for (int r = 0; r < ROWS; ++r)
        normalise(x + r * call.d_model, weight, y + r * call.d_model, call.d_model, call.eps);
}

// Queries and keys of one group of heads in one row: normalised, rotated, stored; then attention.
template <typename T>
__attribute__((noinline)) void attend_group(const Layer<T> &layer, const DecodeStepCall &call, const Scratch<T> &at,
                                            int64_t row, int64_t group) {
    const int64_t dim = call.head_dim, queries = call.heads / call.groups, place = call.places[row];
    const int64_t head = (row * call.groups + group) * queries, cached = (row * call.groups + group) * (call.slots + 1);
    const float *cos = call.cos + place * dim / 2, *sin = call.sin + place * dim / 2;
    T *q = at.q + head * dim, *k = at.k + (row * call.groups + group) * dim;
    const T *v = at.v + (row * call.groups + group) * dim;
    for (int64_t i = 0; i < queries; ++i) {
        if (layer.q_norm) normalise(q + i * dim, layer.q_norm, q + i * dim, dim, call.eps);
        rotate(q + i * dim, cos, sin, dim / 2, call.interleaved);
    }
    if (layer.k_norm) normalise(k, layer.k_norm, k, dim, call.eps);
    rotate(k, cos, sin, dim / 2, call.interleaved);
    T *keys = layer.keys + cached * dim, *values = layer.values + cached * dim;
    memcpy(keys + place % call.slots * dim, k, dim * sizeof(T));
    memcpy(values + place % call.slots * dim, v, dim * sizeof(T));
    const int64_t held = place < call.slots ? place + 1 : call.slots;
    for (int64_t i = 0; i < queries; i += MOST_ROWS)
        with_rows(queries - i < MOST_ROWS ? queries - i : MOST_ROWS, [&](auto n) {
            attend<n.value>(q + i * dim, keys, dim, values, dim, nullptr, at.attended + (head + i) * dim, held, dim,
                            at.scores);
        });
}

template <int ROWS, typename Kind, typename T>
inline void block(const Layer<T> &layer, const DecodeStepCall &call, const Scratch<T> &at, int64_t part,
                  int64_t parts) {
    using In = Input<ROWS, Kind, T>;
    const int64_t d_model = call.d_model, d_ff = call.d_ff, width = call.heads * call.head_dim;
    const int64_t kv_width = call.groups * call.head_dim, groups = ROWS * call.groups;
    const T *const none = nullptr;
    const Span kv = span(kv_width, part, parts), model = span(d_model, part, parts), inner = span(d_ff, part, parts);
    normalise_rows<ROWS>((const T *)at.x, layer.norm1, at.normed, call);
    const In to_attend(at.normed, d_model, at.whole);
    project<ROWS, WRITE>(to_attend, layer.q, layer.q_bias, span(width, part, parts), at.q, width);
    project<ROWS, WRITE>(to_attend, layer.k, layer.k_bias, kv, at.k, kv_width);
    project<ROWS, WRITE>(to_attend, layer.v, layer.v_bias, kv, at.v, kv_width);
#pragma omp barrier
    for (int64_t i = groups * part / parts; i < groups * (part + 1) / parts; ++i)
        attend_group(layer, call, at, i / call.groups, i % call.groups);
#pragma omp barrier
    project<ROWS, ADD>(In(at.attended, width, at.whole), layer.o, layer.o_bias, model, at.x, d_model);
#pragma omp barrier
    normalise_rows<ROWS>((const T *)at.x, layer.norm2, at.normed, call);
    const In to_widen(at.normed, d_model, at.whole);
    project<ROWS, WRITE>(to_widen, layer.gate, none, inner, at.hidden, d_ff);
    for (int r = 0; r < ROWS; ++r) silu_in_place(at.hidden + r * d_ff + inner.start, inner.stop - inner.start);
    project<ROWS, MULTIPLY>(to_widen, layer.up, none, inner, at.hidden, d_ff);
#pragma omp barrier
    project<ROWS, ADD>(In(at.hidden, d_ff, at.whole), layer.down, none, model, at.x, d_model);
#pragma omp barrier
}

// run(T()), run(Int8()) or run(Int4()).
template <typename T, typename Run>
inline void with_kind(int64_t bits, Run run) {
    bits == 8 ? run(Int8()) : bits == 4 ? run(Int4()) : run(T());
}

template <typename T>
int decode_step(const DecodeStepCall &call) {
    const int64_t width = call.heads * call.head_dim, kv_width = call.groups * call.head_dim;
    for (int64_t row = 0; row < call.rows; ++row)
        if (call.tokens[row] < 0 || call.tokens[row] >= call.vocab) return 2;
    const Room<T> x(call.rows * call.d_model), q(call.rows * width), k(call.rows * kv_width), v(call.rows * kv_width);
    const Room<T> attended(call.rows * width), hidden(call.rows * call.d_ff);
    const Room<T> normed(call.threads * call.rows * call.d_model);
    const int64_t scores_room = MOST_ROWS * call.slots + LANES;
    const Room<float> scores(call.threads * scores_room);
    const int64_t widest = std::max({call.d_model, call.d_ff, width});
    const int64_t groups = call.bits || call.head_bits ? call.rows * groups_of(widest) : 0;  // for each thread
    const Room<int8_t> numbers(call.threads * groups * GROUP);
    const Room<float> scales(call.threads * groups);
    const Room<int32_t> sums(call.threads * groups);
    const bool room = x.start && q.start && k.start && v.start && attended.start && hidden.start && normed.start;
    if (!room || !scores.start || !numbers.start || !scales.start || !sums.start) return 1;
    for (int64_t row = 0; row < call.rows; ++row)
        memcpy(x.start + row * call.d_model, (const T *)call.embedding + call.tokens[row] * call.d_model,
               call.d_model * sizeof(T));
    with_rows(call.rows, [&](auto rows) {
#pragma omp parallel num_threads(call.threads)
        {
            const int64_t part = omp_get_thread_num(), parts = omp_get_num_threads();
            T *const mine = normed.start + part * call.rows * call.d_model;
            const Rows whole = {numbers.start + part * groups * GROUP, scales.start + part * groups,
                                sums.start + part * groups, 0, 0};
            const Scratch<T> at = {x.start,        q.start,      k.start, v.start,
                                   attended.start, hidden.start, mine,    whole, scores.start + part * scores_room};
            with_kind<T>(call.bits, [&](auto kind) {
                for (int64_t i = 0; i < call.num_layers; ++i)
                    block<rows.value, decltype(kind)>(((const Layer<T> *)call.layers)[i], call, at, part, parts);
            });
            normalise_rows<rows.value>((const T *)x.start, (const T *)call.final_norm, mine, call);
            with_kind<T>(call.head_bits, [&](auto kind) {
                const Input<rows.value, decltype(kind), T> to_read(mine, call.d_model, whole);
                project<rows.value, WRITE>(to_read, call.head, (const T *)nullptr, span(call.vocab, part, parts),
                                           (T *)call.logits, call.vocab);
            });
        }
    });
    return 0;
}

}  // namespace
