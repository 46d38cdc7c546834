// The block's indexer: scores of the visible entries, shared out among the threads, and each token's choice of them.
#pragma once
#include "block_pass.h"

namespace {

// shared.selected: the entries that each token attends to.
void select_entries(const Pass& q) {
    const BlockWeights& w = q.w;
    const BlockPlan& p = q.p;
    const int64_t size = w.index_heads * w.index_channels;
    anychip_rope(p.tokens * w.index_heads, w.index_channels, w.index_heads, p.half, w.index_form, 1.0f, q.s.index_query, p.cos, p.sin,
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

}  // namespace
