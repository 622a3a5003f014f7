// Kernels against loops that anyone can check, without Python: for processors that are emulated (tests/isa.py).
// It prints what is wrong, and gives the number of mistakes.

#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "calls.h"

extern "C" {
int product_float32(const ProductCall *);
int product_bfloat16(const ProductCall *);
int few_rows_float32(const FewRowsCall *);
int largest_float32(const LargestCall *);
int rms_norm_float32_float32(const RmsNormCall *);
int silu_gate_float32(const SiluGateCall *);
int one_query_float32(const OneQueryCall *);
int attention_float32(const AttentionCall *);
}

namespace {

typedef std::vector<float> Numbers;
int mistakes = 0;

Numbers some(int64_t count, uint32_t seed) {
    Numbers numbers(count);
    for (float &number : numbers) {
        seed = seed * 1664525 + 1013904223;
        number = (float)(seed >> 8) / (1 << 24) * 2 - 1;
    }
    return numbers;
}

void compare(const char *what, const Numbers &found, const std::vector<double> &expected, double tolerance) {
    double worst = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
        const double error = std::fabs(found[i] - expected[i]);
        if (!(error <= worst)) worst = error;  // NaN too
    }
    if (worst <= tolerance) return;
    std::printf("%s: the largest error is %g\n", what, worst);
    ++mistakes;
}

uint16_t upper_half(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits >> 16;
}

float from_upper_half(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

void product(int64_t rows, int64_t depth, int64_t columns, bool turned, int64_t threads) {
    Numbers a = some(rows * depth, 1), b = some(depth * columns, 2), c(rows * columns);
    std::vector<uint16_t> narrow_a, narrow_b;
    for (float &x : a) narrow_a.push_back(upper_half(x)), x = from_upper_half(narrow_a.back());
    for (float &x : b) narrow_b.push_back(upper_half(x)), x = from_upper_half(narrow_b.back());
    ProductCall call = {a.data(),   b.data(),     c.data(), rows, columns, depth,
                        {depth, 1}, {columns, 1}, columns,  0,    threads};
    if (turned) {  // what lies in memory is taken for the transposes
        call.a_strides[0] = 1, call.a_strides[1] = rows;
        call.b_strides[0] = 1, call.b_strides[1] = depth;
    }
    std::vector<double> expected(rows * columns);
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j)
            for (int64_t k = 0; k < depth; ++k)
                expected[i * columns + j] += (double)a[i * call.a_strides[0] + k * call.a_strides[1]] *
                                             b[k * call.b_strides[0] + j * call.b_strides[1]];
    product_float32(&call);
    compare("product_float32", c, expected, 1e-4);
    call.a = narrow_a.data(), call.b = narrow_b.data();
    product_bfloat16(&call);
    compare("product_bfloat16", c, expected, 1e-4);
}

void few_rows(int64_t rows, int64_t in, int64_t out) {
    const Numbers x = some(rows * in, 3), weight = some(out * in, 4), bias = some(out, 5);
    Numbers y(rows * out);
    std::vector<double> expected(rows * out);
    for (int64_t i = 0; i < rows * out; ++i) {
        expected[i] = bias[i % out];
        for (int64_t k = 0; k < in; ++k) expected[i] += (double)x[i / out * in + k] * weight[i % out * in + k];
    }
    const FewRowsCall call = {x.data(), weight.data(), bias.data(), y.data(), rows, in, out, 2};
    few_rows_float32(&call);
    compare("few_rows_float32", y, expected, 1e-4);
}

void largest(int64_t width) {
    const Numbers x = some(3 * width, 6);
    int64_t places[3];
    const LargestCall call = {x.data(), places, 3, width, 2};
    largest_float32(&call);
    for (int64_t row = 0; row < 3; ++row)
        for (int64_t i = 0; i < width; ++i)
            if (x[row * width + i] > x[row * width + places[row]])
                return std::puts("largest_float32"), void(++mistakes);
}

void rms_norm(int64_t rows, int64_t width) {
    const Numbers x = some(rows * width, 7), weight = some(width, 8);
    Numbers y(rows * width);
    std::vector<double> expected(rows * width);
    for (int64_t row = 0; row < rows; ++row) {
        double sum = 0;
        for (int64_t i = 0; i < width; ++i) sum += (double)x[row * width + i] * x[row * width + i];
        for (int64_t i = 0; i < width; ++i)
            expected[row * width + i] = weight[i] * x[row * width + i] / std::sqrt(sum / (double)width + 1e-6);
    }
    const RmsNormCall call = {x.data(), weight.data(), nullptr, y.data(), nullptr, nullptr, rows, width, 1e-6, 2};
    rms_norm_float32_float32(&call);
    compare("rms_norm_float32_float32", y, expected, 1e-5);
}

void silu_gate(int64_t count) {
    const Numbers gate = some(count, 9), up = some(count, 10);
    Numbers y(count);
    std::vector<double> expected(count);
    for (int64_t i = 0; i < count; ++i) expected[i] = gate[i] / (1 + std::exp(-(double)gate[i])) * up[i];
    const SiluGateCall call = {gate.data(), up.data(), nullptr, y.data(), nullptr, nullptr, count, 2};
    silu_gate_float32(&call);
    compare("silu_gate_float32", y, expected, 1e-6);
}

void attention(int64_t queries, int64_t keys, int64_t dim) {
    const Numbers q = some(queries * dim, 11), k = some(keys * dim, 12), v = some(keys * dim, 13);
    Numbers y(queries * dim);
    std::vector<double> expected(queries * dim);
    for (int64_t i = 0; i < queries; ++i) {
        double sum = 0;
        for (int64_t key = 0; key <= i + keys - queries; ++key) {
            double score = 0;
            for (int64_t d = 0; d < dim; ++d) score += (double)q[i * dim + d] * k[key * dim + d];
            const double weight = std::exp(score / std::sqrt((double)dim));
            sum += weight;
            for (int64_t d = 0; d < dim; ++d) expected[i * dim + d] += weight * v[key * dim + d];
        }
        for (int64_t d = 0; d < dim; ++d) expected[i * dim + d] /= sum;
    }
    AttentionCall call = {};
    call.q = q.data(), call.k = k.data(), call.v = v.data(), call.y = y.data();
    call.batch = call.heads = call.groups = 1, call.queries = queries, call.keys = keys, call.head_dim = dim;
    call.q_strides[2] = call.k_strides[2] = call.v_strides[2] = call.y_strides[2] = dim;
    call.causal = 1, call.threads = 2;
    attention_float32(&call);
    compare("attention_float32", y, expected, 1e-5);
    if (queries > 1) return;
    const OneQueryCall one = {q.data(), k.data(), v.data(), nullptr,     y.data(),    1,      1,
                              1,        keys,     dim,      {0, 0, dim}, {0, 0, dim}, {0, 0}, 2};
    one_query_float32(&one);
    compare("one_query_float32", y, expected, 1e-5);
}

}  // namespace

int main() {
    for (const int64_t rows : {1, 5, 6, 7, 13, 29})
        for (const int64_t columns : {1, 8, 33, 100})
            for (const int64_t depth : {1, 16, 31, 257, 600})
                for (const bool turned : {false, true}) product(rows, depth, columns, turned, 2);
    for (int64_t rows = 1; rows <= 8; ++rows) few_rows(rows, 77, 35);
    for (const int64_t width : {1, 7, 64, 5000}) largest(width), rms_norm(3, width), silu_gate(width);
    for (const int64_t queries : {1, 5, 70}) attention(queries, 70, 32);
    std::printf("%d mistakes\n", mistakes);
    return mistakes;
}
