// The whole model over a pass of new tokens of many sequences with paged state, in one parallel region.
#include "memory.h"
#include "batch_attention.h"
#include "batch_experts.h"

namespace {

// What the cache's formats leave of a row: E4M3 in blocks of 64 with a power-of-two scale, the rotated tail in bf16.
float power_of_two(int exponent) { return std::ldexp(1.0f, exponent); }

void round_block(float* x, int64_t count, float limit, float floor_amax, int mantissa, int least) {
    float amax = 0.0f;
    for (int64_t i = 0; i < count; i++) amax = std::max(amax, std::fabs(x[i]));
    int e, e_limit;
    const float m = std::frexp(std::max(amax, floor_amax), &e), m_limit = std::frexp(limit, &e_limit);
    const float scale = power_of_two(std::max(e - e_limit + (m > m_limit), -126));
    for (int64_t i = 0; i < count; i++) {
        const float v = x[i] / scale;
        int ev;
        std::frexp(v, &ev);
        const float step = power_of_two(std::max(ev - 1, least) - mantissa);
        x[i] = std::max(-limit, std::min(limit, std::nearbyint(v / step) * step)) * scale;
    }
}

void to_bf16(float* x, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        std::memcpy(&bits, x + i, 4);
        bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
        std::memcpy(x + i, &bits, 4);
    }
}

void store_as_fp8(const Layer& q, float* row, int64_t channels) {
    if (!q.state.format) return;
    const int64_t plain = channels - 2 * q.m.half;
    for (int64_t i = 0; i < plain; i += 64) round_block(row + i, std::min<int64_t>(64, plain - i), 448.0f, 1e-4f, 3, -6);
    to_bf16(row + plain, 2 * q.m.half);
}

void store_as_fp4(const Layer& q, float* row, int64_t channels) {
    if (!q.state.format) return;
    for (int64_t i = 0; i < channels; i += 32) round_block(row + i, std::min<int64_t>(32, channels - i), 6.0f, 0.0f, 1, 0);
}

// memory.normed, post, comb from the streams.
void read_streams(const Layer& q, const float* fn, const float* base, const float* scale, const float* norm) {
    const BlockWeights& w = q.w;
    const int64_t n = w.streams, m = n * (n + 2), width = n * w.d;
    const Product mix = q.product(fn, q.b.streams, m, width, q.s.mix);
    products(q.crew, &mix, 1, q.b.tokens);
    q.crew.sync();
    for (int64_t t = q.from(); t < q.to(); t += 8) {
        const int64_t count = std::min<int64_t>(8, q.to() - t);
        anychip_hc_pre_mixed(n, count, w.d, w.iters, w.hc_eps, w.eps, q.b.streams + t * width, base, scale, q.s.mix + t * m,
                             q.s.x + t * w.d, q.s.post + t * n, q.s.comb + t * n * n);
        norm_rope(count, w.d, 1, 0, w.eps, q.s.x + t * w.d, norm, nullptr, nullptr, q.s.normed + t * w.d);
    }
    q.crew.sync();
}

void write_streams(const Layer& q) {
    const int64_t n = q.w.streams, t = q.from(), count = q.to() - t;
    float* streams = q.b.streams + t * n * q.w.d;
    if (count) anychip_hc_post(n, count, q.w.d, q.s.y + t * q.w.d, streams, q.s.post + t * n, q.s.comb + t * n * n, streams);
}

void project(const Layer& q, bool sparse) {
    const BlockWeights& w = q.w;
    Product jobs[7] = {q.product(w.wq_a, q.s.normed, w.latent, w.d, q.s.latent), q.product(w.wkv, q.s.normed, w.channels, w.d, q.s.kv)};
    int count = 2;
    const auto pool = [&](const float* wkv, const float* wgate, int64_t channels, float* value, float* gate) {
        jobs[count++] = q.product(wkv, q.s.normed, q.width(channels), w.d, value);
        jobs[count++] = q.product(wgate, q.s.normed, q.width(channels), w.d, gate);
    };
    if (w.ratio) pool(w.pool_wkv, w.pool_wgate, w.channels, q.s.value, q.s.gate);
    if (q.csa()) pool(w.index_wkv, w.index_wgate, w.index_channels, q.s.index_value, q.s.index_gate);
    if (sparse) jobs[count++] = q.product(w.index_proj, q.s.normed, w.index_heads, w.d, q.s.proj);
    products(q.crew, jobs, count, q.b.tokens);
    q.crew.sync();
    for (int64_t t = q.from(); t < q.to(); t++) {
        const int64_t p = q.order.position[t];
        float *latent = q.s.latent + t * w.latent, *kv = q.s.kv + t * w.channels;
        norm_rope(1, w.latent, 1, 0, w.eps, latent, w.q_norm, nullptr, nullptr, latent);
        norm_rope(1, w.channels, 1, q.m.half, w.eps, kv, w.kv_norm, q.cos(p), q.sin(p), kv);
        store_as_fp8(q, kv, w.channels);
    }
    q.crew.sync();
}

