// A token's attention: its window and its entries are two parts, each with its own softmax, joined with the sink.
#pragma once
#include <cmath>

#include "batch_layer.h"
#include "index.h"
#include "rows.h"
#include "tile.h"

namespace {

// What a thread keeps from token to token.
struct Spare {
    std::vector<const float*> rows;
    std::vector<float> query, panel, score, parts, index_panel, index_score, index_best, index_query, index_weight;
    std::vector<uint32_t> keys, ties;
    std::vector<int32_t> selected;

    // Room for one more kind of layer.
    void fit(const BlockWeights& w, int64_t most, bool few) {
        const auto grow = [](auto& memory, int64_t size) { if ((int64_t)memory.size() < size) memory.resize(size); };
        grow(query, w.heads * w.channels), grow(panel, w.channels * 8);
        grow(parts, (w.heads + 7) / 8 * 2 * 8 * (w.channels + 2));
        grow(index_panel, index_lanes(w.index_heads) * w.index_channels), grow(index_query, w.index_heads * w.index_channels);
        grow(index_weight, w.index_heads), grow(selected, w.index_topk);
        const int64_t units = few ? 0 : rough::units(most);
        grow(index_score, units * rough::UNIT), grow(index_best, units * rough::MAXIMA);
    }
};

void near_rows(const Layer& q, int64_t t, std::vector<const float*>& rows) {
    const int64_t p = q.order.position[t], s = q.order.sequence[t];
    rows.clear();
    for (int64_t i = std::max<int64_t>(0, p + 1 - q.m.window); i <= p; i++)
        rows.push_back(q.row(s, i, q.at.window, q.m.window, q.w.channels, q.s.kv));
}

// All visible entries, or the chosen ones; whole blocks' pointers follow each other.
void far_rows(const Layer& q, int64_t t, const int32_t* selected, std::vector<const float*>& rows) {
    const int64_t s = q.order.sequence[t], count = q.visible(t);
    rows.clear();
    if (q.csa() && count > q.w.index_topk) {
        for (int64_t k = 0; k < q.w.index_topk; k++) rows.push_back(q.entry(s, selected[k], q.at.entry, q.w.channels));
        return;
    }
    for (int64_t e = 0; e < count; e++) rows.push_back(q.entry(s, e, q.at.entry, q.w.channels));
}

// part = top, sum, values [channels], for eight heads in the lanes.
void attend(const Layer& q, const float* query, int64_t head, const std::vector<const float*>& rows, Spare& o, float* part) {
    const int64_t C = q.w.channels, heads = std::min<int64_t>(8, q.w.heads - head), count = rows.size();
    const float scale = 1.0f / std::sqrt((float)C);
    for (int64_t c = 0; c < C; c += 8) {
        f8 block[8];
        for (int i = 0; i < 8; i++) block[i] = i < heads ? load8(query + (head + i) * C + c) * scale : all8(0.0f);
        transpose8(block);
        for (int i = 0; i < 8; i++) store8(&o.panel[(c + i) * 8], block[i]);
    }
    if ((int64_t)o.score.size() < count * 8) o.score.resize(count * 8);
    all_dots<1>(rows.data(), count, C, o.panel.data(), o.score.data());
    f8 top = all8(-INFINITY), sum = {};
    for (int64_t k = 0; k < count; k++) top = larger8(top, load8(&o.score[k * 8]));
    for (int64_t k = 0; k < count; k++) {
        f8 e = exp8(load8(&o.score[k * 8]) - top);
        sum += e;
        store8(&o.score[k * 8], e);
    }
    store8(part, top);
    store8(part + 8, sum);
    mix_all<1>(rows.data(), count, C, o.score.data(), part + 16);
}

// out[head .. head+7][C] from the two parts.
void join(const Layer& q, int64_t head, const float* parts, float* out) {
    const int64_t C = q.w.channels, heads = std::min<int64_t>(8, q.w.heads - head), step = 8 * (C + 2);
    const f8 sink = load_part(q.w.sink + head, heads), near_top = load8(parts), far_top = load8(parts + step);
    const f8 top = larger8(larger8(sink, near_top), far_top);
    f8 near = exp8(near_top - top), far = exp8(far_top - top);
    f8 sum = exp8(sink - top);
    sum += near * load8(parts + 8);
    sum += far * load8(parts + step + 8);
    const f8 inverse = 1.0f / sum;
    near *= inverse, far *= inverse;
    for (int64_t c = 0; c < C; c += 8) {
        f8 block[8];
        for (int j = 0; j < 8; j++) {
            block[j] = load8(parts + 16 + (c + j) * 8) * near;
            block[j] += load8(parts + step + 16 + (c + j) * 8) * far;
        }
        transpose8(block);
        for (int j = 0; j < heads; j++) store8(out + (head + j) * C + c, block[j]);
    }
}

void turn_query(const Layer& q, int64_t t, Spare& o) {
    const int64_t p = q.order.position[t], size = q.w.heads * q.w.channels;
    norm_rope(q.w.heads, q.w.channels, q.w.heads, q.m.half, q.w.eps, q.s.query + t * size, nullptr, q.cos(p), q.sin(p),
                      o.query.data());
}

void finish(const Layer& q, int64_t t, const float* parts, Spare& o) {
    const int64_t p = q.order.position[t], C = q.w.channels, step = 2 * 8 * (C + 2);
    for (int64_t g = 0; g * 8 < q.w.heads; g++) join(q, g * 8, parts + g * step, o.query.data());
    rope(q.w.heads, C, q.m.half, -1.0f, o.query.data(), q.cos(p), q.sin(p), q.s.turned + t * q.w.heads * C);
}

void attend_part(const Layer& q, int64_t t, int64_t part, const int32_t* selected, Spare& o, float* parts) {
    part ? far_rows(q, t, selected, o.rows) : near_rows(q, t, o.rows);
    const int64_t step = 8 * (q.w.channels + 2);
    for (int64_t g = 0; g * 8 < q.w.heads; g++) attend(q, o.query.data(), g * 8, o.rows, o, parts + (2 * g + part) * step);
}

// The indexer's query and weights of a token, ready for scores.
void index_query(const Layer& q, int64_t t, Spare& o) {
    const int64_t H = q.w.index_heads, C = q.w.index_channels, p = q.order.position[t];
    rope(H, C, q.m.half, 1.0f, q.s.index_query + t * H * C, q.cos(p), q.sin(p), o.index_query.data());
    for (int64_t h = 0; h < H; h++) o.index_weight[h] = q.s.proj[t * H + h] * (float)q.w.index_scale;
    for (int64_t h = 0; h < H; h += INDEX_LANES)
        to_panel(o.index_query.data() + h * C, std::min(INDEX_LANES, H - h), C, o.index_panel.data() + h * C);
}

bool scans(const Layer& q, int64_t t) { return q.at.rough && q.visible(t) >= rough::LEAST * q.w.index_topk; }

// A part's entries of a token: scores, block by block, or with a rough scan their upper and the best lower ends.
void score_entries(const Layer& q, int64_t t, const Crew& crew, Spare& o, const rough::Found& found) {
    const int64_t H = q.w.index_heads, C = q.w.index_channels, per_block = 128 / q.w.ratio, s = q.order.sequence[t];
    const int64_t count = q.visible(t);
    if (scans(q, t)) {
        const int64_t units = rough::units(count);
        const auto group = [&](int64_t g) {
            return q.at.rough + q.entry_row(s, g * rough::GROUP) / rough::GROUP * rough::group_bytes(C);
        };
        rough::Query(H, C, o.index_panel.data(), o.index_weight.data())
            .scan(group, count, crew.from(units), crew.to(units), found);
        return;
    }
    for (int64_t e = crew.from(count), to = crew.to(count); e < to;) {
        const int64_t end = std::min(to, (e / per_block + 1) * per_block);
        const Indexer x{H, C, nullptr, o.index_weight.data(), q.entry(s, e, q.at.index_entry, C)};
        score_token(x, 0, o.index_panel.data(), 0, end - e, found.upper + e);
        e = end;
    }
}

// The entries that a token attends to.
void choose(const Layer& q, int64_t t, Spare& o, const rough::Found& found, int32_t* selected) {
    const int64_t C = q.w.index_channels, count = q.visible(t), topk = q.w.index_topk;
    if (!scans(q, t)) return select(found.upper, count, 0, topk, o.keys, o.ties, selected);
    const auto key = [&](int64_t e) { return q.entry(q.order.sequence[t], e, q.at.index_entry, C); };
    index_query(q, t, o);
    rough::select_best({q.w.index_heads, C, nullptr, o.index_weight.data(), nullptr}, o.index_panel.data(), found, count, topk,
                       key, selected);
}

// One token after the other, each by one thread.
void attention_of_many(const Layer& q, Spare& o) {
    for (int64_t t; (t = q.crew.take(q.counter)) < q.b.tokens;) {
        const int64_t count = q.visible(t);
        if (q.csa() && count > q.w.index_topk) {
            const rough::Found found{o.index_score.data(), o.index_best.data()};
            index_query(q, t, o);
            score_entries(q, t, {0, 1, nullptr}, o, found);
            choose(q, t, o, found, o.selected.data());
        }
        turn_query(q, t, o);
        for (int64_t part = 0; part < 2; part++) attend_part(q, t, part, o.selected.data(), o, o.parts.data());
        finish(q, t, o.parts.data(), o);
    }
}

// A few tokens: their keys are shared out too.
void attention_of_few(const Layer& q, int64_t most, Spare& o) {
    const int64_t T = q.b.tokens, topk = q.w.index_topk, size = (q.w.heads + 7) / 8 * 2 * 8 * (q.w.channels + 2);
    if (q.csa() && most > topk) {
        const int64_t units = rough::units(most);
        const auto found = [&](int64_t t) {
            return rough::Found{q.s.score + t * units * rough::UNIT, q.s.best + t * units * rough::MAXIMA};
        };
        for (int64_t t = 0; t < T; t++)
            if (q.visible(t) > topk) {
                index_query(q, t, o);
                score_entries(q, t, q.crew, o, found(t));
            }
        q.crew.sync();
        for (int64_t t = q.crew.me; t < T; t += q.crew.count)
            if (q.visible(t) > topk) choose(q, t, o, found(t), q.s.selected + t * topk);
        q.crew.sync();
    }
    for (int64_t i; (i = q.crew.take(q.counter)) < 2 * T;) {
        const int64_t t = i / 2;
        turn_query(q, t, o);
        attend_part(q, t, i % 2, q.s.selected + t * topk, o, q.s.parts + t * size);
    }
    q.crew.sync();
    for (int64_t t = q.from(); t < q.to(); t++) finish(q, t, q.s.parts + t * size, o);
}

}  // namespace
