// Where the gradients of mHC's mixing products go: to the streams and to fn, in one pass over the streams.
#pragma once
#include "hyper.h"

namespace {

// Weights [m, width] as slices of eight columns, [width / 8][m][8]: what `spread` needs lies together.
void to_slices(const float* rows, int m, int64_t width, float* slices) {
    for (int64_t i = 0; i < width; i += 8)
        for (int o = 0; o < m; o++) store8(slices + i * m + o * 8, load8(rows + o * width + i));
}

void from_slices(const float* slices, int m, int64_t width, float* rows) {
    for (int o = 0; o < m; o++)
        for (int64_t i = 0; i < width; i += 8) store8(rows + o * width + i, load8(slices + i * m + o * 8));
}

// With the gradient of the products in a[LANES][m] (already times rms; zero for absent tokens) and coef[t] of x itself:
// dx[t] (+)= a[t] fn + coef[t] x[t] + weight[j][t] dout[t], and dfn += a^T x. fn and dfn are in slices.
struct Spread {
    const float *a, *coef, *weight, *fn, *x, *dout;
    float *dx, *dfn;
    int m;
    int64_t n, d;
    bool add;
};

// C slices of eight columns from column i on, for R tokens from token t on.
template <int R, int C>
INLINE void spread_dx(const Spread& g, int t, int64_t i) {
    const int64_t width = g.n * g.d;
    f8 acc[R][C];
    for (int c = 0; c < C; c++) {
        const int64_t at = i + 8 * c, stream = at / g.d, column = at - stream * g.d;
        for (int r = 0; r < R; r++) {
            acc[r][c] = g.coef[t + r] * load8(g.x + (t + r) * width + at)
                        + g.weight[stream * LANES + t + r] * load8(g.dout + (t + r) * g.d + column);
            if (g.add) acc[r][c] += load8(g.dx + (t + r) * width + at);
        }
    }
    for (int o = 0; o < g.m; o++)
        for (int c = 0; c < C; c++) {
            f8 w = hold8(load8(g.fn + (i + 8 * c) * g.m + o * 8));
            for (int r = 0; r < R; r++) acc[r][c] += g.a[(t + r) * g.m + o] * w;
        }
    for (int c = 0; c < C; c++)
        for (int r = 0; r < R; r++) store8(g.dx + (t + r) * width + i + 8 * c, acc[r][c]);
}

template <int O, int C>
INLINE void spread_dfn(const Spread& g, int count, int o, int64_t i) {
    const int64_t width = g.n * g.d;
    f8 acc[O][C];
    for (int r = 0; r < O; r++)
        for (int c = 0; c < C; c++) acc[r][c] = load8(g.dfn + (i + 8 * c) * g.m + (o + r) * 8);
    for (int t = 0; t < count; t++)
        for (int c = 0; c < C; c++) {
            f8 xs = hold8(load8(g.x + t * width + i + 8 * c));
            for (int r = 0; r < O; r++) acc[r][c] += g.a[t * g.m + o + r] * xs;
        }
    for (int r = 0; r < O; r++)
        for (int c = 0; c < C; c++) store8(g.dfn + (i + 8 * c) * g.m + (o + r) * 8, acc[r][c]);
}

template <int C>
INLINE void spread_columns(const Spread& g, int count, int64_t i) {
    int t = 0, o = 0;
    for (; t + 4 <= count; t += 4) spread_dx<4, C>(g, t, i);
    for (; t < count; t++) spread_dx<1, C>(g, t, i);
    for (; o + 4 <= g.m; o += 4) spread_dfn<4, C>(g, count, o, i);
    for (; o < g.m; o++) spread_dfn<1, C>(g, count, o, i);
}

void spread(const Spread& g, int count) {
    int64_t i = 0;
    for (; i + 16 <= g.n * g.d; i += 16) spread_columns<2>(g, count, i);
    for (; i < g.n * g.d; i += 8) spread_columns<1>(g, count, i);
}

// coef_t makes the gradient of the inverse rms reach x: d rms / dx = -rms^3 x / width.
INLINE float rms_coef(const float* grad, const float* mix, float rms, int m, int64_t width) {
    float sum = 0.0f;
    for (int o = 0; o < m; o++) sum += grad[o] * mix[o];
    return -sum * rms * rms * rms / width;
}

// Sums a partial result [threads, size] in thread order into out.
void add_in_order(const float* parts, int threads, int64_t size, float* out) {
    for (int64_t i = 0; i < size; i++) {
        float sum = parts[i];
        for (int p = 1; p < threads; p++) sum += parts[p * size + i];
        out[i] = sum;
    }
}

// The threads' parts become the gradients of fn [m, width], base [m] and scale.
void sum_parts(float* parts, int m, int64_t width, int n_scale, int threads, float* const* out) {
    add_in_order(parts, threads, m * width + m + n_scale, parts);
    from_slices(parts, m, width, out[0]);
    std::memcpy(out[1], parts + m * width, sizeof(float) * m);
    std::memcpy(out[2], parts + m * width + m, sizeof(float) * n_scale);
}

}  // namespace
