// y = x W^T + b with W in integers of 8 or 4 bits (ops/quantized.py); x is rounded to 8-bit integers on the way.
//
// Products and their sums within a group of 32 are exact; scales and sums of groups are float32, and a result is
// rounded to its dtype once, last. What a row gives depends neither on what is in the other rows, nor on how many
// they are, nor on the threads. Built by build.py.

#include <omp.h>

#include "quantized.h"

namespace {

constexpr int64_t IN_CACHE = 1 << 18;  // numbers of x that are multiplied with all columns before the next are

template <typename Kind, typename T>
int quantized_linear(const QuantizedLinearCall &call) {
    const int64_t groups = groups_of(call.in_features), in = groups * GROUP,
                  blocks = (call.out_features + COLUMNS - 1) / COLUMNS;
    const Buffer<int8_t> numbers(call.rows * in);
    const Buffer<float> scales(call.rows * groups);
    const Buffer<int32_t> sums(call.rows * groups);
    if (!numbers.start || !scales.start || !sums.start) return 1;
    const Rows x = {numbers.start, scales.start, sums.start, in, groups};
    const T *from = (const T *)call.x, *bias = (const T *)call.bias;
    const int64_t threads = threads_for(blocks, call.rows * in, call.threads);
    const int64_t together = IN_CACHE / in / MAX_ROWS * MAX_ROWS, step = together < MAX_ROWS ? MAX_ROWS : together;
#pragma omp parallel num_threads(threads)
    {
        const int64_t part = omp_get_thread_num(), parts = omp_get_num_threads();
        for (int64_t row = call.rows * part / parts; row < call.rows * (part + 1) / parts; ++row)
            quantize_row(from + row * call.in_features, call.in_features, x, row, Kind::ZERO);
#pragma omp barrier
        const int64_t start = blocks * part / parts, stop = blocks * (part + 1) / parts;
        for (int64_t chunk = 0; chunk < call.rows; chunk += step) {
            const int64_t end = chunk + step < call.rows ? chunk + step : call.rows;
            for (int64_t block = start; block < stop; ++block)
                for (int64_t row = chunk; row < end; row += MAX_ROWS)
                    with_rows(end - row < MAX_ROWS ? end - row : MAX_ROWS, [&](auto n) {
                        const int64_t last = (block + 1) * COLUMNS;
                        multiply_columns<n.value, Kind>(
                            x, row, (const uint8_t *)call.weight, (const BFloat16 *)call.scale, block * COLUMNS,
                            last < call.out_features ? last : call.out_features,
                            [&](int r, int64_t c, const float *products, int64_t count) {
                                T *to = (T *)call.y + (row + r) * call.out_features + c;
                                for (int64_t i = 0; i < count; ++i)
                                    put(to + i, bias ? products[i] + value(bias[c + i]) : products[i]);
                            });
                    });
        }
    }
    return 0;
}

}  // namespace

// What Python calls: 0 is given, or 1 where memory ran out, with nothing done.

#define FOR(KIND, T, NAME)                                                                                             \
    extern "C" int quantized_linear_##NAME(const QuantizedLinearCall *call) { return quantized_linear<KIND, T>(*call); }

FOR(Int8, float, int8_float32)
FOR(Int8, BFloat16, int8_bfloat16)
FOR(Int4, float, int4_float32)
FOR(Int4, BFloat16, int4_bfloat16)
