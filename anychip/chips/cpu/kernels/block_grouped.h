// The block's grouped-query attention: keys and values of all tokens lie in the state, heads of keys side by side.
#pragma once
#include "block_attention.h"
#include "norm.h"

namespace {

void grouped_attention(const Pass& q) {
    const BlockWeights& w = q.w;
    const BlockPlan& p = q.p;
    const int64_t T = p.tokens, G = w.kv_heads, C = w.channels, half = p.half;
    const float* x = q.o.normed;
    const Product jobs[3] = {q.product(w.wq_b, x, w.heads * C, w.d, q.s.query), q.product(w.wkv, x, G * C, w.d, q.s.kv),
                             {w.wv, x, w.d, G * C, w.d, q.b.values, G * C, p.entry}};
    products(q.team, jobs, 3, T);
    q.team.sync();
    if (q.team.mine(0))
        for (int64_t t = 0; t < T; t++)
            anychip_norm_rope(G, C, G, half, HALVES, w.eps, q.s.kv + t * G * C, w.kv_norm, p.cos + t * half, p.sin + t * half,
                              q.b.entry + p.entry(t) * G * C, nullptr);
    anychip_norm_rope(T * w.heads, C, w.heads, half, HALVES, w.eps, q.s.query, w.q_norm, p.cos, p.sin, q.o.query, nullptr);
    q.team.sync();
    attend_all(q, q.o.query);
}

}  // namespace
