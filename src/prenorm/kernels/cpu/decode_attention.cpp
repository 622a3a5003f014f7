// Attention of one query a head to many keys, as in decoding: y = softmax(q K^T / sqrt(head_dim)) V.
//
// The heads of a group are rows beside each other, so that its keys and values are read once, where the cache has
// them. q, K, V and y have one dtype; scores, softmax and sums are float32, and a result is rounded once, last. A
// query that may attend to nothing gives zeros. Source: Vaswani et al. 2017, arXiv:1706.03762. Built by build.py.

#include "decode_attention.h"

namespace {

template <typename T>
struct Heads {
    const T *start;
    int64_t batch, head, seq;  // strides, in numbers
    const T *at(int64_t b, int64_t h) const { return start + b * batch + h * head; }
};

template <typename T>
int decode_attention(const DecodeAttentionCall &call) {
    const Heads<T> k = {(const T *)call.k, call.k_strides[0], call.k_strides[1], call.k_strides[2]};
    const Heads<T> v = {(const T *)call.v, call.v_strides[0], call.v_strides[1], call.v_strides[2]};
    const int64_t rows = call.num_heads / call.num_kv_heads, parts = call.batch * call.num_kv_heads;
    const int64_t width = 2 * call.keys * call.head_dim, threads = threads_for(parts, width, call.threads);
    const int64_t room = (rows < MAX_ROWS ? rows : MAX_ROWS) * call.keys + LANES;
    const Buffer<float> scores(threads * room);
    const Buffer<uint8_t> masks(call.mask ? threads * call.keys : 0);
    if (!scores.start || !masks.start) return 1;
    parallel_for(parts, width, threads, [=, &call, &scores, &masks](int64_t part, int64_t start, int64_t stop) {
        for (int64_t at = start; at < stop; ++at) {
            const int64_t b = at / call.num_kv_heads, group = at % call.num_kv_heads;
            uint8_t *allowed = call.mask ? masks.start + part * call.keys : nullptr;
            for (int64_t key = 0; allowed && key < call.keys; ++key)
                allowed[key] = ((const uint8_t *)call.mask)[b * call.mask_strides[0] + key * call.mask_strides[1]];
            for (int64_t row = 0; row < rows; row += MAX_ROWS) {
                const int64_t offset = ((b * call.num_kv_heads + group) * rows + row) * call.head_dim;
                with_rows(rows - row < MAX_ROWS ? rows - row : MAX_ROWS, [&](auto n) {
                    attend<n.value>((const T *)call.q + offset, k.at(b, group), k.seq, v.at(b, group), v.seq, allowed,
                                    (T *)call.y + offset, call.keys, call.head_dim, scores.start + part * room);
                });
            }
        }
    });
    return 0;
}

}  // namespace

extern "C" int decode_attention_float32(const DecodeAttentionCall *call) { return decode_attention<float>(*call); }
extern "C" int decode_attention_bfloat16(const DecodeAttentionCall *call) { return decode_attention<BFloat16>(*call); }
