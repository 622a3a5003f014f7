// Attention of many queries on a CPU: y = softmax(q K^T / sqrt(head_dim)) V, without ever storing the scores.
//
// A block of keys and its values is packed so that both products run at the speed of the multipliers. A tile of queries
// goes over the keys of the block: scores, weights, and weights times values, all in the first cache. Sums over earlier
// blocks are scaled whenever a larger score turns up (online softmax). Blocks that no query sees are skipped.
// Scores, softmax and sums are float32; in bfloat16 the weights are rounded before they multiply the values. What a
// query gives depends neither on other queries nor on the number of threads.
// Source: Dao et al. 2022, arXiv:2205.14135; Milakov and Gimelshein 2018, arXiv:1805.02867. Built by build.py.

#include "attention.h"

namespace {

constexpr int64_t KEYS = 256;           // of a block: with their values they stay in the L2 cache
constexpr int64_t QUERIES = 32 * TILE;  // of a task, for which keys are packed once

// A thread's packed blocks, and what is known of its queries so far.
template <typename T>
struct ForwardScratch {
    static constexpr int64_t IN = Packing<T>::IN;
    alignas(64) Packed<T> q[QUERIES * MAX_HEAD_DIM / IN];
    alignas(64) Packed<T> keys[KEYS * MAX_HEAD_DIM / IN];
    alignas(64) Packed<T> values[KEYS * MAX_HEAD_DIM / IN];
    alignas(64) float scores[TILE * KEYS];
    alignas(64) Packed<T> weights[TILE * KEYS / IN];
    alignas(64) float sums[QUERIES * MAX_HEAD_DIM];  // of weights times values
    float most[QUERIES], sum[QUERIES];               // the largest score, times scale, and the sum of weights
};

template <typename T>
struct Forward {
    static constexpr int64_t IN = Packing<T>::IN, Q_STRIDE = MAX_HEAD_DIM / IN;
    const AttentionCall &call;
    ForwardScratch<T> &room;
    const int64_t b, h, start, stop;  // queries of head h in row b
    const Visibility visibility = {call};
    const int64_t dim = call.head_dim, words = dim / IN, group = h / (call.num_heads / call.num_kv_heads);
    const int64_t rows = stop - start, padded = up(rows, TILE);
    const float scale = scale_of(dim);

    void run() {
        read_queries();
        const Rows<const T> k((const T *)call.k, call.k_strides), v((const T *)call.v, call.v_strides);
        const int64_t first = visibility.of_query(start).first, last = visibility.of_query(stop - 1).stop;
        for (int64_t block = down(first, KEYS); block < last; block += KEYS) {
            const Range seen = visibility.in_block(start, stop, block, KEYS);
            const int64_t from = down(seen.first, PANEL), count = seen.stop - from;
            pack_columns(k.at(b, group, block + from), k.stride(), count, dim, room.keys + from * words);
            pack_rows(v.at(b, group, block + from), v.stride(), count, dim, room.values + from / IN * dim);
            for (int64_t tile = 0; tile < rows; tile += TILE) attend(block, tile);
        }
        write();
    }

    void read_queries() {
        const Rows<const T> q((const T *)call.q, call.q_strides);
        for (int64_t r = 0; r < padded; ++r) {
            if (r < rows)
                pack_row(q.at(b, h, start + r), dim, room.q + r * Q_STRIDE);
            else
                memset(room.q + r * Q_STRIDE, 0, words * sizeof(Packed<T>));
            room.most[r] = -INFINITY, room.sum[r] = 0;
        }
        memset(room.sums, 0, padded * dim * sizeof(float));
    }

