// The gradients of attention: weights are computed again, a block of queries and keys at a time, from what the forward
// pass kept of each query.
//
//   P = softmax(Q K^T * scale)    dV = P^T G           dP = G V^T            dS = P * (dP - sum of P * dP over keys)
//   scale = 1 / sqrt(head_dim)    dQ = dS K * scale    dK = dS^T Q * scale
//
// The sum of P * dP over keys is that of G * Y over head_dim, which needs no keys. A query that sees keys of one block
// only takes the first, which is more exact where the difference is next to nothing, as among few keys.
//
// Sums are float32; in bfloat16 P and dS are rounded before they multiply. Gradients of a key are summed over blocks of
// queries in their order, those of a query over blocks of keys in theirs, whatever the number of threads.
// Source: Dao et al. 2022, arXiv:2205.14135, appendix B.4. Built by build.py.

#include "attention.h"

namespace {

// Of a block, in whole tiles: all of it stays in the L2 cache.
constexpr int64_t KEYS = TILE % 3 ? 128 : 144, QUERIES = TILE % 3 ? 64 : 60;
static_assert(KEYS % PANEL == 0 && KEYS % TILE == 0 && QUERIES % TILE == 0 && TILE % 2 == 0);

// A thread's packed blocks, weights and their gradients, and sums.
template <typename T>
struct BackwardScratch {
    static constexpr int64_t IN = Packing<T>::IN;
    alignas(64) Packed<T> key_columns[KEYS * MAX_HEAD_DIM / IN];
    alignas(64) Packed<T> value_columns[KEYS * MAX_HEAD_DIM / IN];
    alignas(64) Packed<T> key_rows[KEYS * MAX_HEAD_DIM / IN];
    alignas(64) Packed<T> q[QUERIES * MAX_HEAD_DIM / IN], g[QUERIES * MAX_HEAD_DIM / IN];
    alignas(64) Packed<T> q_rows[QUERIES * MAX_HEAD_DIM / IN], g_rows[QUERIES * MAX_HEAD_DIM / IN];
    alignas(64) float scores[TILE * KEYS], slopes[TILE * KEYS];  // S, dP and then dS of a tile of queries
    alignas(64) Packed<T> weights[QUERIES * KEYS / IN];          // P, pairs of queries
    alignas(64) Packed<T> slope_columns[QUERIES * KEYS / IN];    // dS, pairs of queries
    alignas(64) Packed<T> slope_rows[QUERIES * KEYS / IN];       // dS, pairs of keys
    alignas(64) float dk[KEYS * MAX_HEAD_DIM], dv[KEYS * MAX_HEAD_DIM];
    Sums sums[QUERIES];
    float means[QUERIES];  // of dP, weighted by P
};

// Two rows packed: pairs of their bfloat16 numbers, or float32 rows as they are.
inline void pack_two(Pair first, Pair second, float *to, int64_t row) {
    store<false>(to, first);
    store<false>(to + row, second);
}

inline void pack_two(Pair first, Pair second, BFloat16Pair *to, int64_t) {
    const auto pairs = [](Floats a, Floats b) {
        return round_to_bfloat16(a) >> 16 | (round_to_bfloat16(b) & 0xffff0000);
    };
    const Words words[2] = {pairs(first.first, second.first), pairs(first.second, second.second)};
    memcpy(to, words, sizeof words);
}

template <typename T>
struct Backward {
    static constexpr int64_t IN = Packing<T>::IN, STRIDE = MAX_HEAD_DIM / IN;
    const AttentionCall &call;
    BackwardScratch<T> &room;
    const float *means;  // (batch, heads, queries): the sums of G * Y
    const int64_t b, group;
    const Visibility visibility = {call};
    const int64_t dim = call.head_dim, words = dim / IN, heads = call.num_heads / call.num_kv_heads;
    const float scale = 1 / std::sqrt((float)dim);

    void read_keys(int64_t block, bool rows) {
        const Rows<const T> k((const T *)call.k, call.k_strides), v((const T *)call.v, call.v_strides);
        const int64_t count = call.keys - block < KEYS ? call.keys - block : KEYS;
        pack_columns(k.at(b, group, block), k.stride(), count, dim, room.key_columns);
        pack_columns(v.at(b, group, block), v.stride(), count, dim, room.value_columns);
        if (!rows) return;
        memset(room.key_rows, 0, KEYS * words * sizeof(Packed<T>));  // missing keys must not be NaN
        pack_rows(k.at(b, group, block), k.stride(), count, dim, room.key_rows);
    }

