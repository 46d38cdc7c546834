// One block of the model for a few tokens and a decode state, in one parallel region.
#include "block_grouped.h"
#include "block_latent.h"
#include "memory.h"

namespace {

// The normalised input of a site, own.normed, and where there are streams its mixing weights, own.post and own.comb.
void read_streams(const Pass& q, const float* streams, const float* fn, const float* base, const float* scale,
                  const float* norm) {
    const BlockWeights& w = q.w;
    const int64_t T = q.p.tokens, n = w.streams;
    if (!fn) {
        anychip_norm_rope(T, w.d, 1, 0, 0, w.eps, streams, norm, nullptr, nullptr, q.o.normed, nullptr);
        return;
    }
    const Product mix = q.product(fn, streams, n * (n + 2), n * w.d, q.s.mix);
    products(q.team, &mix, 1, T);
    q.team.sync();
    anychip_hc_pre_mixed(n, T, w.d, w.iters, w.hc_eps, w.eps, streams, base, scale, q.s.mix, q.o.x, q.o.post, q.o.comb);
    anychip_norm_rope(T, w.d, 1, 0, 0, w.eps, q.o.x, norm, nullptr, nullptr, q.o.normed, nullptr);
}

// The streams of tokens [from, to) with the sub-layer's output shared.y.
void write_streams(const Pass& q, const float* streams, int64_t from, int64_t to, float* out) {
    const BlockWeights& w = q.w;
    const int64_t n = w.streams, step = n * w.d;
    if (w.attn_fn) {
        anychip_hc_post(n, to - from, w.d, q.s.y + from * w.d, streams + from * step, q.o.post + from * n,
                        q.o.comb + from * n * n, out + from * step);
        return;
    }
    for (int64_t i = from * step; i < to * step; i += 8) store8(out + i, load8(streams + i) + load8(q.s.y + i));
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

void project_last(const Pass& q, const float* x, int64_t inputs) {
    const Product last = q.product(q.w.wo_b, x, q.w.d, inputs, q.s.y);
    products(q.team, &last, 1, q.p.tokens);
    q.team.sync();
}

void project_groups(const Pass& q) {
    const BlockWeights& w = q.w;
    const int64_t inputs = w.heads * w.channels / w.groups, all = w.groups * w.group_out;
    std::vector<Product> jobs;
    for (int64_t g = 0; g < w.groups; g++)
        jobs.push_back({w.wo_a + g * w.group_out * inputs, q.o.turned + g * inputs, w.heads * w.channels, w.group_out, inputs,
                        q.s.mixed + g * w.group_out, all, {nullptr, 0}});
    products(q.team, jobs.data(), jobs.size(), q.p.tokens);
    q.team.sync();
    project_last(q, q.s.mixed, all);
}

// shared.y: the attention of the normalised input.
void attention(const Pass& q) {
    const BlockWeights& w = q.w;
    if (w.kind == GROUPED) {
        grouped_attention(q);
        return project_last(q, q.o.out, w.heads * w.channels);
    }
    if (w.kind == LATENT) {
        latent_attention(q);
        return project_last(q, q.s.mixed, w.heads * w.value);
    }
    project(q);
    q.team.sync();
    queries_and_keys(q);
    q.team.sync();
    if (q.sparse()) select_entries(q);
    compressed_attention(q);
    project_groups(q);
}

void route(const Pass& q, const int64_t* ids) {
    const BlockWeights& w = q.w;
    const int64_t T = q.p.tokens, K = w.topk;
    if (!K) return;
    const Product gate = q.product(w.gate, q.o.normed, w.experts, w.d, q.s.logits);
    products(q.team, &gate, 1, T);
    q.team.sync();
    for (int64_t t = 0; w.table && t < T; t++) std::memcpy(q.o.given + t * K, w.table + ids[t] * K, sizeof(int64_t) * K);
    anychip_route(T, w.experts, K, &w.rule, q.s.logits, w.bias, w.table ? q.o.given : nullptr, q.o.ids, q.o.weight);
    for (int64_t i = 0; i < T * K; i++) q.o.weight[i] *= (float)w.route_scale;
}

// One SwiGLU of a token: its weights, its part of the activations, and the weight of its result.
struct Expert {
    const float *w1, *w3, *w2;
    int64_t width, at;
    float weight;
};

// Choice k of token t: a routed expert, or (k = K) the one that every token visits.
INLINE Expert expert_of(const Pass& q, int64_t t, int64_t k) {
    const BlockWeights& w = q.w;
    const int64_t K = w.topk, at = t * w.hidden() + k * w.width;
    if (k == K) return {w.shared_w1, w.shared_w3, w.shared_w2, w.shared_width, at, 1.0f};
    const int64_t e = q.o.ids[t * K + k], size = w.width * w.d;
    return {w.w13 + 2 * e * size, w.w13 + (2 * e + 1) * size, w.w2 + e * size, w.width, at, q.o.weight[t * K + k]};
}

// shared.hidden [T][hidden]: the routed experts' activations times their weights, then the shared one's.
void experts_in(const Pass& q) {
    const BlockWeights& w = q.w;
    const int64_t K = w.topk, steps = (w.width + STEP - 1) / STEP, shared_steps = (w.shared_width + STEP - 1) / STEP;
    const int64_t each = K * steps + shared_steps, all = q.p.tokens * each;
    for (int64_t i = q.team.from(all); i < q.team.to(all); i++) {
        const int64_t t = i / each, step = i % each, k = step < K * steps ? step / steps : K, first = (step - k * steps) * STEP;
        const Expert e = expert_of(q, t, k);
        const int rows = std::min(STEP, e.width - first);
        float gate[STEP], up[STEP];
        stream_dots(q.o.normed + t * w.d, e.w1 + first * w.d, rows, w.d, gate);
        stream_dots(q.o.normed + t * w.d, e.w3 + first * w.d, rows, w.d, up);
        f8 g = min8(load_part(gate, rows), w.limit), u = max8(min8(load_part(up, rows), w.limit), -w.limit);
        store_part(q.s.hidden + e.at + first, g * sigmoid8(g) * u * e.weight, rows);
    }
}

void experts_out(const Pass& q) {
    const BlockWeights& w = q.w;
    const int64_t choices = w.topk + (w.shared_width > 0), steps = (w.d + STEP - 1) / STEP;
    for (int64_t pair = 0; pair < q.p.tokens * choices; pair++) {
        const int64_t t = pair / choices, k = pair % choices;
        const Expert e = expert_of(q, t, k);
        for (int64_t s = q.team.from(steps); s < q.team.to(steps); s++) {
            const int rows = std::min(STEP, w.d - s * STEP);
            float part[STEP], *y = q.s.y + t * w.d + s * STEP;
            stream_dots(q.s.hidden + e.at, e.w2 + s * STEP * e.width, rows, e.width, part);
            for (int r = 0; r < rows; r++) y[r] = k ? y[r] + part[r] : part[r];
        }
    }
}

void run(const Pass& q, const float* streams, const int64_t* ids, float* out) {
    const BlockWeights& w = q.w;
    const int64_t T = q.p.tokens;
    read_streams(q, streams, w.attn_fn, w.attn_base, w.attn_scale, w.attn_norm);
    attention(q);
    write_streams(q, streams, 0, T, q.o.streams);
    read_streams(q, q.o.streams, w.ffn_fn, w.ffn_base, w.ffn_scale, w.ffn_norm);
    route(q, ids);
    experts_in(q);
    q.team.sync();
    experts_out(q);
    q.team.sync();
    for (int64_t t = 0; t < T; t++)
        if (q.team.mine(t)) write_streams(q, q.o.streams, t, t + 1, out);
}

// The block on streams [T, n, d] with token ids [T]; out may not be streams. The state's buffers receive this pass's rows.
int block(const BlockWeights* weights, const LayerBuffers* buffers, const BlockPlan* plan, const float* streams,
          const int64_t* ids, float* out) {
    const BlockWeights& w = *weights;
    const BlockPlan& p = *plan;
    int64_t threads = omp_get_max_threads(), longest = 0;
    for (int64_t t = 0; t < p.tokens; t++) {
        longest = std::max<int64_t>(longest, w.kind == COMPRESSED ? p.window_count[t] : 0);
        if (!w.table) continue;
        if (ids[t] < 0 || ids[t] >= w.vocab) return 1;
        for (int64_t k = 0; k < w.topk; k++)
            if (int64_t e = w.table[ids[t] * w.topk + k]; e < 0 || e >= w.experts) return 2;
    }
    longest += w.index_heads ? std::min(p.most, w.index_topk) : p.most;
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

}  // namespace

// Blocks one after the other; layers has for each the addresses of its weights, its buffers and the plan. out is twice as
// large as streams and receives the last streams in its first half. Returns 0, or with this and later blocks not done 1
// where a token id and 2 where an expert id of the table is out of range.
extern "C" int anychip_blocks(int64_t count, const int64_t* layers, const float* streams, const int64_t* ids, float* out) {
    for (int64_t i = 0; i < count; i++, layers += 3) {
        const auto* weights = reinterpret_cast<const BlockWeights*>(layers[0]);
        const auto* plan = reinterpret_cast<const BlockPlan*>(layers[2]);
        float* to = out + (count - 1 - i) % 2 * plan->tokens * weights->streams * weights->d;
        if (const int wrong = block(weights, reinterpret_cast<LayerBuffers*>(layers[1]), plan, streams, ids, to)) return wrong;
        streams = to;
    }
    return 0;
}
