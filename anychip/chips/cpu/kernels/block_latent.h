// The block's latent attention (MLA), absorbed: each head's query is taken into the space of the entries, where the state
// lies, and its result out of it; with an indexer (DSA) a token reads the rows that it picks.
#pragma once
#include "block_attention.h"
#include "block_select.h"
#include "norm.h"

namespace {

constexpr float INDEX_EPS = 1e-6f;  // of the indexer's LayerNorm: the publisher's code

// y = x times the rows of w [inputs][width]: a product with the transposed matrix.
void times_rows(const float* x, const float* w, int64_t inputs, int64_t width, float* y) {
    for (int64_t c = 0; c < width; c += 8) {
        f8 a = {}, b = {};
        int64_t i = 0;
        for (; i + 2 <= inputs; i += 2) {
            a += x[i] * load8(w + i * width + c);
            b += x[i + 1] * load8(w + (i + 1) * width + c);
        }
        for (; i < inputs; i++) a += x[i] * load8(w + i * width + c);
        store8(y + c, a + b);
    }
}

void layer_norm(const float* x, const float* weight, const float* bias, int64_t n, float* y) {
    float sum = 0.0f, square = 0.0f;
    for (int64_t i = 0; i < n; i++) sum += x[i];
    const float mean = sum / n;
    for (int64_t i = 0; i < n; i++) square += (x[i] - mean) * (x[i] - mean);
    const float scale = 1.0f / std::sqrt(square / n + INDEX_EPS);
    for (int64_t i = 0; i < n; i++) y[i] = (x[i] - mean) * scale * weight[i] + bias[i];
}

void project_latents(const Pass& q) {
    const BlockWeights& w = q.w;
    const float* x = q.o.normed;
    Product jobs[4] = {q.product(w.wkv, x, w.channels, w.d, q.s.kv)};
    int count = 1;
    if (w.latent) jobs[count++] = q.product(w.wq_a, x, w.latent, w.d, q.s.latent);
    if (w.index_heads) jobs[count++] = q.product(w.index_wkv, x, w.index_channels, w.d, q.s.index_key);
    if (q.sparse()) jobs[count++] = q.product(w.index_proj, x, w.index_heads, w.d, q.s.proj);
    products(q.team, jobs, count, q.p.tokens);
    q.team.sync();
}

// This pass's rows of the state.
void keep_entries(const Pass& q) {
    const BlockWeights& w = q.w;
    const BlockPlan& p = q.p;
    const int64_t half = p.half, I = w.index_channels;
    for (int64_t t = 0; t < p.tokens; t++) {
        const float *from = q.s.kv + t * w.channels, *cos = p.cos + t * half, *sin = p.sin + t * half;
        if (q.team.mine(0)) {
            float* entry = q.b.entry + p.entry(t) * w.channels;
            anychip_norm_rope(1, w.rank, 1, 0, 0, w.latent_eps, from, w.kv_norm, nullptr, nullptr, entry, nullptr);
            anychip_rope(1, 2 * half, 1, half, 0, 1.0f, from + w.rank, cos, sin, entry + w.rank);
        }
        if (w.index_heads && q.team.mine(1)) {
            float* key = q.s.index_key + t * I;
            layer_norm(key, w.index_norm, w.index_bias, I, key);
            anychip_rope(1, I, 1, half, w.index_form, 1.0f, key, cos, sin, q.b.index_entry + p.entry(t) * I);
        }
    }
}

void latent_attention(const Pass& q) {
    const BlockWeights& w = q.w;
    const BlockPlan& p = q.p;
    const int64_t T = p.tokens, H = w.heads, width = w.query_width(), rotated = 2 * p.half, rows = w.nope + w.value;
    project_latents(q);
    keep_entries(q);
    const float* latent = q.o.normed;
    if (w.latent) {
        anychip_norm_rope(T, w.latent, 1, 0, 0, w.latent_eps, q.s.latent, w.q_norm, nullptr, nullptr, q.o.latent, nullptr);
        latent = q.o.latent;
    }
    const int64_t inputs = w.latent ? w.latent : w.d;
    const Product jobs[2] = {q.product(w.wq_b, latent, H * width, inputs, q.s.query),
                             q.product(w.index_wq_b, latent, w.index_heads * w.index_channels, inputs, q.s.index_query)};
    products(q.team, jobs, q.sparse() ? 2 : 1, T);
    q.team.sync();
    for (int64_t h = q.team.from(H); h < q.team.to(H); h++)
        for (int64_t t = 0; t < T; t++) {
            const float* from = q.s.query + (t * H + h) * width;
            float* to = q.s.absorbed + (t * H + h) * w.channels;
            times_rows(from, w.wkv_b + h * rows * w.rank, w.nope, w.rank, to);
            anychip_rope(1, rotated, 1, p.half, 0, 1.0f, from + w.nope, p.cos + t * p.half, p.sin + t * p.half, to + w.rank);
        }
    q.team.sync();
    if (q.sparse()) select_entries(q);
    attend_all(q, q.s.absorbed);
    std::vector<Product> values;
    for (int64_t h = 0; h < H; h++)
        values.push_back({w.wkv_b + (h * rows + w.nope) * w.rank, q.o.out + h * w.rank, H * w.rank, w.value, w.rank,
                          q.s.mixed + h * w.value, H * w.value, {nullptr, 0}});
    products(q.team, values.data(), H, T);
    q.team.sync();
}

}  // namespace
