// The block's attention: each thread scores and mixes its part of a token's keys for eight heads, then the parts are joined.
#pragma once
#include "block_pass.h"

namespace {

struct Span {
    const float* rows;
    int64_t count;
};

// A token's keys that are this thread's: a part of its window, then a part of its entries.
void own_keys(const Pass& q, int64_t t, Span* spans) {
    const BlockWeights& w = q.w;
    const int64_t near = q.p.window_count[t], C = w.channels;
    const int32_t* chosen = q.s.selected + t * w.index_topk;
    int64_t far = w.ratio ? q.p.visible_count[t] : 0;
    if (q.sparse()) far = std::find(chosen, chosen + w.index_topk, -1) - chosen;
    const int64_t from = q.team.from(near + far), to = q.team.to(near + far);
    const int64_t a = std::max<int64_t>(from - near, 0), b = std::max<int64_t>(to - near, 0);
    spans[0] = {q.b.window + (q.p.window_start[t] + std::min(from, near)) * C, std::min(to, near) - std::min(from, near)};
    spans[1] = {nullptr, b - a};
    if (far && !q.sparse()) spans[1].rows = q.b.entry + (q.p.visible_start[t] + a) * C;
    if (!q.sparse()) return;
    for (int64_t k = a; k < b; k++) std::memcpy(q.o.gathered + (k - a) * C, q.b.entry + chosen[k] * C, sizeof(float) * C);
    spans[1].rows = q.o.gathered;
}

void score_keys(const Span& keys, int64_t channels, const float* panel, float* score) {
    int64_t k = 0;
    for (; k + 12 <= keys.count; k += 12) tile<12, 1>(channels, keys.rows + k * channels, channels, 1, panel, 8, score + k * 8, 8, false);
    for (; k + 4 <= keys.count; k += 4) tile<4, 1>(channels, keys.rows + k * channels, channels, 1, panel, 8, score + k * 8, 8, false);
    for (; k < keys.count; k++) tile<1, 1>(channels, keys.rows + k * channels, channels, 1, panel, 8, score + k * 8, 8, false);
}

void add_values(const Span& keys, int64_t channels, const float* weight, float* out) {
    for (int64_t k = 0; k < keys.count; k += 32) {
        const int64_t n = std::min<int64_t>(32, keys.count - k);
        for (int64_t c = 0; c < channels; c += 8)
            tile<8, 1>(n, keys.rows + k * channels + c, 1, channels, weight + k * 8, 8, out + c * 8, 8, true);
    }
}

// This thread's keys of one token for eight heads (the lanes): part = top, sum, then values [channels], by lane.
void attend(const Pass& q, int64_t t, int64_t head, const Span* spans, float* part) {
    const int64_t C = q.w.channels, heads = std::min<int64_t>(8, q.w.heads - head), count = spans[0].count + spans[1].count;
    const float scale = 1.0f / std::sqrt((float)C), *query = q.o.query + (t * q.w.heads + head) * C;
    for (int64_t c = 0; c < C; c += 8) {
        f8 block[8];
        for (int i = 0; i < 8; i++) block[i] = i < heads ? load8(query + i * C + c) * scale : all8(0.0f);
        transpose8(block);
        for (int i = 0; i < 8; i++) store8(q.o.panel + (c + i) * 8, block[i]);
    }
    float* far = q.o.score + spans[0].count * 8;
    score_keys(spans[0], C, q.o.panel, q.o.score);
    score_keys(spans[1], C, q.o.panel, far);
    f8 top = all8(-INFINITY), sum = {};
    for (int64_t k = 0; k < count; k++) top = larger8(top, load8(q.o.score + k * 8));
    for (int64_t k = 0; k < count; k++) {
        f8 e = exp8(load8(q.o.score + k * 8) - top);
        sum += e;
        store8(q.o.score + k * 8, e);
    }
    store8(part, top);
    store8(part + 8, sum);
    std::fill(part + 16, part + 16 + 8 * C, 0.0f);
    add_values(spans[0], C, q.o.score, part + 16);
    add_values(spans[1], C, far, part + 16);
}

// Join the threads' parts of eight heads, with the sink, into own.out.
void join_parts(const Pass& q, int64_t t, int64_t head, const float* parts, int64_t step) {
    const int64_t C = q.w.channels, heads = std::min<int64_t>(8, q.w.heads - head), n = q.team.count;
    f8 top = load_part(q.w.sink + head, heads), sum;
    const f8 sink = top;
    for (int64_t i = 0; i < n; i++) top = larger8(top, load8(parts + i * step));
    sum = exp8(sink - top);
    for (int64_t i = 0; i < n; i++) sum += exp8(load8(parts + i * step) - top) * load8(parts + i * step + 8);
    f8 inverse = 1.0f / sum;
    float* out = q.o.out + (t * q.w.heads + head) * C;
    for (int64_t c = 0; c < C; c += 8) {
        f8 block[8] = {};
        for (int64_t i = 0; i < n; i++) {
            f8 factor = exp8(load8(parts + i * step) - top) * inverse;
            for (int j = 0; j < 8; j++) block[j] += load8(parts + i * step + 16 + (c + j) * 8) * factor;
        }
        transpose8(block);
        for (int j = 0; j < heads; j++) store8(out + j * C + c, block[j]);
    }
}

void attention(const Pass& q) {
    const BlockWeights& w = q.w;
    const int64_t T = q.p.tokens, panels = (w.heads + 7) / 8, size = 8 * (w.channels + 2), step = T * panels * size;
    anychip_norm_rope(T * w.heads, w.channels, w.heads, q.p.half, 0, w.eps, q.s.query, nullptr, q.p.cos, q.p.sin, q.o.query, nullptr);
    for (int64_t t = 0; t < T; t++) {
        Span spans[2];
        own_keys(q, t, spans);
        for (int64_t g = 0; g < panels; g++) attend(q, t, g * 8, spans, q.s.parts + q.team.me * step + (t * panels + g) * size);
    }
    q.team.sync();
    for (int64_t t = 0; t < T; t++)
        for (int64_t g = 0; g < panels; g++) join_parts(q, t, g * 8, q.s.parts + (t * panels + g) * size, step);
    anychip_rope(T * w.heads, w.channels, w.heads, q.p.half, 0, -1.0f, q.o.out, q.p.cos, q.p.sin, q.o.turned);
}

}  // namespace
