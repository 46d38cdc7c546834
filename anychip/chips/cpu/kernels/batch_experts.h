// Routed and shared experts of a pass: each expert's weights are read once for all the tokens that chose it.
#pragma once
#include "batch_layer.h"

namespace {

void route(const Layer& q) {
    const BlockWeights& w = q.w;
    const int64_t K = w.topk, from = q.from(), count = q.to() - from;
    const Product gate = q.product(w.gate, q.s.normed, w.experts, w.d, q.s.logits);
    products(q.crew, &gate, 1, q.b.tokens);
    q.crew.sync();
    std::vector<int64_t> given(w.table ? count * K : 0);
    for (int64_t t = 0; w.table && t < count; t++) std::memcpy(&given[t * K], w.table + q.b.ids[from + t] * K, sizeof(int64_t) * K);
    if (count)
        anychip_route(count, w.experts, K, &w.rule, q.s.logits + from * w.experts, w.bias, w.table ? given.data() : nullptr,
                      q.s.ids + from * K, q.s.weight + from * K);
    for (int64_t i = from * K; i < (from + count) * K; i++) q.s.weight[i] *= (float)w.route_scale;
    q.crew.sync();
}

// memory.pairs: the (token, choice) pairs t (K + 1) + k sorted by expert, the shared one (k = K) last; memory.offset.
void sort_pairs(const Layer& q) {
    const int64_t K = q.w.topk, E = q.w.experts, T = q.b.tokens;
    int64_t* offset = q.s.offset;
    std::fill(offset, offset + E + 2, 0);
    for (int64_t i = 0; i < T * K; i++) offset[q.s.ids[i] + 1]++;
    offset[E + 1] = T;
    for (int64_t e = 0; e <= E; e++) offset[e + 1] += offset[e];
    std::vector<int64_t> next(offset, offset + E + 1);
    for (int64_t t = 0; t < T; t++) {
        for (int64_t k = 0; k < K; k++) q.s.pairs[next[q.s.ids[t * K + k]]++] = t * (K + 1) + k;
        q.s.pairs[next[E]++] = t * (K + 1) + K;
    }
}

INLINE f8 both(f4 a, f4 b) { return f8{a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]}; }

// Every thread takes its part of every expert's rows.
void experts_in(const Layer& q) {
    const BlockWeights& w = q.w;
    const int64_t K = w.topk, steps = w.width / 8, from = q.crew.from(steps), to = q.crew.to(steps);
    const int64_t block = std::max<int64_t>(3, TOGETHER / w.d / 3 * 3);
    std::vector<const float*> x(block);
    std::vector<f4> gate(2 * block);
    for (int64_t e = 0; e <= w.experts; e++)
        for (int64_t i0 = q.s.offset[e]; i0 < q.s.offset[e + 1]; i0 += block) {
            const int64_t count = std::min(block, q.s.offset[e + 1] - i0), *pairs = q.s.pairs + i0;
            const float* w1 = e < w.experts ? w.w13 + e * 2 * w.width * w.d : w.shared_w1;
            const float* w3 = e < w.experts ? w1 + w.width * w.d : w.shared_w3;
            for (int64_t i = 0; i < count; i++) x[i] = q.s.normed + pairs[i] / (K + 1) * w.d;
            for (int64_t s = from; s < to; s++) {
                const float *a = w1 + 8 * s * w.d, *b = w3 + 8 * s * w.d;
                if (count <= 3) ask_for(b, 8 * w.d), ask_for(a + 8 * w.d, 8 * w.d);
                for (int64_t half = 0; half < 2; half++)
                    rows_times_tokens(a + 4 * half * w.d, 4, w.d, x.data(), count, [&](int64_t i, f4 v) { gate[2 * i + half] = v; });
                for (int64_t half = 0; half < 2; half++)
                    rows_times_tokens(b + 4 * half * w.d, 4, w.d, x.data(), count, [&](int64_t i, f4 v) {
                        std::memcpy(q.s.hidden + pairs[i] * w.width + 8 * s + 4 * half, &v, sizeof v);
                    });
                for (int64_t i = 0; i < count; i++) {
                    float* h = q.s.hidden + pairs[i] * w.width + 8 * s;
                    const int64_t t = pairs[i] / (K + 1), k = pairs[i] % (K + 1);
                    const f8 g = min8(both(gate[2 * i], gate[2 * i + 1]), w.limit), u = max8(min8(load8(h), w.limit), -w.limit);
                    store8(h, g * sigmoid8(g) * u * (k < K ? q.s.weight[t * K + k] : 1.0f));
                }
            }
        }
}

void experts_out(const Layer& q) {
    const BlockWeights& w = q.w;
    const int64_t steps = w.d / 4, from = q.crew.from(steps), to = q.crew.to(steps);
    const int64_t block = std::max<int64_t>(3, TOGETHER / w.width / 3 * 3);
    std::vector<const float*> x(block);
    for (int64_t e = 0; e <= w.experts; e++)
        for (int64_t i0 = q.s.offset[e]; i0 < q.s.offset[e + 1]; i0 += block) {
            const int64_t count = std::min(block, q.s.offset[e + 1] - i0), *pairs = q.s.pairs + i0;
            const float* w2 = e < w.experts ? w.w2 + e * w.d * w.width : w.shared_w2;
            for (int64_t i = 0; i < count; i++) x[i] = q.s.hidden + pairs[i] * w.width;
            for (int64_t s = from; s < to; s++) {
                if (count <= 3) ask_for(w2 + 4 * (s + 1) * w.width, 4 * w.width);
                rows_times_tokens(w2 + 4 * s * w.width, 4, w.width, x.data(), count, [&](int64_t i, f4 v) {
                    std::memcpy(q.s.rows + pairs[i] * w.d + 4 * s, &v, sizeof v);
                });
            }
        }
}

// memory.y of this thread's tokens: the choices in their order, then the shared expert.
void sum_experts(const Layer& q) {
    const int64_t K = q.w.topk, d = q.w.d;
    for (int64_t t = q.from(); t < q.to(); t++)
        for (int64_t c = 0; c < d; c += 8) {
            f8 sum = load8(q.s.rows + t * (K + 1) * d + c);
            for (int64_t k = 1; k <= K; k++) sum += load8(q.s.rows + (t * (K + 1) + k) * d + c);
            store8(q.s.y + t * d + c, sum);
        }
}

}  // namespace
