// One block of the model for a few tokens and a decode state, in one parallel region.
#include "memory.h"
#include "block_attention.h"

namespace {

// The mixing weights of a site and its normalised input: own.normed, own.post, own.comb.
void read_streams(const Pass& q, const float* streams, const float* fn, const float* base, const float* scale,
                  const float* norm) {
    const BlockWeights& w = q.w;
    const int64_t T = q.p.tokens, n = w.streams;
    const Product mix = q.product(fn, streams, n * (n + 2), n * w.d, q.s.mix);
    products(q.team, &mix, 1, T);
    q.team.sync();
    anychip_hc_pre_mixed(n, T, w.d, w.iters, w.hc_eps, w.eps, streams, base, scale, q.s.mix, q.o.x, q.o.post, q.o.comb);
    anychip_norm_rope(T, w.d, 1, 0, 0, w.eps, q.o.x, norm, nullptr, nullptr, q.o.normed, nullptr);
}

// Everything that is made from the normalised input; the compressors' rows go straight to the state.
void project(const Pass& q) {
    const BlockWeights& w = q.w;
    const float* x = q.o.normed;
    Product jobs[7] = {q.product(w.wq_a, x, w.latent, w.d, q.s.latent), q.product(w.wkv, x, w.channels, w.d, q.s.kv)};
    int count = 2;
    const auto pool = [&](const float* wkv, const float* wgate, int64_t channels, float* value, float* gate) {
        const int64_t rows = q.width(channels);
        jobs[count++] = {wkv, x, w.d, rows, w.d, value, rows, q.p.token};
        jobs[count++] = {wgate, x, w.d, rows, w.d, gate, rows, q.p.token};
    };
    if (w.ratio) pool(w.pool_wkv, w.pool_wgate, w.channels, q.b.value, q.b.gate);
    if (q.csa()) pool(w.index_wkv, w.index_wgate, w.index_channels, q.b.index_value, q.b.index_gate);
    if (q.sparse()) jobs[count++] = q.product(w.index_proj, x, w.index_heads, w.d, q.s.proj);
    products(q.team, jobs, count, q.p.tokens);
}

// The entries of the windows that close in this pass.
void pool_windows(const Pass& q, int64_t channels, const float* value, const float* gate, const float* ape, const float* norm,
                  float* entry) {
    const BlockPlan& p = q.p;
    anychip_compress(p.entries, q.w.ratio, channels, q.width(channels), value, gate, ape, p.first,
                     q.csa() ? p.previous : nullptr, q.o.pooled, nullptr);
    for (int64_t e = 0; e < p.entries; e++)
        anychip_norm_rope(1, channels, 1, p.half, 0, q.w.eps, q.o.pooled + e * channels, norm, p.entry_cos + e * p.half,
                          p.entry_sin + e * p.half, entry + p.entry(e) * channels, nullptr);
}

// Queries from the latent, and meanwhile the rows that this pass adds to the keys.
void queries_and_keys(const Pass& q) {
    const BlockWeights& w = q.w;
    const BlockPlan& p = q.p;
    anychip_norm_rope(p.tokens, w.latent, 1, 0, 0, w.eps, q.s.latent, w.q_norm, nullptr, nullptr, q.o.latent, nullptr);
    const Product jobs[2] = {q.product(w.wq_b, q.o.latent, w.heads * w.channels, w.latent, q.s.query),
                             q.product(w.index_wq_b, q.o.latent, w.index_heads * w.index_channels, w.latent, q.s.index_query)};
    products(q.team, jobs, q.sparse() ? 2 : 1, p.tokens);
    if (q.team.mine(0))
        for (int64_t t = 0; t < p.tokens; t++)
            anychip_norm_rope(1, w.channels, 1, p.half, 0, w.eps, q.s.kv + t * w.channels, w.kv_norm, p.cos + t * p.half,
                              p.sin + t * p.half, q.b.window + p.window(t) * w.channels, nullptr);
    if (!p.entries) return;
    if (q.team.mine(0)) pool_windows(q, w.channels, q.b.value, q.b.gate, w.pool_ape, w.pool_norm, q.b.entry);
    if (q.csa() && q.team.mine(1))
        pool_windows(q, w.index_channels, q.b.index_value, q.b.index_gate, w.index_ape, w.index_norm, q.b.index_entry);
}

// shared.selected: the entries that each token attends to.
void select_entries(const Pass& q) {
    const BlockWeights& w = q.w;
    const BlockPlan& p = q.p;
    const int64_t size = w.index_heads * w.index_channels;
    anychip_rope(p.tokens * w.index_heads, w.index_channels, w.index_heads, p.half, 0, 1.0f, q.s.index_query, p.cos, p.sin,
                 q.o.index_query);
    for (int64_t i = 0; i < p.tokens * w.index_heads; i++) q.o.index_weight[i] = q.s.proj[i] * (float)w.index_scale;
    for (int64_t t = 0; t < p.tokens; t++) {
        const int64_t from = q.team.from(p.visible_count[t]), to = q.team.to(p.visible_count[t]);
        anychip_index_scores(w.index_heads, w.index_channels, q.o.index_query + t * size, q.o.index_weight + t * w.index_heads,
                             q.b.index_entry, p.visible_start[t] + from, to - from, q.s.index_score + t * p.most + from);
    }
    q.team.sync();
    for (int64_t t = 0; t < p.tokens; t++)
        if (q.team.mine(t))
            anychip_index_select(q.s.index_score + t * p.most, p.visible_count[t], p.visible_start[t], w.index_topk,
                                 q.s.selected + t * w.index_topk);
    q.team.sync();
}

void project_out(const Pass& q) {
    const BlockWeights& w = q.w;
    const int64_t inputs = w.heads * w.channels / w.groups, all = w.groups * w.group_out;
    std::vector<Product> jobs;
    for (int64_t g = 0; g < w.groups; g++)
        jobs.push_back({w.wo_a + g * w.group_out * inputs, q.o.turned + g * inputs, w.heads * w.channels, w.group_out, inputs,
                        q.s.mixed + g * w.group_out, all, {nullptr, 0}});
    products(q.team, jobs.data(), jobs.size(), q.p.tokens);
    q.team.sync();
    const Product last = q.product(w.wo_b, q.s.mixed, w.d, all, q.s.y);
    products(q.team, &last, 1, q.p.tokens);
    q.team.sync();
}

void route(const Pass& q, const int64_t* ids) {
    const BlockWeights& w = q.w;
    const int64_t T = q.p.tokens, K = w.topk;
    const Product gate = q.product(w.gate, q.o.normed, w.experts, w.d, q.s.logits);
    products(q.team, &gate, 1, T);
    q.team.sync();
    for (int64_t t = 0; w.table && t < T; t++) std::memcpy(q.o.given + t * K, w.table + ids[t] * K, sizeof(int64_t) * K);
    anychip_route(T, w.experts, K, &V4_ROUTE, q.s.logits, w.bias, w.table ? q.o.given : nullptr, q.o.ids, q.o.weight);
    for (int64_t i = 0; i < T * K; i++) q.o.weight[i] *= (float)w.route_scale;
}

// shared.hidden [T][K + 1][width]: the routed experts' activations times their weights, then the shared expert's.
void experts_in(const Pass& q) {
    const BlockWeights& w = q.w;
    const int64_t K = w.topk, steps = (w.width + STEP - 1) / STEP, all = q.p.tokens * (K + 1) * steps;
    for (int64_t i = q.team.from(all); i < q.team.to(all); i++) {
        const int64_t pair = i / steps, first = i % steps * STEP, t = pair / (K + 1), k = pair % (K + 1);
        const int rows = std::min(STEP, w.width - first);
        const float* bank = k < K ? w.w13 + q.o.ids[t * K + k] * 2 * w.width * w.d : nullptr;
        const float *w1 = bank ? bank : w.shared_w1, *w3 = bank ? bank + w.width * w.d : w.shared_w3;
        float gate[STEP], up[STEP], weight = bank ? q.o.weight[t * K + k] : 1.0f;
        stream_dots(q.o.normed + t * w.d, w1 + first * w.d, rows, w.d, gate);
        stream_dots(q.o.normed + t * w.d, w3 + first * w.d, rows, w.d, up);
        f8 g = min8(load_part(gate, rows), w.limit), u = max8(min8(load_part(up, rows), w.limit), -w.limit);
        store_part(q.s.hidden + pair * w.width + first, g * sigmoid8(g) * u * weight, rows);
    }
}

void experts_out(const Pass& q) {
    const BlockWeights& w = q.w;
    const int64_t K = w.topk, steps = (w.d + STEP - 1) / STEP;
    for (int64_t pair = 0; pair < q.p.tokens * (K + 1); pair++) {
        const int64_t t = pair / (K + 1), k = pair % (K + 1);
        const float* w2 = k < K ? w.w2 + q.o.ids[t * K + k] * w.d * w.width : w.shared_w2;
        for (int64_t s = q.team.from(steps); s < q.team.to(steps); s++) {
            const int rows = std::min(STEP, w.d - s * STEP);
            float part[STEP], *y = q.s.y + t * w.d + s * STEP;
            stream_dots(q.s.hidden + pair * w.width, w2 + s * STEP * w.width, rows, w.width, part);
            for (int r = 0; r < rows; r++) y[r] = k ? y[r] + part[r] : part[r];
        }
    }
}

void run(const Pass& q, const float* streams, const int64_t* ids, float* out) {
    const BlockWeights& w = q.w;
    const int64_t T = q.p.tokens;
    read_streams(q, streams, w.attn_fn, w.attn_base, w.attn_scale, w.attn_norm);
    project(q);
    q.team.sync();
    queries_and_keys(q);
    q.team.sync();
    if (q.sparse()) select_entries(q);
    attention(q);
    project_out(q);
    anychip_hc_post(w.streams, T, w.d, q.s.y, streams, q.o.post, q.o.comb, q.o.streams);
    read_streams(q, q.o.streams, w.ffn_fn, w.ffn_base, w.ffn_scale, w.ffn_norm);
    route(q, ids);
    experts_in(q);
    q.team.sync();
    experts_out(q);
    q.team.sync();
    const int64_t n = w.streams;
    for (int64_t t = 0; t < T; t++)
        if (q.team.mine(t))
            anychip_hc_post(n, 1, w.d, q.s.y + t * w.d, q.o.streams + t * n * w.d, q.o.post + t * n, q.o.comb + t * n * n,
                            out + t * n * w.d);
}


}  // namespace