// One compressor: its projected rows of this pass, and where its state lies.
struct Pool {
    int64_t channels, value_at, gate_at, entry_at;
    const float *value, *gate, *ape, *norm;
    bool indexer;
};

void pool_window(const Layer& q, const Pool& p, const Closing& c, std::vector<float>& copy) {
    const int64_t ratio = q.w.ratio, slots = q.csa() ? 2 * ratio : ratio, width = q.width(p.channels);
    const int64_t begin = (c.entry + 1) * ratio - slots;
    copy.resize(2 * slots * width + p.channels);
    float *value = copy.data(), *gate = value + slots * width, *pooled = gate + slots * width;
    for (int64_t i = 0; i < slots; i++)
        if (begin + i >= 0) {
            std::memcpy(value + i * width, q.row(c.sequence, begin + i, p.value_at, slots, width, p.value), sizeof(float) * width);
            std::memcpy(gate + i * width, q.row(c.sequence, begin + i, p.gate_at, slots, width, p.gate), sizeof(float) * width);
        }
    const int32_t first = slots - ratio, previous = c.entry ? 0 : -1;
    anychip_compress(1, ratio, p.channels, width, value, gate, p.ape, &first, q.csa() ? &previous : nullptr, pooled, nullptr);
    const int64_t position = c.entry * ratio;
    float* entry = q.entry(c.sequence, c.entry, p.entry_at, p.channels);
    norm_rope(1, p.channels, 1, q.m.half, q.w.eps, pooled, p.norm, q.cos(position), q.sin(position), entry);
    p.indexer ? store_as_fp4(q, entry, p.channels) : store_as_fp8(q, entry, p.channels);
    if (p.indexer && q.at.rough) rough::keep(entry, p.channels, q.at.rough, q.entry_row(c.sequence, c.entry));
}

// Queries from the latent, and the entries of the windows that close.
void queries_and_entries(const Layer& q, bool sparse) {
    const BlockWeights& w = q.w;
    const Product jobs[2] = {q.product(w.wq_b, q.s.latent, w.heads * w.channels, w.latent, q.s.query),
                             q.product(w.index_wq_b, q.s.latent, w.index_heads * w.index_channels, w.latent, q.s.index_query)};
    products(q.crew, jobs, sparse ? 2 : 1, q.b.tokens);
    if (w.ratio) {
        const Pool pools[2] = {{w.channels, q.at.value, q.at.gate, q.at.entry, q.s.value, q.s.gate, w.pool_ape, w.pool_norm, false},
                               {w.index_channels, q.at.index_value, q.at.index_gate, q.at.index_entry, q.s.index_value,
                                q.s.index_gate, w.index_ape, w.index_norm, true}};
        const auto& closing = q.order.closing[q.csa() ? 0 : 1];
        std::vector<float> copy;
        const int64_t kinds = q.csa() ? 2 : 1, all = closing.size() * kinds;
        for (int64_t i = q.crew.me; i < all; i += q.crew.count) pool_window(q, pools[i % kinds], closing[i / kinds], copy);
    }
    q.crew.sync();
}

// After all have read the rings.
void keep_rows(const Layer& q) {
    const BlockWeights& w = q.w;
    const int64_t size = q.csa() ? 8 : 128;
    for (int64_t s = q.crew.me; s < q.b.sequences; s += q.crew.count) {
        q.keep(s, q.at.window, q.m.window, w.channels, q.s.kv);
        if (!w.ratio) continue;
        q.keep(s, q.at.value, size, q.width(w.channels), q.s.value);
        q.keep(s, q.at.gate, size, q.width(w.channels), q.s.gate);
        if (!q.csa()) continue;
        q.keep(s, q.at.index_value, size, q.width(w.index_channels), q.s.index_value);
        q.keep(s, q.at.index_gate, size, q.width(w.index_channels), q.s.index_gate);
    }
}

void project_out(const Layer& q) {
    const BlockWeights& w = q.w;
    const int64_t inputs = w.heads * w.channels / w.groups, all = w.groups * w.group_out;
    std::vector<Product> jobs;
    for (int64_t g = 0; g < w.groups; g++)
        jobs.push_back({w.wo_a + g * w.group_out * inputs, q.s.turned + g * inputs, w.heads * w.channels, w.group_out, inputs,
                        q.s.mixed + g * w.group_out, all});
    products(q.crew, jobs.data(), jobs.size(), q.b.tokens);
    q.crew.sync();
    const Product last = q.product(w.wo_b, q.s.mixed, w.d, all, q.s.y);
    products(q.crew, &last, 1, q.b.tokens);
    q.crew.sync();
}

