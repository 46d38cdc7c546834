// The block's indexer: scores of the visible entries, shared out among the threads, and each token's choice of them.
#pragma once
#include "block_pass.h"

namespace {

// Whether a token has so many entries, the first rows of the state, that a rough scan of their copies comes first.
bool scans(const Pass& q, int64_t t) {
    return q.b.rough && q.p.visible_start[t] == 0 && q.p.visible_count[t] >= rough::LEAST * q.w.index_topk;
}

// The copies of all rows that a token sees.
void copy_keys(const Pass& q) {
    const int64_t C = q.w.index_channels, known = *q.b.roughened;
    int64_t seen = known;
    for (int64_t t = 0; t < q.p.tokens; t++)
        if (scans(q, t)) seen = std::max<int64_t>(seen, q.p.visible_count[t]);
    for (int64_t row = known + q.team.from(seen - known); row < known + q.team.to(seen - known); row++)
        rough::keep(q.b.index_entry + row * C, C, q.b.rough, row);
    q.team.sync();
    if (!q.team.me) *q.b.roughened = seen;
}

// A token's scores, or with a rough scan their upper and the best lower ends.
void score_entries(const Pass& q, int64_t t, const Indexer& x, const float* panels) {
    const int64_t stride = rough::units(q.p.most) * rough::UNIT, count = q.p.visible_count[t], C = x.channels;
    float* score = q.s.index_score + t * stride;
    if (!scans(q, t)) {
        const int64_t from = q.team.from(count), to = q.team.to(count);
        return score_token(x, 0, panels, q.p.visible_start[t] + from, to - from, score + from);
    }
    const int64_t units = rough::units(count);
    rough::Query(x.heads, C, panels, x.weight)
        .scan([&](int64_t g) { return q.b.rough + g * rough::group_bytes(C); }, count, q.team.from(units), q.team.to(units),
              {score, q.s.index_best + t * rough::units(q.p.most) * rough::MAXIMA});
}

// shared.selected: the entries that each token attends to.
void select_entries(const Pass& q) {
    const BlockWeights& w = q.w;
    const BlockPlan& p = q.p;
    const int64_t H = w.index_heads, C = w.index_channels, size = index_lanes(H) * C;
    anychip_rope(p.tokens * H, C, H, p.half, w.index_form, 1.0f, q.s.index_query, p.cos, p.sin, q.o.index_query);
    for (int64_t i = 0; i < p.tokens * H; i++) q.o.index_weight[i] = q.s.proj[i] * (float)w.index_scale;
    if (q.b.rough) copy_keys(q);
    const auto indexer = [&](int64_t t) { return Indexer{H, C, nullptr, q.o.index_weight + t * H, q.b.index_entry}; };
    for (int64_t t = 0; t < p.tokens; t++) {
        for (int64_t h = 0; h < H; h += INDEX_LANES)
            to_panel(q.o.index_query + (t * H + h) * C, std::min(INDEX_LANES, H - h), C, q.o.index_panel + t * size + h * C);
        score_entries(q, t, indexer(t), q.o.index_panel + t * size);
    }
    q.team.sync();
    std::vector<uint32_t> keys, ties;
    for (int64_t t = 0; t < p.tokens; t++) {
        if (!q.team.mine(t)) continue;
        float* score = q.s.index_score + t * rough::units(p.most) * rough::UNIT;
        int32_t* chosen = q.s.selected + t * w.index_topk;
        if (scans(q, t))
            rough::select_best(indexer(t), q.o.index_panel + t * size,
                               {score, q.s.index_best + t * rough::units(p.most) * rough::MAXIMA}, p.visible_count[t],
                               w.index_topk, [&](int64_t k) { return q.b.index_entry + k * C; }, chosen);
        else select(score, p.visible_count[t], p.visible_start[t], w.index_topk, keys, ties, chosen);
    }
    q.team.sync();
}

}  // namespace