    void read_queries(int64_t h, int64_t start, int64_t stop) {
        const Rows<const T> q((const T *)call.q, call.q_strides), g((const T *)call.g, call.g_strides);
        const int64_t rows = stop - start, at = (b * call.num_heads + h) * call.queries + start;
        for (int64_t r = 0; r < up(rows, TILE); ++r) {
            const bool exists = r < rows;
            if (exists) {
                pack_row(q.at(b, h, start + r), dim, room.q + r * STRIDE);
                pack_row(g.at(b, h, start + r), dim, room.g + r * STRIDE);
            } else {
                memset(room.q + r * STRIDE, 0, words * sizeof(Packed<T>));
                memset(room.g + r * STRIDE, 0, words * sizeof(Packed<T>));
                for (int64_t i = 0; i < dim; ++i) room.q_rows[r / IN * dim + i] = room.g_rows[r / IN * dim + i] = {};
            }
            room.sums[r] = exists ? ((const Sums *)call.sums)[at + r] : Sums{};
            room.means[r] = exists ? means[at + r] : 0;
        }
        pack_rows(q.at(b, h, start), q.stride(), rows, dim, room.q_rows);
        pack_rows(g.at(b, h, start), g.stride(), rows, dim, room.g_rows);
    }

    // Add to the gradients of the queries and keys that are loaded.
    void add(int64_t h, int64_t start, int64_t stop, int64_t block, float *dq, bool for_keys) {
        for (int64_t tile = 0; tile < stop - start; tile += TILE) {
            const int64_t tile_stop = start + tile + TILE < stop ? start + tile + TILE : stop;
            const Range panels = visibility.panels(b, h, start + tile, tile_stop, block, KEYS);
            if (for_keys) clear(tile, panels);
            if (panels.first >= panels.stop) continue;
            for (int64_t panel = panels.first; panel < panels.stop; panel += PANEL) {
                multiply_panel<STRIDE>(room.q + tile * STRIDE, room.key_columns + panel * words, words,
                                       room.scores + panel, KEYS);
                multiply_panel<STRIDE>(room.g + tile * STRIDE, room.value_columns + panel * words, words,
                                       room.slopes + panel, KEYS);
            }
            for (int64_t r = 0; r < TILE; r += 2) differentiate(h, start, tile_stop, tile + r, block, panels, for_keys);
            if (!dq) continue;
            const Range seen = visibility.words(start + tile, tile_stop, block, panels, IN);
            add_rows<KEYS / IN, 1>(room.slope_rows + tile * KEYS / IN + seen.first, room.key_rows + seen.first * dim,
                                   dim, seen.stop - seen.first, dim, nullptr, dq + tile * dim);
        }
        if (for_keys) add_to_keys(start, stop, block);
    }

    // P and dS of two queries.
    void differentiate(int64_t h, int64_t start, int64_t stop, int64_t row, int64_t block, Range panels,
                       bool for_keys) {
        for (int64_t r = row; r < row + 2; ++r) {
            const int64_t query = start + r < stop ? start + r : stop - 1;
            visibility.hide(b, h, query, block, panels, room.scores + r % TILE * KEYS, -INFINITY);
            visibility.hide(b, h, query, block, panels, room.slopes + r % TILE * KEYS, 0);
        }
        const auto weights_at = [&](int64_t r, int64_t key) {
            const Sums sums = room.sums[r];
            return weights<Packed<T>>(load(room.scores + r % TILE * KEYS + key), scale_of(dim), sums.most) *
                   sums.inverse;
        };
        for (int64_t r = row; r < row + 2; ++r) {
            const Range seen = visibility.of_query(start + r);
            if (seen.first < block || seen.stop > block + KEYS) continue;
            Pair sum = {};
            for (int64_t key = panels.first; key < panels.stop; key += PANEL)
                sum = sum + weights_at(r, key) * load(room.slopes + r % TILE * KEYS + key);
            room.means[r] = sum_lanes(sum);
        }
        for (int64_t key = panels.first; key < panels.stop; key += PANEL) {
            Pair p[2], slope[2];
            for (int64_t i = 0; i < 2; ++i) {
                p[i] = weights_at(row + i, key);
                slope[i] = p[i] * (load(room.slopes + (row + i) % TILE * KEYS + key) + -room.means[row + i]);
                pack_pair(slope[i], room.slope_rows + ((row + i) * KEYS + key) / IN);
            }
            if (!for_keys) continue;
            pack_two(p[0], p[1], room.weights + row / IN * KEYS + key, KEYS);
            pack_two(slope[0], slope[1], room.slope_columns + row / IN * KEYS + key, KEYS);
        }
    }