void run_layer(const Layer& q, int64_t most, Spare& own) {
    const BlockWeights& w = q.w;
    const bool sparse = q.csa() && most > w.index_topk;
    read_streams(q, w.attn_fn, w.attn_base, w.attn_scale, w.attn_norm);
    project(q, sparse);
    queries_and_entries(q, sparse);
    q.few ? attention_of_few(q, most, own) : attention_of_many(q, own);
    q.crew.sync();
    keep_rows(q);
    project_out(q);
    write_streams(q);
    q.crew.sync();
    read_streams(q, w.ffn_fn, w.ffn_base, w.ffn_scale, w.ffn_norm);
    route(q);
    if (!q.crew.me) sort_pairs(q);
    q.crew.sync();
    experts_in(q);
    q.crew.sync();
    experts_out(q);
    q.crew.sync();
    sum_experts(q);
    write_streams(q);
    q.crew.sync();
}

void embed(const Layer& q) {
    const int64_t n = q.w.streams, d = q.w.d;
    for (int64_t t = q.from(); t < q.to(); t++)
        for (int64_t j = 0; j < n; j++)
            std::memcpy(q.b.streams + (t * n + j) * d, q.m.embed + q.b.ids[t] * d, sizeof(float) * d);
    q.crew.sync();
}

// The MTP block's input from the streams of each token and the embedding of the next one (`ids`).
void join_next(const Layer& q) {
    const int64_t n = q.w.streams, d = q.w.d, T = q.b.tokens;
    for (int64_t t = q.from(); t < q.to(); t++) {
        norm_rope(n, d, 1, 0, q.w.eps, q.b.streams + t * n * d, q.m.hnorm, nullptr, nullptr, q.s.streams + t * n * d);
        norm_rope(1, d, 1, 0, q.w.eps, q.m.embed + q.b.ids[t] * d, q.m.enorm, nullptr, nullptr, q.s.x + t * d);
    }
    q.crew.sync();
    const Product streams = q.product(q.m.h_proj, q.s.streams, d, d, q.b.streams), next = q.product(q.m.e_proj, q.s.x, d, d, q.s.y);
    products(q.crew, &streams, 1, T * n);
    products(q.crew, &next, 1, T);
    q.crew.sync();
    for (int64_t t = q.from(); t < q.to(); t++)
        for (int64_t j = 0; j < n; j++)
            for (int64_t c = 0; c < d; c += 8) {
                float* x = q.b.streams + (t * n + j) * d + c;
                store8(x, load8(x) + load8(q.s.y + t * d + c));
            }
    q.crew.sync();
}

void logits(const Layer& q, const float* fn, const float* base, const float* scale, const float* norm) {
    const int64_t n = q.w.streams, d = q.w.d, R = q.b.wanted;
    float mix[8], rms[8];
    for (int64_t r = q.crew.from(R); r < q.crew.to(R); r++) {
        anychip_hc_head(n, 1, d, q.w.hc_eps, q.w.eps, q.b.streams + q.b.rows[r] * n * d, fn, base, scale, q.s.x + r * d, mix, rms);
        norm_rope(1, d, 1, 0, q.w.eps, q.s.x + r * d, norm, nullptr, nullptr, q.s.normed + r * d);
    }
    q.crew.sync();
    const Product head = q.product(q.m.head, q.s.normed, q.b.vocab, d, q.b.logits);
    products(q.crew, &head, 1, R);
}

}  // namespace

// With `mtp` the MTP block alone: `streams` are the main model's (and overwritten), `ids` the tokens after. Ids must lie
// in the vocabulary and tables must name the blocks of all positions up to the last new one.
extern "C" void anychip_batch(const BatchModel* model, const BatchState* state, const Batch* batch, int mtp) {
    const BatchModel& m = *model;
    const int64_t begin = mtp ? m.layers : 0, end = mtp ? m.layers + 1 : m.layers, threads = omp_get_max_threads();
    const bool few = batch->tokens < 2 * threads;
    const Order order(*batch);
    int64_t most = 0, largest = 0;
    for (int64_t p : order.position) most = std::max(most, (p + 1) / 4);
    for (int64_t i = begin; i < end; i++) {
        Arena counting{nullptr};
        const Memory counted(counting, *m.blocks[i], batch->tokens, most, few);
        largest = std::max(largest, counting.used);
    }
    float* memory = working_memory(largest);
    std::vector<std::atomic<int64_t>> counters(end - begin);
#pragma omp parallel num_threads(threads)
    {
        thread_local Spare own;  // kept from pass to pass
        const Crew crew{omp_get_thread_num(), omp_get_num_threads(), counters.data()};
        for (int64_t i = begin; i < end; i++) {
            Arena arena{memory};
            const Memory s(arena, *m.blocks[i], batch->tokens, most, few);
            const Layer q{m, *m.blocks[i], *state, state->layers[i], *batch, order, s, crew, i - begin, few};
            own.fit(q.w, q.csa() ? most : 0, few);
            if (i == begin) mtp ? join_next(q) : embed(q);
            run_layer(q, most, own);
            if (i + 1 < end || !batch->wanted) continue;
            mtp ? logits(q, m.mtp_fn, m.mtp_base, m.mtp_scale, m.mtp_norm) : logits(q, m.hc_fn, m.hc_base, m.hc_scale, m.norm);
        }
    }
}