// The block on streams [T, n, d] with token ids [T]; out may not be streams. The state's buffers receive this pass's rows.
// Returns 0, or with nothing done 1 where a token id and 2 where an expert id of the table is out of range.
extern "C" int anychip_block(const BlockWeights* weights, const LayerBuffers* buffers, const BlockPlan* plan,
                             const float* streams, const int64_t* ids, float* out) {
    const BlockWeights& w = *weights;
    const BlockPlan& p = *plan;
    int64_t threads = omp_get_max_threads(), longest = 0;
    for (int64_t t = 0; t < p.tokens; t++) {
        longest = std::max<int64_t>(longest, p.window_count[t]);
        if (!w.table) continue;
        if (ids[t] < 0 || ids[t] >= w.vocab) return 1;
        for (int64_t k = 0; k < w.topk; k++)
            if (int64_t e = w.table[ids[t] * w.topk + k]; e < 0 || e >= w.experts) return 2;
    }
    longest += w.ratio == 4 ? std::min(p.most, w.index_topk) : p.most;
    Arena shared_size{nullptr}, own_size{nullptr};
    const Shared counted(shared_size, w, p, threads);
    const Own own_counted(own_size, w, p, longest);
    float* memory = working_memory(shared_size.used + threads * own_size.used);
    Arena arena{memory};
    const Shared shared(arena, w, p, threads);
#pragma omp parallel num_threads(threads)
    {
        Arena mine{memory + shared_size.used + omp_get_thread_num() * own_size.used};
        const Own own(mine, w, p, longest);
        run({w, *buffers, p, shared, own, {omp_get_thread_num(), omp_get_num_threads()}}, streams, ids, out);
    }
    return 0;
}
