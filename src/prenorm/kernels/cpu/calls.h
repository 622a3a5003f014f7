// What Python and C++ agree on: the struct that each call hands over, and sizes that both rely on.
//
// header.py reads this file, so it is written plainly: pointers, int64_t, double and arrays of them, or a struct from
// above. A library reports the sizes of all structs (library.cpp); native.py compares them when it loads it.

#pragma once

#include <cstdint>

constexpr int64_t MAX_ROWS = 8;        // that a product with a large weight takes at a time
constexpr int64_t MAX_HEAD_DIM = 256;  // of a head, in attention of many queries
constexpr int64_t QUANT_GROUP = 32;    // numbers that share a scale
constexpr int64_t QUANT_ROWS = 16;     // rows of a weight that lie in one block
constexpr int64_t QUANT_QUAD = 4;      // neighbours that one instruction multiplies

// a (rows, depth), b (depth, columns), c (rows, columns) with columns side by side; strides of rows and of columns.
struct MatmulCall {
    const void *a, *b;
    float *c;
    int64_t rows, columns, depth, a_strides[2], b_strides[2], c_stride, add, threads;
};

struct SkinnyLinearCall {
    const void *x, *weight, *bias;  // bias: null for none
    void *y;
    int64_t rows, in_features, out_features, threads;
};

struct QuantizedLinearCall {
    const void *x;       // (rows, in)
    const void *weight;  // (blocks, groups, bytes)
    const void *scale;   // (blocks, groups, 16), bfloat16
    const void *bias;    // (out); null for none
    void *y;             // (rows, out)
    int64_t rows, in_features, out_features, threads;
};

struct ArgmaxCall {
    const void *x;
    int64_t *indices;
    int64_t rows, width, threads;
};

struct CrossEntropyCall {
    void *logits;
    const int64_t *targets;
    float *losses;
    int64_t rows, width, ignored, gradient, threads;
};

struct RmsNormCall {
    const void *x, *weight, *g;
    void *y, *dx, *dw;  // null if not wanted: y in backward, dx and dw in forward, one of these two in backward
    int64_t rows, width;
    double eps;
    int64_t threads;
};

// x (batch, heads, seq, 2 half), cos and sin (batch, heads, seq, half): strides of all but the last, which is 1.
struct RopeCall {
    const void *x;
    void *y;
    const float *cos, *sin;
    int64_t batch, heads, seq, half, x_strides[3], y_strides[3], cos_strides[3], sin_strides[3];
    int64_t interleaved, backwards, threads;
};

struct SiluGateCall {
    const void *gate, *up, *g;  // g, dgate and dup are null in forward, y is in backward
    void *y, *dgate, *dup;
    int64_t count, threads;
};

// Strides are in numbers.
struct DecodeAttentionCall {
    const void *q, *k, *v, *mask;  // mask: bytes, (batch or 1, keys), 1 = may attend; null for none
    void *y;                       // q and y are (batch, heads, head_dim), head_dim a multiple of 32
    int64_t batch, num_heads, num_kv_heads, keys, head_dim, k_strides[3], v_strides[3], mask_strides[2], threads;
};

// head_dim: a multiple of 16, at most MAX_HEAD_DIM.
struct AttentionCall {
    const void *q, *k, *v;  // (batch, heads or kv_heads, seq, head_dim)
    const uint8_t *mask;    // (batch, heads, queries, keys), 1 = may attend, its last stride 1; null for none
    void *y;
    float *sums;    // (batch, heads, queries, 2): see Sums; null where they are not wanted
    const void *g;  // backward: the gradient of y, and those of q, k and v: dq, or dk and dv, may be null
    void *dq, *dk, *dv;
    int64_t batch, num_heads, num_kv_heads, queries, keys, head_dim;
    int64_t q_strides[3], k_strides[3], v_strides[3], mask_strides[3], y_strides[3], g_strides[3];  // in numbers
    int64_t dq_strides[3], dk_strides[3], dv_strides[3];
    int64_t causal, window;  // window: 0 for none
    int64_t threads;
};

// A matrix in the model's dtype, or in integers (quantized.h) with their scales; null where there are none.
struct MatrixPointers {
    const void *numbers, *scales;
};

struct LayerPointers {
    MatrixPointers q, k, v, o, gate, up, down;
    const void *norm1, *norm2, *q_bias, *k_bias, *v_bias, *o_bias, *q_norm, *k_norm;
    void *keys, *values;  // (rows, kv_heads, slots + 1, head_dim)
};

struct DecodeStepCall {
    const void *layers;      // LayerPointers, num_layers of them
    const int64_t *tokens;   // (rows, seq)
    const int64_t *lengths;  // (rows): how many tokens each row of the cache holds
    const void *embedding;   // (vocab, d_model)
    const void *final_norm;  // (d_model)
    MatrixPointers head;     // (vocab, d_model)
    const float *cos, *sin;  // (rows or 1, seq, head_dim / 2)
    void *logits;            // (rows, vocab)
    int64_t num_layers, rows, seq, d_model, d_ff, vocab, num_heads, num_kv_heads, head_dim, slots, interleaved;
    int64_t bits, head_bits;  // of the integers of all layers and of the head: 8 or 4; 0 for none
    int64_t angles_stride;    // from row to row of cos and sin: 0 where all rows have the same positions
    int64_t threads;
    double eps;
};
