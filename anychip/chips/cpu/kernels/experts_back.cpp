// Routed experts and the shared expert, backward: threads take panels for dx, then blocks of weight rows for dw.
#include "experts.h"

namespace {

// From the gradient of the hidden panel to that of gate and up; `hidden` and the lanes' weight gradient are made too.
void swiglu_back(const float* gate_up, const float* lanes, int64_t width, float limit, bool half, const float* dhidden,
                 float* hidden, float* dgate_up, float* dlanes) {
    f8 sums[PANEL / 8] = {};
    for (int64_t i = 0; i < width * PANEL; i += half ? PANEL : 8) {
        const int part = i % PANEL / 8;
        f8 gate = load8(gate_up + i), up = load8(gate_up + width * PANEL + i), weight = load8(lanes + 8 * part);
        f8 kept_gate = min8(gate, limit), kept_up = max8(min8(up, limit), -limit), zero = {};
        f8 open = sigmoid8(kept_gate), silu = kept_gate * open, grad = load8(dhidden + i);
        sums[part] += grad * silu * kept_up;
        store8(hidden + i, silu * kept_up * weight);
        grad *= weight;
        f8 dgate = grad * kept_up * (open + silu * (1.0f - open)), dup = grad * silu;
        store8(dgate_up + i, gate > limit ? zero : dgate);
        store8(dgate_up + width * PANEL + i, up > limit ? zero : up < -limit ? zero : dup);
    }
    for (int part = 0; part < PANEL / 8; part++) store8(dlanes + 8 * part, sums[part]);
}

struct Gradient {
    const float *dout, *gate_up;
    float *dx, *dweight, *dw1, *dw3, *dw2;
    float *rows, *dgate_up, *hidden;  // scratch: pairs x d, panels x 2 width x PANEL, pairs x width
};

void backward_panels(const Bank& b, const Batch& in, const Plan& p, const Gradient& g, const Together& items, float* own) {
    const int64_t wide = b.d * PANEL, slim = b.width * PANEL;  // of one panel
    const Panels panels = items.panels();
    const int32_t e = items.first->expert;
    float *dy = own, *dx = dy + 2 * wide, *dhidden = dx + 2 * wide, *hidden = dhidden + 2 * slim;
    float* dgu = g.dgate_up + items.first->panel * 2 * slim;
    for (int i = 0; i < items.count; i++) gather(items.first[i], p, in.choices, g.dout, b.d, dy + i * wide);
    transposed_times_panel(b.w2 + e * b.stride2, b.width, b.d, dy, wide, dhidden, slim, panels, false);
    for (int i = 0; i < items.count; i++) {
        const Item& it = items.first[i];
        float lanes[PANEL], dlanes[PANEL];
        lane_weights(it, p, in.weight, lanes);
        swiglu_back(g.gate_up + it.panel * 2 * slim, lanes, b.width, in.limit, it.half(), dhidden + i * slim, hidden,
                    dgu + i * 2 * slim, dlanes);
        if (g.dweight)
            for (int lane = 0; lane < it.count; lane++) g.dweight[p.order[it.begin + lane]] = dlanes[lane];
        panel_to_rows(hidden, it.count, b.width, g.hidden + it.begin * b.width);
    }
    transposed_times_panel(b.w1 + e * b.stride13, b.d, b.width, dgu, 2 * slim, dx, wide, panels, false);
    transposed_times_panel(b.w3 + e * b.stride13, b.d, b.width, dgu + slim, 2 * slim, dx, wide, panels, true);
    for (int i = 0; i < items.count; i++)
        panel_to_rows(dx + i * wide, items.first[i].count, b.d, g.rows + items.first[i].begin * b.d);
}

constexpr int BLOCK = 48;    // weight rows that a thread takes at once; a multiple of six and eight
constexpr int DEPTH = 128;   // tokens summed at once; a multiple of PANEL

// dw[row][column] (+)= sum over n tokens of a(row, token) b(token, column), sixteen or eight columns from b on.
INLINE void weight_columns(int64_t rows, int64_t n, bool wide, const float* a, int64_t a_row, int64_t a_k, const float* b,
                           int64_t b_k, float* dw, int64_t dw_row, bool add) {
    int64_t r = 0;
    if (wide) {
        for (; r + SIXTEENS <= rows; r += SIXTEENS)
            tile<SIXTEENS, 2>(n, a + r * a_row, a_row, a_k, b, b_k, dw + r * dw_row, dw_row, add);
        for (; r + 2 <= rows; r += 2) tile<2, 2>(n, a + r * a_row, a_row, a_k, b, b_k, dw + r * dw_row, dw_row, add);
        for (; r < rows; r++) tile<1, 2>(n, a + r * a_row, a_row, a_k, b, b_k, dw + r * dw_row, dw_row, add);
    } else {
        for (; r + 4 <= rows; r += 4) tile<4, 1>(n, a + r * a_row, a_row, a_k, b, b_k, dw + r * dw_row, dw_row, add);
        for (; r < rows; r++) tile<1, 1>(n, a + r * a_row, a_row, a_k, b, b_k, dw + r * dw_row, dw_row, add);
    }
}

// Tokens at .. at + n of the expert, for `rows` rows of dw1 or dw3: a is dgate_up (panels), b is x.
void weights_13(const Batch& in, const Plan& p, const float* panels, int64_t panel_size, int32_t at, int n, int64_t rows,
                int64_t d, float* dw, bool add) {
    float a[BLOCK * DEPTH], b[DEPTH * 16];
    const float* x[DEPTH];
    for (int t = 0; t < n; t++) x[t] = in.x + p.order[at + t] / in.choices * d;
    for (int t = 0; t < n; t += PANEL)
        for (int64_t r = 0; r < rows; r++)
            std::memcpy(a + r * DEPTH + t, panels + t / PANEL * panel_size + r * PANEL, sizeof(float) * PANEL);
    for (int64_t c = 0; c < d; c += 16) {
        const bool wide = c + 16 <= d;
        for (int t = 0; t < n; t++) {
            store8(b + t * 16, load8(x[t] + c));
            if (wide) store8(b + t * 16 + 8, load8(x[t] + c + 8));
        }
        weight_columns(rows, n, wide, a, DEPTH, 1, b, 16, dw + c, d, add);
    }
}

// The same for dw2: a is dout, b is the hidden rows.
void weights_2(const Batch& in, const Plan& p, const float* dout, const float* hidden, int32_t at, int n, int64_t rows,
               int64_t d, int64_t width, float* dw, bool add) {
    float a[DEPTH * BLOCK];
    for (int t = 0; t < n; t++)
        std::memcpy(a + t * BLOCK, dout + p.order[at + t] / in.choices * d, sizeof(float) * rows);
    for (int64_t c = 0; c < width; c += 16)
        weight_columns(rows, n, c + 16 <= width, a, 1, BLOCK, hidden + at * width + c, width, dw + c, width, add);
}

// One block of an expert's weight rows; which = 0 (w1), 1 (w3), 2 (w2). Experts without tokens get zeros.
void weight_block(const Bank& b, const Batch& in, const Plan& p, const Gradient& g, int32_t e, int which, int64_t row) {
    const int64_t rows = std::min<int64_t>(BLOCK, (which == 2 ? b.d : b.width) - row), size = 2 * b.width * PANEL;
    float* dw = which == 2 ? g.dw2 + e * b.stride2 + row * b.width : (which ? g.dw3 : g.dw1) + e * b.stride13 + row * b.d;
    const int32_t begin = p.offset[e], end = p.offset[e + 1];
    if (begin == end) std::memset(dw, 0, sizeof(float) * rows * (which == 2 ? b.width : b.d));
    for (int32_t at = begin; at < end; at += DEPTH) {
        const int n = std::min<int32_t>(DEPTH, end - at);
        const float* panels = g.dgate_up + (p.panel[e] + (at - begin) / PANEL) * size + (which * b.width + row) * PANEL;
        if (which == 2) weights_2(in, p, g.dout + row, g.hidden, at, n, rows, b.d, b.width, dw, at > begin);
        else weights_13(in, p, panels, size, at, n, rows, b.d, dw, at > begin);
    }
}

void backward(const Bank& b, const Batch& in, const Plan& p, const Gradient& g) {
    const std::vector<Item> items = panels_of(p, b.experts);
    const std::vector<Together> together = together_of(items);
    const int64_t many = together.size(), blocks13 = (b.width + BLOCK - 1) / BLOCK, blocks2 = (b.d + BLOCK - 1) / BLOCK;
    const int64_t per_expert = 2 * blocks13 + blocks2;
#pragma omp parallel if (many > 1)
    {
        std::vector<float> own(PANEL * (4 * b.d + 3 * b.width));
#pragma omp for schedule(dynamic, 4)
        for (int64_t i = 0; i < many; i++) backward_panels(b, in, p, g, together[i], own.data());
#pragma omp for schedule(dynamic, 4) nowait
        for (int64_t i = 0; i < b.experts * per_expert; i++) {
            const int32_t e = i / per_expert;
            const int64_t j = i % per_expert;
            if (j < 2 * blocks13) weight_block(b, in, p, g, e, j / blocks13, j % blocks13 * BLOCK);
            else weight_block(b, in, p, g, e, 2, (j - 2 * blocks13) * BLOCK);
        }
        sum_choices(g.rows, p, in.tokens, in.choices, b.d, g.dx);
    }
}

}  // namespace

extern "C" void anychip_experts_back(int64_t tokens, int64_t choices, int64_t experts, int64_t d, int64_t width, float limit,
                          const float* x, const float* weight, const float* w1, const float* w3, const float* w2,
                          int64_t stride13, int64_t stride2, int32_t* plan, const float* gate_up, const float* dout,
                          float* dx, float* dweight, float* dw1, float* dw3, float* dw2, float* rows, float* dgate_up,
                          float* hidden) {
    backward({w1, w3, w2, stride13, stride2, experts, d, width}, {x, weight, tokens, choices, limit},
             plan_at(plan, experts, tokens * choices), {dout, gate_up, dx, dweight, dw1, dw3, dw2, rows, dgate_up, hidden});
}
