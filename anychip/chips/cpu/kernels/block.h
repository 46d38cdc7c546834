// What a whole block of a few tokens works on: its weights, one layer's buffers of the decode state, the pass's plan,
// and memory to work in. The first three are filled by block.py field by field, in this order; each field is 8 bytes.
#pragma once
#include <cstdint>

#include "index_rough.h"
#include "route.h"

constexpr int64_t COMPRESSED = 0, GROUPED = 1, LATENT = 2;  // kinds of attention: V4's, GQA, MLA

// `channels` are those of a row that is attended to: a V4 entry, one of kv_heads keys, a latent with its rotated key.
// `streams` is 1 where the residual is a plain sum. `experts` 0: one dense SwiGLU of shared_width.
struct BlockWeights {
    int64_t d, streams, iters, heads, channels, latent, groups, group_out, ratio, experts, topk, width, vocab;
    int64_t index_heads, index_channels, index_topk, kind, kv_heads, nope, value, rank, shared_width, index_form;
    RouteRule rule;
    double eps, hc_eps, limit, route_scale, index_scale, scale, latent_eps;
    const float *attn_fn, *attn_base, *attn_scale, *attn_norm, *ffn_fn, *ffn_base, *ffn_scale, *ffn_norm;
    const float *wq_a, *q_norm, *wq_b, *wkv, *kv_norm, *wo_a, *wo_b, *sink;
    const float *pool_wkv, *pool_wgate, *pool_norm, *pool_ape;                          // null where ratio is 0
    const float *index_wq_b, *index_proj, *index_wkv, *index_wgate, *index_norm, *index_ape;  // null unless it selects
    const float *gate, *bias;
    const int64_t* table;  // expert ids by token id, or null
    const float *w13, *w2, *shared_w1, *shared_w3, *shared_w2;
    const float *wv, *wkv_b, *index_bias;

    int64_t query_width() const { return kind == LATENT ? nope + channels - rank : channels; }  // of a head, as projected
    int64_t values() const { return kind == LATENT ? rank : channels; }
    int64_t together() const { return heads / kv_heads; }  // heads that read one row
    int64_t panels() const { return kv_heads * ((together() + 7) / 8); }
    int64_t hidden() const { return topk * width + shared_width; }
};

struct LayerBuffers {
    float *window, *value, *gate, *entry, *index_value, *index_gate, *index_entry;
    float* values;  // of GROUPED, whose keys are the entries
    uint8_t* rough;  // copies of the indexer's keys for index_rough.h, of the first *roughened rows; or null
    int64_t* roughened;
};

// Where a pass's rows go in a buffer: rows[i], or first + i where rows is null.
struct Targets {
    const int64_t* rows;
    int64_t first;
    int64_t operator()(int64_t i) const { return rows ? rows[i] : first + i; }
};

struct BlockPlan {
    int64_t tokens, half, entries, most;  // angles a token; windows that close; most entries that a token sees
    const float *cos, *sin;
    const int32_t *window_start, *window_count;
    const int32_t *first, *previous;  // of the windows that close
    const float *entry_cos, *entry_sin;
    const int32_t *visible_start, *visible_count;
    Targets window, token, entry;
};

// Memory handed out piece by piece, each on its own cache lines; with no base it only counts.
struct Arena {
    float* base;
    int64_t used = 0;
    float* take(int64_t count) {
        float* piece = base ? base + used : nullptr;
        used += (count + 15) / 16 * 16;
        return piece;
    }
};

// What one thread writes and all read after a barrier.
struct Shared {
    float *mix, *latent, *kv, *proj, *query, *absorbed, *index_query, *index_key, *index_score, *index_best, *parts, *mixed, *y,
        *logits, *hidden;
    int32_t* selected;

    Shared(Arena& a, const BlockWeights& w, const BlockPlan& p, int64_t threads) {
        const int64_t T = p.tokens;
        mix = a.take(T * w.streams * (w.streams + 2));
        latent = a.take(T * w.latent);
        kv = a.take(T * w.kv_heads * w.channels);
        proj = a.take(T * w.index_heads);
        query = a.take(T * w.heads * w.query_width());
        absorbed = a.take(w.kind == LATENT ? T * w.heads * w.channels : 0);
        index_query = a.take(T * w.index_heads * w.index_channels);
        index_key = a.take(w.kind == LATENT ? T * w.index_channels : 0);
        index_score = a.take(w.index_heads ? T * rough::units(p.most) * rough::UNIT : 0);
        index_best = a.take(w.index_heads ? T * rough::units(p.most) * rough::MAXIMA : 0);
        selected = reinterpret_cast<int32_t*>(a.take(T * w.index_topk));
        parts = a.take(threads * T * w.panels() * 8 * (w.channels + 2));
        mixed = a.take(T * (w.kind == LATENT ? w.heads * w.value : w.groups * w.group_out));
        y = a.take(T * w.d);
        logits = a.take(T * w.experts);
        hidden = a.take(T * w.hidden());
    }
};

// What every thread keeps for itself; short steps are done by all of them alike, which is cheaper than to share.
struct Own {
    float *x, *normed, *post, *comb, *streams, *latent, *query, *index_query, *index_weight, *index_panel, *panel, *score,
        *gathered, *out, *turned, *weight, *pooled;
    int64_t *ids, *given;

    Own(Arena& a, const BlockWeights& w, const BlockPlan& p, int64_t longest) {
        const int64_t T = p.tokens, n = w.streams, head = T * w.heads * w.channels;
        x = a.take(T * w.d), normed = a.take(T * w.d), post = a.take(T * n), comb = a.take(T * n * n);
        streams = a.take(T * n * w.d), latent = a.take(T * w.latent), query = a.take(head);
        index_query = a.take(T * w.index_heads * w.index_channels), index_weight = a.take(T * w.index_heads);
        index_panel = a.take(T * index_lanes(w.index_heads) * w.index_channels);
        panel = a.take(w.channels * 8), score = a.take(longest * 8), gathered = a.take(w.index_topk * w.channels);
        out = a.take(head), turned = a.take(head), weight = a.take(T * w.topk);
        pooled = a.take(p.entries * w.channels);
        ids = reinterpret_cast<int64_t*>(a.take(2 * T * w.topk));
        given = reinterpret_cast<int64_t*>(a.take(2 * T * w.topk));
    }
};
