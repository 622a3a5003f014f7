// One step of decoding: the next tokens of 1 to 8 rows through all blocks of a model, and the logits of the last ones.
//
//   x = x + attention(norm1(x)), then x = x + down(silu(gate(norm2(x))) * up(norm2(x))) in each block; head(norm(x))
//
// In one call, so that nothing is done between products but what they need. Every weight is read once, where its
// parameter is; keys and values are stored in the cache. Results are rounded to the model's dtype wherever the blocks'
// own modules round theirs; in between all is float32. What a row gives depends neither on what is in the other
// rows nor on how many threads there are. A file for each dtype includes this, so that two compilers share the work.
//
// Several tokens of a row, as a short prompt has them, go through the blocks eight at a time, as eight rows do: those
// of a row one after the other, each with the keys of those before it.

#pragma once

#include <omp.h>

#include <algorithm>

#include "decode_attention.h"
#include "mean_square.h"
#include "quantized.h"

namespace {

// LayerPointers, with the model's dtype.
template <typename T>
struct Layer {
    MatrixPointers q, k, v, o, gate, up, down;
    const T *norm1, *norm2, *q_bias, *k_bias, *v_bias, *o_bias, *q_norm, *k_norm;
    T *keys, *values;
    explicit Layer(const LayerPointers &from)
        : q(from.q),
          k(from.k),
          v(from.v),
          o(from.o),
          gate(from.gate),
          up(from.up),
          down(from.down),
          norm1((const T *)from.norm1),
          norm2((const T *)from.norm2),
          q_bias((const T *)from.q_bias),
          k_bias((const T *)from.k_bias),
          v_bias((const T *)from.v_bias),
          o_bias((const T *)from.o_bias),
          q_norm((const T *)from.q_norm),
          k_norm((const T *)from.k_norm),
          keys((T *)from.keys),
          values((T *)from.values) {}
};

// --- what is done to a row ---

template <typename T>
inline void normalize(const T *x, const T *weight, T *y, int64_t width, double eps) {
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
    void multiply(const MatrixPointers &w, Span columns, Run run) const {
        multiply_columns<ROWS, Kind>(x, 0, (const uint8_t *)w.numbers, (const BFloat16 *)w.scales, columns.start,
                                     columns.stop, run);
    }
};

template <int ROWS, typename T>
struct Input<ROWS, T, T> {
    const T *x;
    int64_t in;
    Input(const T *from, int64_t in, const Rows &) : x(from), in(in) {}
    template <typename Run>
    void multiply(const MatrixPointers &w, Span columns, Run run) const {
        multiply_weight<ROWS>(x, (const T *)w.numbers + columns.start * in, in, columns.stop - columns.start,
                              [=](int r, int64_t c, float sum) { run(r, columns.start + c, &sum, 1); });
    }
};

template <int ROWS, Into INTO, typename Kind, typename T>
__attribute__((noinline)) void project(const Input<ROWS, Kind, T> &x, const MatrixPointers &w, const T *bias,
                                       Span columns, T *y, int64_t out) {
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
    int64_t first;  // which token the first row is
};

template <int ROWS, typename T>
inline void normalize_rows(const T *x, const T *weight, T *y, const DecodeStepCall &call) {
    for (int r = 0; r < ROWS; ++r)
        normalize(x + r * call.d_model, weight, y + r * call.d_model, call.d_model, call.eps);
}

// One of the tokens that go through the blocks together; all are counted through the rows, then through time.
struct Token {
    int64_t row, time, position;
};

inline Token token_at(const DecodeStepCall &call, int64_t count) {
    const int64_t row = count % call.rows, time = count / call.rows;
    return {row, time, call.lengths[row] + time};
}

// Queries and keys of one group of heads of token `i`: normalized, rotated; keys and values stored.
template <typename T>
__attribute__((noinline)) void store_group(const Layer<T> &layer, const DecodeStepCall &call, const Scratch<T> &at,
                                           int64_t i, int64_t group) {
    const int64_t dim = call.head_dim, queries = call.num_heads / call.num_kv_heads;
    const Token token = token_at(call, at.first + i);
    const int64_t angles = token.row * call.angles_stride + token.time * dim / 2;
    const float *cos = call.cos + angles, *sin = call.sin + angles;
    T *q = at.q + (i * call.num_kv_heads + group) * queries * dim, *k = at.k + (i * call.num_kv_heads + group) * dim;
    const T *v = at.v + (i * call.num_kv_heads + group) * dim;
    for (int64_t j = 0; j < queries; ++j) {
        if (layer.q_norm) normalize(q + j * dim, layer.q_norm, q + j * dim, dim, call.eps);
        rotate(q + j * dim, cos, sin, dim / 2, call.interleaved);
    }
    if (layer.k_norm) normalize(k, layer.k_norm, k, dim, call.eps);
    rotate(k, cos, sin, dim / 2, call.interleaved);
    const int64_t slot = (token.row * call.num_kv_heads + group) * (call.slots + 1) + token.position % call.slots;
    memcpy(layer.keys + slot * dim, k, dim * sizeof(T));
    memcpy(layer.values + slot * dim, v, dim * sizeof(T));
}

template <typename T>
__attribute__((noinline)) void attend_group(const Layer<T> &layer, const DecodeStepCall &call, const Scratch<T> &at,
                                            int64_t i, int64_t group) {
    const int64_t dim = call.head_dim, queries = call.num_heads / call.num_kv_heads;
    const Token token = token_at(call, at.first + i);
    const int64_t head = (i * call.num_kv_heads + group) * queries;
    const int64_t cached = (token.row * call.num_kv_heads + group) * (call.slots + 1) * dim;
    const int64_t held = token.position < call.slots ? token.position + 1 : call.slots;
    for (int64_t j = 0; j < queries; j += MAX_ROWS)
        with_rows(queries - j < MAX_ROWS ? queries - j : MAX_ROWS, [&](auto n) {
            attend<n.value>(at.q + (head + j) * dim, layer.keys + cached, dim, layer.values + cached, dim, nullptr,
                            at.attended + (head + j) * dim, held, dim, at.scores);
        });
}

template <int ROWS, typename Kind, typename T>
inline void block(const Layer<T> &layer, const DecodeStepCall &call, const Scratch<T> &at, int64_t part,
                  int64_t parts) {
    using In = Input<ROWS, Kind, T>;
    const int64_t d_model = call.d_model, d_ff = call.d_ff, width = call.num_heads * call.head_dim;
    const int64_t kv_width = call.num_kv_heads * call.head_dim, groups = ROWS * call.num_kv_heads;
    const T *const none = nullptr;
    const Span kv = span(kv_width, part, parts), model = span(d_model, part, parts), inner = span(d_ff, part, parts);
    normalize_rows<ROWS>((const T *)at.x, layer.norm1, at.normed, call);
    const In to_attend(at.normed, d_model, at.whole);
    project<ROWS, WRITE>(to_attend, layer.q, layer.q_bias, span(width, part, parts), at.q, width);
    project<ROWS, WRITE>(to_attend, layer.k, layer.k_bias, kv, at.k, kv_width);
    project<ROWS, WRITE>(to_attend, layer.v, layer.v_bias, kv, at.v, kv_width);
#pragma omp barrier
    const int64_t first = groups * part / parts, stop = groups * (part + 1) / parts;
    for (int64_t i = first; i < stop; ++i) store_group(layer, call, at, i / call.num_kv_heads, i % call.num_kv_heads);
    if (call.seq > 1) {  // a token attends to those of its row that another thread stored
#pragma omp barrier
    }
    for (int64_t i = first; i < stop; ++i) attend_group(layer, call, at, i / call.num_kv_heads, i % call.num_kv_heads);
#pragma omp barrier
    project<ROWS, ADD>(In(at.attended, width, at.whole), layer.o, layer.o_bias, model, at.x, d_model);
#pragma omp barrier
    normalize_rows<ROWS>((const T *)at.x, layer.norm2, at.normed, call);
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
    const int64_t width = call.num_heads * call.head_dim, kv_width = call.num_kv_heads * call.head_dim;
    const int64_t tokens = call.rows * call.seq, most = tokens < MAX_ROWS ? tokens : MAX_ROWS;
    for (int64_t i = 0; i < tokens; ++i)
        if (call.tokens[i] < 0 || call.tokens[i] >= call.vocab) return 2;
    const Buffer<T> x(most * call.d_model), q(most * width), k(most * kv_width), v(most * kv_width);
    const Buffer<T> attended(most * width), hidden(most * call.d_ff);
    const Buffer<T> normed(call.threads * most * call.d_model);
    const int64_t scores_room = MAX_ROWS * call.slots + LANES;
    const Buffer<float> scores(call.threads * scores_room);
    const int64_t widest = std::max({call.d_model, call.d_ff, width});
    const int64_t groups = call.bits || call.head_bits ? most * groups_of(widest) : 0;  // for each thread
    const Buffer<int8_t> numbers(call.threads * groups * GROUP);
    const Buffer<float> scales(call.threads * groups);
    const Buffer<int32_t> sums(call.threads * groups);
    const bool room = x.start && q.start && k.start && v.start && attended.start && hidden.start && normed.start;
    if (!room || !scores.start || !numbers.start || !scales.start || !sums.start) return 1;
#pragma omp parallel num_threads(call.threads)
    {
        const int64_t part = omp_get_thread_num(), parts = omp_get_num_threads();
        T *const mine = normed.start + part * most * call.d_model;
        const Rows whole = {numbers.start + part * groups * GROUP, scales.start + part * groups,
                            sums.start + part * groups, 0, 0};
        Scratch<T> at = {x.start, q.start,        k.start,
                         v.start, attended.start, hidden.start,
                         mine,    whole,          scores.start + part * scores_room,
                         0};
        int64_t count = (tokens - 1) % MAX_ROWS + 1;  // fewer at first, so that the last of all rows come together
        for (; at.first < tokens; at.first += count, count = MAX_ROWS) {
#pragma omp single
            for (int64_t i = 0; i < count; ++i) {
                const int64_t row = (at.first + i) % call.rows, time = (at.first + i) / call.rows;
                const T *from = (const T *)call.embedding + call.tokens[row * call.seq + time] * call.d_model;
                memcpy(x.start + i * call.d_model, from, call.d_model * sizeof(T));
            }
            with_rows(count, [&](auto rows) {
                with_kind<T>(call.bits, [&](auto kind) {
                    for (int64_t i = 0; i < call.num_layers; ++i)
                        block<rows.value, decltype(kind)>(Layer<T>(((const LayerPointers *)call.layers)[i]), call, at,
                                                          part, parts);
                });
            });
        }
        const T *const last = x.start + (most - call.rows) * call.d_model;
        with_rows(call.rows, [&](auto rows) {
            normalize_rows<rows.value>(last, (const T *)call.final_norm, mine, call);
            with_kind<T>(call.head_bits, [&](auto kind) {
                const Input<rows.value, decltype(kind), T> to_read(mine, call.d_model, whole);
                project<rows.value, WRITE>(to_read, call.head, (const T *)nullptr, span(call.vocab, part, parts),
                                           (T *)call.logits, call.vocab);
            });
        });
    }
    return 0;
}

}  // namespace