    // Zero a tile's weights outside the panels that its queries see.
    void clear(int64_t tile, Range panels) {
        const auto clear_row = [=](Packed<T> *to) {
            memset(to, 0, panels.first * sizeof *to);
            memset(to + panels.stop, 0, (KEYS - panels.stop) * sizeof *to);
        };
        for (int64_t r = tile; r < tile + TILE; r += IN) {
            clear_row(room.weights + r / IN * KEYS);
            clear_row(room.slope_columns + r / IN * KEYS);
        }
    }

    void add_to_keys(int64_t start, int64_t stop, int64_t block) {
        const int64_t count = call.keys - block < KEYS ? call.keys - block : KEYS;
        for (int64_t key = 0; key < count; key += TILE) {
            const Range seers = visibility.of_keys(block + key, block + (key + TILE < count ? key + TILE : count));
            const int64_t first = down(clip(seers.first - start, 0, stop - start), IN);
            const int64_t last = up(clip(seers.stop - start, 0, stop - start), IN);
            if (first >= last) continue;
            const int64_t depth = (last - first) / IN, at = first / IN;
            add_rows<1, KEYS>(room.weights + at * KEYS + key, room.g_rows + at * dim, dim, depth, dim, nullptr,
                              room.dv + key * dim);
            add_rows<1, KEYS>(room.slope_columns + at * KEYS + key, room.q_rows + at * dim, dim, depth, dim, nullptr,
                              room.dk + key * dim);
        }
    }

    // Gradients of a block of keys, and where dq is not null their part of the queries' gradients.
    void keys(int64_t block, float *dq) {
        read_keys(block, dq);
        const int64_t stop = block + KEYS < call.keys ? block + KEYS : call.keys;
        memset(room.dk, 0, KEYS * dim * sizeof(float));
        memset(room.dv, 0, KEYS * dim * sizeof(float));
        const Range seers = visibility.of_keys(block, stop);
        for (int64_t h = 0; h < heads; ++h)
            for (int64_t start = down(seers.first, QUERIES); start < seers.stop; start += QUERIES) {
                const int64_t last = start + QUERIES < call.queries ? start + QUERIES : call.queries;
                read_queries(group * heads + h, start, last);
                float *to = dq ? dq + (h * up(call.queries, TILE) + start) * dim : nullptr;
                add(group * heads + h, start, last, block, to, true);
            }
        write(room.dk, (T *)call.dk, call.dk_strides, group, block, stop, scale);
        write(room.dv, (T *)call.dv, call.dv_strides, group, block, stop, 1);
    }

    // Gradients of a block of queries alone; `dq` is room for them.
    void queries(int64_t h, int64_t start, float *dq) {
        const int64_t stop = start + QUERIES < call.queries ? start + QUERIES : call.queries;
        memset(dq, 0, QUERIES * dim * sizeof(float));
        read_queries(h, start, stop);
        const Range seen = {visibility.of_query(start).first, visibility.of_query(stop - 1).stop};
        for (int64_t block = down(seen.first, KEYS); block < seen.stop; block += KEYS) {
            read_keys(block, true);
            add(h, start, stop, block, dq, false);
        }
        write(dq, (T *)call.dq, call.dq_strides, h, start, stop, scale);
    }

