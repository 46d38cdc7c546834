// One layer of a pass: its weights, its state, and the memory that its steps hand to each other.
#pragma once
#include "batch_product.h"
#include "index_rough.h"
#include "norm.h"

extern "C" {
void anychip_hc_pre_mixed(int, int64_t, int64_t, int, float, float, const float*, const float*, const float*, const float*,
                          float*, float*, float*);
void anychip_hc_post(int, int64_t, int64_t, const float*, const float*, const float*, const float*, float*);
void anychip_hc_head(int, int64_t, int64_t, float, float, const float*, const float*, const float*, const float*, float*,
                     float*, float*);
void anychip_compress(int64_t, int64_t, int64_t, int64_t, const float*, const float*, const float*, const int32_t*,
                      const int32_t*, float*, float*);
void anychip_route(int64_t, int64_t, int64_t, const RouteRule*, const float*, const float*, const int64_t*, int64_t*, float*);
}

namespace {

// As anychip_norm_rope and anychip_rope, by this thread alone: a parallel region within one costs more than a row.
INLINE void norm_rope(int64_t count, int64_t channels, int heads, int half, float eps, const float* x, const float* weight,
                      const float* cos, const float* sin, float* y) {
    const Rows r = {count, channels, heads, half, eps, 1.0f, cos, sin};
    for (int64_t row = 0; row < count; row++) norm_rope_row(r, row, x, weight, y);
}

INLINE void rope(int64_t count, int64_t channels, int half, float sign, const float* x, const float* cos, const float* sin,
                 float* y) {
    const Rows r = {count, channels, (int)count, half, 0.0f, sign, cos, sin};
    for (int64_t row = 0; row < count; row++) rope_row(r, row, x, y);
}

// Shared by the threads; every step writes its own tokens' rows.
struct Memory {
    float *streams, *x, *normed, *mix, *post, *comb, *latent, *query, *kv, *value, *gate, *index_value, *index_gate, *proj,
        *index_query, *turned, *mixed, *y, *logits, *weight, *hidden, *rows, *parts, *score, *best;
    int64_t *ids, *pairs, *offset;
    int32_t* selected;

    // The largest of any layer. `few`: steps of one token are shared out too.
    Memory(Arena& a, const BlockWeights& w, int64_t T, int64_t most, bool few) {
        const int64_t n = w.streams, pairs_ = T * (w.topk + 1), panels = (w.heads + 7) / 8;
        streams = a.take(T * n * w.d), x = a.take(T * w.d), normed = a.take(T * w.d);
        mix = a.take(T * n * (n + 2)), post = a.take(T * n), comb = a.take(T * n * n);
        latent = a.take(T * w.latent), query = a.take(T * w.heads * w.channels), kv = a.take(T * w.channels);
        value = a.take(T * 2 * w.channels), gate = a.take(T * 2 * w.channels);
        index_value = a.take(T * 2 * w.index_channels), index_gate = a.take(T * 2 * w.index_channels);
        proj = a.take(T * w.index_heads), index_query = a.take(T * w.index_heads * w.index_channels);
        turned = a.take(T * w.heads * w.channels), mixed = a.take(T * w.groups * w.group_out);
        y = a.take(T * w.d), logits = a.take(T * w.experts), weight = a.take(T * w.topk);
        hidden = a.take(pairs_ * w.width), rows = a.take(pairs_ * w.d);
        parts = a.take(few ? T * panels * 2 * 8 * (w.channels + 2) : 0);
        score = a.take(few ? T * rough::units(most) * rough::UNIT : 0);
        best = a.take(few ? T * rough::units(most) * rough::MAXIMA : 0);
        ids = reinterpret_cast<int64_t*>(a.take(2 * T * w.topk));
        pairs = reinterpret_cast<int64_t*>(a.take(2 * pairs_));
        offset = reinterpret_cast<int64_t*>(a.take(2 * (w.experts + 2)));
        selected = reinterpret_cast<int32_t*>(a.take(few ? T * w.index_topk : 0));
    }
};

struct Layer {
    const BatchModel& m;
    const BlockWeights& w;
    const BatchState& state;
    const LayerState& at;
    const Batch& b;
    const Order& order;
    const Memory& s;
    Crew crew;
    int64_t counter;  // the first of this layer's
    bool few;         // so few tokens that one token's steps are shared out

    bool csa() const { return w.ratio == 4; }
    int64_t width(int64_t channels) const { return csa() ? 2 * channels : channels; }
    const float* cos(int64_t position) const { return (w.ratio ? m.far_cos : m.near_cos) + position * m.half; }
    const float* sin(int64_t position) const { return (w.ratio ? m.far_sin : m.near_sin) + position * m.half; }
    Product product(const float* w_, const float* x, int64_t rows, int64_t inputs, float* y) const {
        return {w_, x, inputs, rows, inputs, y, rows};
    }
    // This thread's tokens.
    int64_t from() const { return crew.from(b.tokens); }
    int64_t to() const { return crew.to(b.tokens); }
    int64_t visible(int64_t t) const { return w.ratio ? (order.position[t] + 1) / w.ratio : 0; }

    float* slot(int64_t sequence, int64_t offset) const { return state.slots + b.slots[sequence] * state.slot_step + offset; }
    // Row of an old or new position: `fresh` has this pass's rows, the ring the `size` rows before them.
    const float* row(int64_t sequence, int64_t position, int64_t offset, int64_t size, int64_t width_, const float* fresh) const {
        const int64_t ahead = position - b.starts[sequence];
        if (ahead >= 0) return fresh + (order.first[sequence] + ahead) * width_;
        return slot(sequence, offset) + position % size * width_;
    }
    // Of an entry among those of all blocks.
    int64_t entry_row(int64_t sequence, int64_t e) const {
        const int64_t per_block = 128 / w.ratio;
        return b.tables[sequence * b.table_step + e / per_block] * per_block + e % per_block;
    }
    float* entry(int64_t sequence, int64_t e, int64_t offset, int64_t channels) const {
        return state.blocks + offset + entry_row(sequence, e) * channels;
    }
    // Rows of this pass that a ring must keep, after all have read it.
    void keep(int64_t sequence, int64_t offset, int64_t size, int64_t width_, const float* fresh) const {
        const int64_t end = b.starts[sequence] + b.lengths[sequence];
        for (int64_t p = std::max(b.starts[sequence], end - size); p < end; p++)
            std::memcpy(slot(sequence, offset) + p % size * width_, row(sequence, p, offset, size, width_, fresh),
                        sizeof(float) * width_);
    }
};

}  // namespace
