// Routed experts and the shared expert, forward; a few tokens go without panels.
#include "experts.h"

namespace {

// A stable counting sort. Pairs whose id is no expert take no part: their position is -1.
void sort_pairs(const int64_t* ids, int64_t experts, const Plan& p) {
    std::fill(p.offset, p.offset + experts + 1, 0);
    for (int64_t i = 0; i < p.pairs; i++)
        if (ids[i] >= 0 && ids[i] < experts) p.offset[ids[i] + 1]++;
    p.panel[0] = 0;
    for (int64_t e = 0; e < experts; e++) {
        p.panel[e + 1] = p.panel[e] + (p.offset[e + 1] + PANEL - 1) / PANEL;
        p.offset[e + 1] += p.offset[e];
    }
    std::vector<int32_t> next(p.offset, p.offset + experts);
    for (int64_t i = 0; i < p.pairs; i++) {
        p.position[i] = ids[i] >= 0 && ids[i] < experts ? next[ids[i]]++ : -1;
        if (p.position[i] >= 0) p.order[p.position[i]] = i;
    }
}

// hidden = weight * silu(min(gate, limit)) * clamp(up); panels of [width][PANEL].
void swiglu(const float* gate_up, const float* lanes, int64_t width, float limit, bool half, float* hidden) {
    for (int64_t i = 0; i < width * PANEL; i += half ? PANEL : 8) {
        f8 gate = min8(load8(gate_up + i), limit), up = load8(gate_up + width * PANEL + i);
        up = max8(min8(up, limit), -limit);
        store8(hidden + i, gate * sigmoid8(gate) * up * load8(lanes + i % PANEL));
    }
}

void forward(const Bank& b, const Batch& in, const Plan& p, float* gate_up, float* rows, float* out) {
    const std::vector<Item> items = panels_of(p, b.experts);
    const std::vector<Together> together = together_of(items);
    const int64_t many = together.size(), wide = b.d * PANEL, slim = b.width * PANEL;  // of one panel
#pragma omp parallel if (many > 1)
    {
        std::vector<float> own(2 * (2 * wide + 3 * slim));
        float *x = own.data(), *y = x + 2 * wide, *hidden = y + 2 * wide, *own_gate_up = hidden + 2 * slim;
#pragma omp for schedule(dynamic, 4)
        for (int64_t i = 0; i < many; i++) {
            const Item* it = together[i].first;
            const Panels panels = together[i].panels();
            float* gu = gate_up ? gate_up + it->panel * 2 * slim : own_gate_up;
            for (int n = 0; n < together[i].count; n++) gather(it[n], p, in.choices, in.x, b.d, x + n * wide);
            times_panel(b.w1 + it->expert * b.stride13, b.width, b.d, x, wide, gu, 2 * slim, panels);
            times_panel(b.w3 + it->expert * b.stride13, b.width, b.d, x, wide, gu + slim, 2 * slim, panels);
            for (int n = 0; n < together[i].count; n++) {
                float lanes[PANEL];
                lane_weights(it[n], p, in.weight, lanes);
                swiglu(gu + n * 2 * slim, lanes, b.width, in.limit, it[n].half(), hidden + n * slim);
            }
            times_panel(b.w2 + it->expert * b.stride2, b.d, b.width, hidden, slim, y, wide, panels);
            for (int n = 0; n < together[i].count; n++)
                panel_to_rows(y + n * wide, it[n].count, b.d, rows + it[n].begin * b.d);
        }
        sum_choices(rows, p, in.tokens, in.choices, b.d, out);
    }
}

// A few tokens: every chosen weight is streamed once, without panels. hidden is scratch [pairs][width].
void few(const Bank& b, const Batch& in, const int64_t* ids, float* hidden, float* out) {
    const int64_t pairs = in.tokens * in.choices;
    constexpr int ROWS = 4;
    const int64_t steps = (b.width + ROWS - 1) / ROWS, out_steps = (b.d + ROWS - 1) / ROWS;
#pragma omp parallel if (pairs * b.d * b.width > 65536)
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < pairs * steps; i++) {
            const int64_t pair = i / steps, first = i % steps * ROWS, e = ids ? ids[pair] : 0;
            if (e < 0 || e >= b.experts) continue;
            const float* x = in.x + pair / in.choices * b.d;
            const int rows = std::min<int64_t>(ROWS, b.width - first);
            float gate[ROWS], up[ROWS];
            row_dots(x, b.w1 + e * b.stride13 + first * b.d, rows, b.d, gate);
            row_dots(x, b.w3 + e * b.stride13 + first * b.d, rows, b.d, up);
            for (int r = 0; r < rows; r++) {
                f8 g = min8(all8(gate[r]), in.limit), u = max8(min8(all8(up[r]), in.limit), -in.limit);
                hidden[pair * b.width + first + r] = (g * sigmoid8(g) * u)[0] * (in.weight ? in.weight[pair] : 1.0f);
            }
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < in.tokens * out_steps; i++) {
            const int64_t token = i / out_steps, first = i % out_steps * ROWS;
            const int rows = std::min<int64_t>(ROWS, b.d - first);
            float sum[ROWS] = {}, part[ROWS];
            for (int64_t k = 0; k < in.choices; k++) {
                const int64_t pair = token * in.choices + k, e = ids ? ids[pair] : 0;
                if (e < 0 || e >= b.experts) continue;
                row_dots(hidden + pair * b.width, b.w2 + e * b.stride2 + first * b.width, rows, b.width, part);
                for (int r = 0; r < rows; r++) sum[r] += part[r];
            }
            for (int r = 0; r < rows; r++) out[token * b.d + first + r] = sum[r];
        }
    }
}

}  // namespace

extern "C" {

// Sorts the pairs into `plan` and returns how many panels they make.
int anychip_experts_plan(int64_t tokens, int64_t choices, int64_t experts, const int64_t* ids, int32_t* plan) {
    const Plan p = plan_at(plan, experts, tokens * choices);
    sort_pairs(ids, experts, p);
    return p.panel[experts];
}

// gate_up (panels x 2 width x PANEL) is kept for the backward, or null; rows is scratch [pairs][d].
void anychip_experts(int64_t tokens, int64_t choices, int64_t experts, int64_t d, int64_t width, float limit, const float* x,
                     const float* weight, const float* w1, const float* w3, const float* w2, int64_t stride13,
                     int64_t stride2, int32_t* plan, float* gate_up, float* rows, float* out) {
    forward({w1, w3, w2, stride13, stride2, experts, d, width}, {x, weight, tokens, choices, limit},
            plan_at(plan, experts, tokens * choices), gate_up, rows, out);
}

// ids null: the only expert.
void anychip_experts_few(int64_t tokens, int64_t choices, int64_t experts, int64_t d, int64_t width, float limit,
                         const float* x, const float* weight, const float* w1, const float* w3, const float* w2,
                         int64_t stride13, int64_t stride2, const int64_t* ids, float* hidden, float* out) {
    few({w1, w3, w2, stride13, stride2, experts, d, width}, {x, weight, tokens, choices, limit}, ids, hidden, out);
}
}