    // A tile of queries goes over a block of keys.
    void attend(int64_t block, int64_t tile) {
        const int64_t tile_stop = tile + TILE < rows ? tile + TILE : rows;
        const Range panels = visibility.panels(b, h, start + tile, start + tile_stop, block, KEYS);
        if (panels.first >= panels.stop) return;
        for (int64_t panel = panels.first; panel < panels.stop; panel += PANEL)
            multiply_panel<Q_STRIDE>(room.q + tile * Q_STRIDE, room.keys + panel * words, words, room.scores + panel,
                                     KEYS);
        float before[LANES] = {}, base[LANES] = {}, factor[LANES];
        for (int64_t r = 0; r < TILE; ++r) {
            float *scores = room.scores + r * KEYS;
            visibility.hide(b, h, start + (tile + r < rows ? tile + r : rows - 1), block, panels, scores, -INFINITY);
            Pair mosts = {broadcast(-INFINITY), broadcast(-INFINITY)};
            for (int64_t key = panels.first; key < panels.stop; key += PANEL) {
                const Pair here = load(scores + key);
                mosts = {maximum(here.first, mosts.first), maximum(here.second, mosts.second)};
            }
            const float here = max_lane(maximum(mosts.first, mosts.second)) * scale;
            float &most = room.most[tile + r];
            before[r] = most;
            most = here > most ? here : most;
            base[r] = most == -INFINITY ? 0 : most;  // nothing seen yet
        }
        const Floats factors = power_of_two(load_vector(before) - load_vector(base), EXACT);
        memcpy(factor, &factors, sizeof factors);
        for (int64_t r = 0; r < TILE; ++r) {
            Pair sum = {};
            for (int64_t key = panels.first; key < panels.stop; key += PANEL) {
                const Pair here = weights<Packed<T>>(load(room.scores + r * KEYS + key), scale, base[r]);
                sum = sum + here;
                pack_pair(here, room.weights + (r * KEYS + key) / IN);
            }
            room.sum[tile + r] = room.sum[tile + r] * factor[r] + sum_lanes(sum);
        }
        const Range seen = visibility.words(start + tile, start + tile_stop, block, panels, IN);
        add_rows<KEYS / IN, 1>(room.weights + seen.first, room.values + seen.first * dim, dim, seen.stop - seen.first,
                               dim, factor, room.sums + tile * dim);
    }

    void write() {
        const Rows<T> y((T *)call.y, call.y_strides);
        for (int64_t r = 0; r < rows; ++r) {
            const float sum = room.sum[r];
            for (int64_t i = 0; i < dim; i += LANES) {
                const Floats here = load_vector(room.sums + r * dim + i);
                store_in_order(y.at(b, h, start + r) + i, sum == 0 ? Floats{} : here / sum);
            }
            if (call.sums)
                ((Sums *)call.sums)[(b * call.num_heads + h) * call.queries + start + r] = {
                    room.most[r] == -INFINITY ? 0 : room.most[r], sum == 0 ? 0 : 1 / sum};
        }
    }
};

template <typename T>
int attention(const AttentionCall &call) {
    // Fewer queries where there would be too few tasks to keep all threads busy.
    int64_t size = QUERIES;
    const int64_t heads = call.batch * call.num_heads;
    while (size > 8 * TILE && heads * ((call.queries + size - 1) / size) < 4 * call.threads) size /= 2;
    const int64_t blocks = (call.queries + size - 1) / size, tasks = heads * blocks;
    return each_task<ForwardScratch<T>>(
        tasks, size * call.keys, call.threads, [&](int64_t task, ForwardScratch<T> &room) {
            const int64_t head = task / blocks,
                          start = (blocks - 1 - task % blocks) * size;  // causal: the longest first
            const int64_t stop = start + size < call.queries ? start + size : call.queries;
            Forward<T>{call, room, head / call.num_heads, head % call.num_heads, start, stop}.run();
        });
}

}  // namespace

// --- what Python calls: 0 is given, or 1 where memory ran out ---

extern "C" int attention_float32(const AttentionCall *call) { return attention<float>(*call); }
extern "C" int attention_bfloat16(const AttentionCall *call) { return attention<BFloat16>(*call); }