    void write(const float *from, T *to, const int64_t *strides, int64_t head, int64_t start, int64_t stop,
               float factor) {
        const Rows<T> rows(to, strides);
        for (int64_t i = start; i < stop; ++i)
            for (int64_t d = 0; d < dim; d += LANES)
                store_in_order(rows.at(b, head, i) + d, load_vector(from + (i - start) * dim + d) * factor);
    }
};

// The sum of G * Y of every query, in the order in which dP is summed: a query with one key has no gradient, exactly.
template <typename T>
void sum_products(const AttentionCall &call, float *means) {
    const Rows<const T> y((const T *)call.y, call.y_strides), g((const T *)call.g, call.g_strides);
    const int64_t panels = (call.queries + PANEL - 1) / PANEL, words = call.head_dim / Packing<T>::IN;
    const int64_t parts = call.batch * call.num_heads * panels;
    parallel_for(parts, PANEL * call.head_dim, call.threads, [=, &call](int64_t, int64_t first, int64_t last) {
        alignas(64) Packed<T> y_columns[PANEL * MAX_HEAD_DIM], g_columns[PANEL * MAX_HEAD_DIM];
        for (int64_t part = first; part < last; ++part) {
            const int64_t head = part / panels, start = part % panels * PANEL, b = head / call.num_heads;
            const int64_t rows = call.queries - start < PANEL ? call.queries - start : PANEL;
            pack_columns(y.at(b, head % call.num_heads, start), y.stride(), rows, call.head_dim, y_columns);
            pack_columns(g.at(b, head % call.num_heads, start), g.stride(), rows, call.head_dim, g_columns);
            Floats sums[WIDTH] = {};
            for (int64_t at = 0; at < words * PANEL; at += PANEL)
                for (int64_t c = 0; c < WIDTH; ++c)
                    sums[c] = add_word(Packed<T>(), load_vector(g_columns + at + c * LANES),
                                       load_vector(y_columns + at + c * LANES), sums[c]);
            memcpy(means + head * call.queries + start, sums, rows * sizeof(float));
        }
    });
}

template <typename T>
int attention_backward(const AttentionCall &call) {
    const Buffer<float> means(call.batch * call.num_heads * call.queries);
    if (!means.start) return 1;
    sum_products<T>(call, means.start);
    const int64_t heads = call.num_heads / call.num_kv_heads, groups = call.batch * call.num_kv_heads;
    const int64_t key_blocks = (call.keys + KEYS - 1) / KEYS, query_blocks = (call.queries + QUERIES - 1) / QUERIES;
    // A thread that takes all keys of a group sums up the queries' gradients beside theirs: five products, not seven.
    const int64_t rounds = (groups + call.threads - 1) / call.threads;
    if (call.dq && call.dk && 5 * rounds * call.threads <= 7 * groups) {
        const int64_t count = heads * up(call.queries, TILE) * call.head_dim;
        int failed = 0;
        const int without = each_task<BackwardScratch<T>>(
            groups, call.queries * call.keys, call.threads, [&](int64_t task, BackwardScratch<T> &room) {
                Backward<T> one{call, room, means.start, task / call.num_kv_heads, task % call.num_kv_heads};
                const Buffer<float> dq(count);
                if (!dq.start) return __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
                memset(dq.start, 0, count * sizeof(float));
                for (int64_t block = 0; block < call.keys; block += KEYS) one.keys(block, dq.start);
                for (int64_t h = 0; h < heads; ++h)
                    one.write(dq.start + h * up(call.queries, TILE) * call.head_dim, (T *)call.dq, call.dq_strides,
                              one.group * heads + h, 0, call.queries, one.scale);
            });
        return failed || without;
    }
    int failed = 0;
    if (call.dk)
        failed |= each_task<BackwardScratch<T>>(
            groups * key_blocks, heads * call.queries * KEYS, call.threads,
            [&](int64_t task, BackwardScratch<T> &room) {
                const int64_t at = task / key_blocks;
                Backward<T>{call, room, means.start, at / call.num_kv_heads, at % call.num_kv_heads}.keys(
                    task % key_blocks * KEYS, nullptr);
            });
    if (call.dq)
        failed |= each_task<BackwardScratch<T>>(
            groups * heads * query_blocks, call.keys * QUERIES, call.threads,
            [&](int64_t task, BackwardScratch<T> &room) {
                const int64_t head = task / query_blocks, b = head / call.num_heads, h = head % call.num_heads;
                const int64_t block = query_blocks - 1 - task % query_blocks;  // causal: the longest first
                Backward<T>{call, room, means.start, b, h / heads}.queries(h, block * QUERIES, room.dk);
            });
    return failed;
}

}  // namespace

extern "C" int attention_backward_float32(const AttentionCall *call) { return attention_backward<float>(*call); }
extern "C" int attention_backward_bfloat16(const AttentionCall *call) { return attention_backward<BFloat16>(*call); }
