// The block's attention: each thread scores and mixes its part of a token's keys for eight heads, then the parts are joined.
#pragma once
#include "block_pass.h"

namespace {

// Rows that are read: keys and values, each so many floats apart.
struct Span {
    const float *key, *value;
    int64_t key_step, value_step, count;
};

constexpr int64_t FEW_KEYS = 16;  // from so many on attend_few has the memory that it needs

// Up to eight heads of one token that read the same rows.
struct Reader {
    const float* query;  // [heads][channels]
    int64_t heads, channels, values;
    float scale;
    const float* sink;  // or null
};

// A token's keys that are this thread's: a part of its window, then a part of its entries.
void own_keys(const Pass& q, int64_t t, Span* spans) {
    const BlockWeights& w = q.w;
    const int64_t near = w.kind == COMPRESSED ? q.p.window_count[t] : 0, C = w.channels, all = w.kv_heads * C;
    const int32_t* chosen = q.s.selected + t * w.index_topk;
    int64_t far = w.ratio ? q.p.visible_count[t] : 0;
    if (q.sparse()) far = std::find(chosen, chosen + w.index_topk, -1) - chosen;
    const int64_t from = q.team.from(near + far), to = q.team.to(near + far);
    const int64_t a = std::max<int64_t>(from - near, 0), b = std::max<int64_t>(to - near, 0);
    const float* window = near ? q.b.window + (q.p.window_start[t] + std::min(from, near)) * C : nullptr;
    spans[0] = {window, window, C, C, std::min(to, near) - std::min(from, near)};
    spans[1] = {nullptr, nullptr, all, all, b - a};
    if (far && !q.sparse()) {
        spans[1].key = q.b.entry + (q.p.visible_start[t] + a) * all;
        spans[1].value = w.kind == GROUPED ? q.b.values + (q.p.visible_start[t] + a) * all : spans[1].key;
    }
    if (!q.sparse()) return;
    for (int64_t k = a; k < b; k++) std::memcpy(q.o.gathered + (k - a) * C, q.b.entry + chosen[k] * C, sizeof(float) * C);
    spans[1].key = spans[1].value = q.o.gathered;
}

void score_keys(const Span& keys, int64_t channels, const float* panel, float* score) {
    const int64_t step = keys.key_step;
    int64_t k = 0;
    for (; k + 12 <= keys.count; k += 12) tile<12, 1>(channels, keys.key + k * step, step, 1, panel, 8, score + k * 8, 8, false);
    for (; k + 4 <= keys.count; k += 4) tile<4, 1>(channels, keys.key + k * step, step, 1, panel, 8, score + k * 8, 8, false);
    for (; k < keys.count; k++) tile<1, 1>(channels, keys.key + k * step, step, 1, panel, 8, score + k * 8, 8, false);
}

void add_values(const Span& keys, int64_t values, const float* weight, float* out) {
    for (int64_t k = 0; k < keys.count; k += 32) {
        const int64_t n = std::min<int64_t>(32, keys.count - k);
        for (int64_t c = 0; c < values; c += 8)
            tile<8, 1>(n, keys.value + k * keys.value_step + c, 1, keys.value_step, weight + k * 8, 8, out + c * 8, 8, true);
    }
}

// score[h][k] = query_h . key_k for H heads, each query's channels in the lanes.
template <int H>
void score_rows(const Span& keys, int64_t channels, const float* query, float* score, int64_t stride) {
    int64_t k = 0;
    for (; k + 4 <= keys.count; k += 4) {
        f8 acc[H][4] = {};
        for (int64_t c = 0; c < channels; c += 8)
            for (int i = 0; i < 4; i++) {
                const f8 row = load8(keys.key + (k + i) * keys.key_step + c);
                for (int h = 0; h < H; h++) acc[h][i] += row * load8(query + h * channels + c);
            }
        for (int h = 0; h < H; h++) {
            const f4 four = sum8x4(acc[h][0], acc[h][1], acc[h][2], acc[h][3]);
            std::memcpy(score + h * stride + k, &four, sizeof four);
        }
    }
    for (; k < keys.count; k++)
        for (int h = 0; h < H; h++) {
            f8 acc = {};
            const float *key = keys.key + k * keys.key_step, *x = query + h * channels;
            for (int64_t c = 0; c < channels; c += 8) acc += load8(key + c) * load8(x + c);
            score[h * stride + k] = sum8(acc);
        }
}

// out[c][h] += sum over keys of weight[h][key] value[c], for 8 V channels from c.
template <int H, int V>
void add_rows(const Span& keys, int64_t c, const float* weight, int64_t stride, float* out) {
    f8 acc[H][V] = {};
    for (int64_t k = 0; k < keys.count; k++)
        for (int v = 0; v < V; v++) {
            const f8 value = load8(keys.value + k * keys.value_step + c + 8 * v);
            for (int h = 0; h < H; h++) acc[h][v] += weight[h * stride + k] * value;
        }
    for (int h = 0; h < H; h++)
        for (int i = 0; i < 8 * V; i++) out[(c + i) * 8 + h] += acc[h][i / 8][i % 8];
}

// attend for few heads: with one in each lane most lanes would be empty. The same part.
template <int H>
void attend_few(const Pass& q, const Reader& r, const Span* spans, float* part) {
    const int64_t C = r.channels, count = spans[0].count + spans[1].count, stride = (count + 7) / 8 * 8;
    float *query = q.o.panel, *score = q.o.score;
    std::fill(query, query + H * C, 0.0f);
    for (int64_t i = 0; i < r.heads * C; i++) query[i] = r.query[i] * r.scale;
    score_rows<H>(spans[0], C, query, score, stride);
    score_rows<H>(spans[1], C, query, score + spans[0].count, stride);
    for (int h = 0; h < 8; h++) part[h] = 0.0f, part[8 + h] = 1.0f;
    for (int h = 0; h < H; h++) {
        float* row = score + h * stride;
        std::fill(row + count, row + stride, -INFINITY);
        f8 top = load8(row), sum = {};
        for (int64_t k = 8; k < count; k += 8) top = larger8(top, load8(row + k));
        part[h] = *std::max_element(reinterpret_cast<float*>(&top), reinterpret_cast<float*>(&top) + 8);
        for (int64_t k = 0; k < count; k += 8) {
            const f8 e = exp8(load8(row + k) - part[h]);
            sum += e;
            store8(row + k, e);
        }
        part[8 + h] = sum8(sum);
    }
    std::fill(part + 16, part + 16 + 8 * r.values, 0.0f);
    for (int64_t c = 0; c < r.values; c += c + 32 <= r.values ? 32 : 8) {
        const float* weight = score;
        for (int s = 0; s < 2; weight += spans[s++].count)
            if (c + 32 <= r.values) add_rows<H, 4>(spans[s], c, weight, stride, part + 16);
            else add_rows<H, 1>(spans[s], c, weight, stride, part + 16);
    }
}

// This thread's keys of a reader, whose heads are the lanes: part = top, sum, then values, by lane.
void attend(const Pass& q, const Reader& r, const Span* spans, float* part) {
    const int64_t C = r.channels, count = spans[0].count + spans[1].count;
    if (r.heads <= 4 && count >= FEW_KEYS)
        return r.heads > 2 ? attend_few<4>(q, r, spans, part) : attend_few<2>(q, r, spans, part);
    for (int64_t c = 0; c < C; c += 8) {
        f8 block[8];
        for (int i = 0; i < 8; i++) block[i] = i < r.heads ? load8(r.query + i * C + c) * r.scale : all8(0.0f);
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
    std::fill(part + 16, part + 16 + 8 * r.values, 0.0f);
    add_values(spans[0], r.values, q.o.score, part + 16);
    add_values(spans[1], r.values, far, part + 16);
}

// Join the threads' parts of a reader, with the sink, into out [heads][values].
void join_parts(const Reader& r, int64_t n, const float* parts, int64_t step, float* out) {
    f8 top = r.sink ? load_part(r.sink, r.heads) : all8(-INFINITY), sum;
    const f8 sink = top;
    for (int64_t i = 0; i < n; i++) top = larger8(top, load8(parts + i * step));
    sum = exp8(sink - top);
    for (int64_t i = 0; i < n; i++) sum += exp8(load8(parts + i * step) - top) * load8(parts + i * step + 8);
    f8 inverse = 1.0f / sum;
    for (int64_t c = 0; c < r.values; c += 8) {
        f8 block[8] = {};
        for (int64_t i = 0; i < n; i++) {
            f8 factor = exp8(load8(parts + i * step) - top) * inverse;
            for (int j = 0; j < 8; j++) block[j] += load8(parts + i * step + 16 + (c + j) * 8) * factor;
        }
        transpose8(block);
        for (int j = 0; j < r.heads; j++) store8(out + j * r.values + c, block[j]);
    }
}

// own.out [T][heads][values] from queries [T][heads][channels]: every thread reads its part of the rows.
void attend_all(const Pass& q, const float* query) {
    const BlockWeights& w = q.w;
    const int64_t T = q.p.tokens, R = w.together(), per_group = (R + 7) / 8, panels = w.panels();
    const int64_t size = 8 * (w.channels + 2), step = T * panels * size;
    const float scale = w.scale ? (float)w.scale : 1.0f / std::sqrt((float)w.channels);
    const auto reader = [&](int64_t t, int64_t panel) {
        const int64_t head = panel / per_group * R + panel % per_group * 8;
        return Reader{query + (t * w.heads + head) * w.channels, std::min<int64_t>(8, R - panel % per_group * 8), w.channels,
                      w.values(), scale, w.sink ? w.sink + head : nullptr};
    };
    for (int64_t t = 0; t < T; t++) {
        Span spans[2];
        own_keys(q, t, spans);
        for (int64_t g = 0; g < panels; g++) {
            attend(q, reader(t, g), spans, q.s.parts + q.team.me * step + (t * panels + g) * size);
            if ((g + 1) % per_group == 0 && spans[1].key) spans[1].key += w.channels, spans[1].value += w.channels;
        }
    }
    q.team.sync();
    for (int64_t t = 0; t < T; t++)
        for (int64_t g = 0; g < panels; g++) {
            const Reader r = reader(t, g);
            const int64_t row = (r.query - query) / w.channels;  // of [T][heads]
            join_parts(r, q.team.count, q.s.parts + (t * panels + g) * size, step, q.o.out + row * w.values());
        }
}

void compressed_attention(const Pass& q) {
    const BlockWeights& w = q.w;
    const int64_t T = q.p.tokens;
    anychip_norm_rope(T * w.heads, w.channels, w.heads, q.p.half, 0, w.eps, q.s.query, nullptr, q.p.cos, q.p.sin, q.o.query, nullptr);
    attend_all(q, q.o.query);
    anychip_rope(T * w.heads, w.channels, w.heads, q.p.half, 0, -1.0f, q.o.out, q.p.cos, q.p.sin, q.o.turned);
}

}  // namespace
