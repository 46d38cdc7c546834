// mHC: reading the sub-layer's input from n residual streams, mixing its output back, and the streams' last collapse.
// Streams are [T, n, d]; weights.fn is [m, n*d]. Tokens are worked on eight at a time: the mixing weights of eight
// tokens lie in the lanes of vectors ("lanes"), so that Sinkhorn runs on eight tokens at once.
#include <cmath>
#include <omp.h>

#include "simd.h"

namespace {

constexpr int LANES = 8;
constexpr int MAX_ITERS = 64;  // Sinkhorn iterations that the backward's scratch holds

// Dot products of R rows of x with O rows of w over length n (a multiple of 8), for R tokens at once.
template <int R, int O>
INLINE void dots(const float* x, const float* w, int64_t n, float* out, int out_stride) {
    f8 acc[R][O] = {};
    for (int64_t i = 0; i < n; i += 8) {
        f8 xs[R];
        for (int r = 0; r < R; r++) xs[r] = hold8(load8(x + r * n + i));
        for (int o = 0; o < O; o++) {
            f8 ws = hold8(load8(w + o * n + i));
            for (int r = 0; r < R; r++) acc[r][o] += xs[r] * ws;
        }
    }
    for (int r = 0; r < R; r++)
        for (int o = 0; o < O; o++) out[r * out_stride + o] = sum8(acc[r][o]);
}

// mix[t][o] = x_t . fn_o for R tokens and all m outputs.
template <int R>
void mixing_rows(const float* x, const float* fn, int m, int64_t width, float* mix) {
    int o = 0;
    for (; o + 3 <= m; o += 3) dots<R, 3>(x, fn + o * width, width, mix + o, m);
    for (; o < m; o++) dots<R, 1>(x, fn + o * width, width, mix + o, m);
}

void mixing_products(const float* x, const float* fn, int count, int m, int64_t width, float* mix) {
    int t = 0;
    for (; t + 4 <= count; t += 4) mixing_rows<4>(x + t * width, fn, m, width, mix + t * m);
    for (; t < count; t++) mixing_rows<1>(x + t * width, fn, m, width, mix + t * m);
}

INLINE float inverse_rms(const float* x, int64_t n, float eps) { return 1.0f / std::sqrt(dot(x, x, n) / n + eps); }

// One pass of Sinkhorn over the columns (ROWS false: sums over j for each k) or rows; comb[j * N + k].
template <int N, bool ROWS>
INLINE void normalise(f8* comb, f8* inverse, float eps) {
    for (int a = 0; a < N; a++) {
        f8 sum = comb[ROWS ? a * N : a];
        for (int b = 1; b < N; b++) sum += comb[ROWS ? a * N + b : b * N + a];
        inverse[a] = 1.0f / (sum + eps);
        for (int b = 0; b < N; b++) comb[ROWS ? a * N + b : b * N + a] *= inverse[a];
    }
}

// The backward of one pass: y is its output, g the gradient of the output and then of the input.
template <int N, bool ROWS>
INLINE void normalise_back(const f8* y, const f8* inverse, f8* g) {
    for (int a = 0; a < N; a++) {
        f8 sum = {};
        for (int b = 0; b < N; b++) { int i = ROWS ? a * N + b : b * N + a; sum += g[i] * y[i]; }
        for (int b = 0; b < N; b++) { int i = ROWS ? a * N + b : b * N + a; g[i] = (g[i] - sum) * inverse[a]; }
    }
}

template <int N>
INLINE void row_softmax(f8* comb) {
    for (int j = 0; j < N; j++) {
        f8 top = comb[j * N], sum = {};
        for (int k = 1; k < N; k++) top = larger8(top, comb[j * N + k]);
        for (int k = 0; k < N; k++) { comb[j * N + k] = exp8(comb[j * N + k] - top); sum += comb[j * N + k]; }
        f8 inverse = 1.0f / sum;
        for (int k = 0; k < N; k++) comb[j * N + k] *= inverse;
    }
}

template <int N>
void sinkhorn(f8* comb, int iters, float eps) {
    f8 inverse[N];
    row_softmax<N>(comb);
    for (int i = 0; i < N * N; i++) comb[i] += eps;
    normalise<N, false>(comb, inverse, eps);
    for (int it = 1; it < iters; it++) {
        normalise<N, true>(comb, inverse, eps);
        normalise<N, false>(comb, inverse, eps);
    }
}

// Gradient g of the result -> gradient of the logits, exactly through every pass (iterates are recomputed).
template <int N>
void sinkhorn_back(const f8* logit, f8* g, int iters, float eps) {
    constexpr int S = N * N;
    f8 soft[S], kept[2 * MAX_ITERS][S], inverse[2 * MAX_ITERS][N], comb[S];
    for (int i = 0; i < S; i++) soft[i] = logit[i];
    row_softmax<N>(soft);
    for (int i = 0; i < S; i++) comb[i] = soft[i] + eps;
    for (int p = 0; p < 2 * iters - 1; p++) {
        if (p % 2) normalise<N, true>(comb, inverse[p], eps);
        else normalise<N, false>(comb, inverse[p], eps);
        for (int i = 0; i < S; i++) kept[p][i] = comb[i];
    }
    for (int p = 2 * iters - 2; p >= 0; p--) {
        if (p % 2) normalise_back<N, true>(kept[p], inverse[p], g);
        else normalise_back<N, false>(kept[p], inverse[p], g);
    }
    for (int j = 0; j < N; j++) {
        f8 sum = {};
        for (int k = 0; k < N; k++) sum += g[j * N + k] * soft[j * N + k];
        for (int k = 0; k < N; k++) g[j * N + k] = soft[j * N + k] * (g[j * N + k] - sum);
    }
}

// lanes[o] = mix[.][o] * rms[.]: eight tokens' products, normalised, one token a lane (absent ones zero).
INLINE void to_lanes(const float* mix, const float* rms, int count, int m, f8* lanes) {
    float* flat = reinterpret_cast<float*>(lanes);
    for (int o = 0; o < m; o++)
        for (int t = 0; t < LANES; t++) flat[o * LANES + t] = t < count ? mix[t * m + o] * rms[t] : 0.0f;
}

INLINE float* floats(f8* v) { return reinterpret_cast<float*>(v); }

// out[d] = sum_j weight_j x_j for one token; weights lie LANES apart.
template <int N>
INLINE void collapse(const float* x, const float* weight, int64_t d, float* out) {
    f8 w[N];
    for (int j = 0; j < N; j++) w[j] = all8(weight[j * LANES]);
    for (int64_t i = 0; i < d; i += 8) {
        f8 sum = w[0] * load8(x + i);
        for (int j = 1; j < N; j++) sum += w[j] * load8(x + j * d + i);
        store8(out + i, sum);
    }
}

struct Site {
    const float *fn, *base, *scale;
    int64_t tokens, d;
    int iters;
    float eps, norm_eps;
};

// What follows the mixing products of one block of up to eight tokens. `rms` receives what the backward needs.
template <int N>
void pre_mixed(const Site& s, const float* x, int count, const float* mix, float* out, float* post, float* comb, float* rms) {
    constexpr int M = N * (N + 2);
    const int64_t width = N * s.d;
    for (int t = 0; t < count; t++) rms[t] = inverse_rms(x + t * width, width, s.norm_eps);
    f8 lanes[M];
    to_lanes(mix, rms, count, M, lanes);
    for (int j = 0; j < N; j++) {
        lanes[j] = sigmoid8(lanes[j] * s.scale[0] + s.base[j]) + s.eps;
        lanes[N + j] = 2.0f * sigmoid8(lanes[N + j] * s.scale[1] + s.base[N + j]);
    }
    for (int i = 2 * N; i < M; i++) lanes[i] = lanes[i] * s.scale[2] + s.base[i];
    sinkhorn<N>(lanes + 2 * N, s.iters, s.eps);
    const float* flat = floats(lanes);
    for (int t = 0; t < count; t++) {
        for (int j = 0; j < N; j++) post[t * N + j] = flat[(N + j) * LANES + t];
        for (int i = 0; i < N * N; i++) comb[t * N * N + i] = flat[(2 * N + i) * LANES + t];
        collapse<N>(x + t * width, flat + t, s.d, out + t * s.d);
    }
}

template <int N>
void pre(const Site& s, const float* x, float* out, float* post, float* comb, float* mix, float* rms) {
    constexpr int M = N * (N + 2);
    const int64_t width = N * s.d, blocks = (s.tokens + LANES - 1) / LANES;
#pragma omp parallel for schedule(static) if (blocks > 1)
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t t = b * LANES;
        const int count = s.tokens - t < LANES ? s.tokens - t : LANES;
        float own_mix[LANES * M], own_rms[LANES];
        float* products = mix ? mix + t * M : own_mix;
        mixing_products(x + t * width, s.fn, count, M, width, products);
        pre_mixed<N>(s, x + t * width, count, products, out + t * s.d, post + t * N, comb + t * N * N,
                     rms ? rms + t : own_rms);
    }
}

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
// dx[t] = a[t] fn + coef[t] x[t] + weight[j][t] dout[t], and dfn += a^T x. fn and dfn are in slices.
struct Spread {
    const float *a, *coef, *weight, *fn, *x, *dout;
    float *dx, *dfn;
    int m;
    int64_t n, d;
};

// C slices of eight columns from column i on, for R tokens from token t on.
template <int R, int C>
INLINE void spread_dx(const Spread& g, int t, int64_t i) {
    const int64_t width = g.n * g.d;
    f8 acc[R][C];
    for (int c = 0; c < C; c++) {
        const int64_t at = i + 8 * c, stream = at / g.d, column = at - stream * g.d;
        for (int r = 0; r < R; r++)
            acc[r][c] = g.coef[t + r] * load8(g.x + (t + r) * width + at)
                        + g.weight[stream * LANES + t + r] * load8(g.dout + (t + r) * g.d + column);
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

struct PreGrad {
    const float *dout, *dpost, *dcomb, *mix, *rms;
    float *dx;
};

// Gradient of the m logits of one block in `lanes` (in: forward lanes of products; out: gradient of scaled logits).
template <int N>
void pre_logit_grad(const Site& s, const float* x, const PreGrad& g, int count, f8* lanes, f8* grad, f8* pre_weight) {
    constexpr int M = N * (N + 2);
    const int64_t width = N * s.d;
    to_lanes(g.mix, g.rms, count, M, lanes);
    float* flat = floats(grad);
    for (int i = 0; i < M; i++) grad[i] = all8(0.0f);
    for (int t = 0; t < count; t++) {
        for (int j = 0; j < N; j++) {
            flat[j * LANES + t] = dot(g.dout + t * s.d, x + t * width + j * s.d, s.d);
            flat[(N + j) * LANES + t] = g.dpost[t * N + j];
        }
        for (int i = 0; i < N * N; i++) flat[(2 * N + i) * LANES + t] = g.dcomb[t * N * N + i];
    }
    for (int j = 0; j < N; j++) {
        f8 gate = sigmoid8(lanes[j] * s.scale[0] + s.base[j]);
        pre_weight[j] = gate + s.eps;
        grad[j] *= gate * (1.0f - gate);
        gate = sigmoid8(lanes[N + j] * s.scale[1] + s.base[N + j]);
        grad[N + j] *= 2.0f * gate * (1.0f - gate);
    }
    f8 logit[N * N];
    for (int i = 0; i < N * N; i++) logit[i] = lanes[2 * N + i] * s.scale[2] + s.base[2 * N + i];
    sinkhorn_back<N>(logit, grad + 2 * N, s.iters, s.eps);
}

// fn is in slices. parts: for each thread dfn in slices, dbase [M], dscale [3]. Returns how many threads took part.
template <int N>
int pre_back(const Site& s, const float* x, const float* fn, const PreGrad& g, float* parts) {
    constexpr int M = N * (N + 2);
    const int64_t width = N * s.d, blocks = (s.tokens + LANES - 1) / LANES, size = M * width + M + 3;
    int threads = 1;
#pragma omp parallel if (blocks > 1)
    {
#pragma omp single
        threads = omp_get_num_threads();
        float* dfn = parts + omp_get_thread_num() * size;
        std::memset(dfn, 0, sizeof(float) * size);
        float *dbase = dfn + M * width, *dscale = dbase + M;
#pragma omp for schedule(static)
        for (int64_t b = 0; b < blocks; b++) {
            const int64_t t0 = b * LANES;
            const int count = s.tokens - t0 < LANES ? s.tokens - t0 : LANES;
            const float* rows = x + t0 * width;
            PreGrad own = {g.dout + t0 * s.d, g.dpost + t0 * N, g.dcomb + t0 * N * N, g.mix + t0 * M, g.rms + t0, nullptr};
            f8 lanes[M], grad[M], weight[N];
            pre_logit_grad<N>(s, rows, own, count, lanes, grad, weight);
            float a[LANES * M], coef[LANES];
            for (int o = 0; o < M; o++) {
                const int part = o < N ? 0 : o < 2 * N ? 1 : 2;
                dbase[o] += sum8(grad[o]);
                dscale[part] += sum8(grad[o] * lanes[o]);
                for (int t = 0; t < count; t++) a[t * M + o] = grad[o][t] * s.scale[part];
            }
            for (int t = 0; t < count; t++) {
                coef[t] = rms_coef(a + t * M, own.mix + t * M, own.rms[t], M, width);
                for (int o = 0; o < M; o++) a[t * M + o] *= own.rms[t];
            }
            spread({a, coef, floats(weight), fn, rows, own.dout, g.dx + t0 * width, dfn, M, N, s.d}, count);
        }
    }
    return threads;
}

template <int N>
void head(const Site& s, const float* x, float* out, float* mix, float* rms) {
    const int64_t width = N * s.d, blocks = (s.tokens + LANES - 1) / LANES;
#pragma omp parallel for schedule(static) if (blocks > 1)
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t t0 = b * LANES;
        const int count = s.tokens - t0 < LANES ? s.tokens - t0 : LANES;
        float own_mix[LANES * N], own_rms[LANES];
        float *m = mix ? mix + t0 * N : own_mix, *r = rms ? rms + t0 : own_rms;
        for (int t = 0; t < count; t++) r[t] = inverse_rms(x + (t0 + t) * width, width, s.norm_eps);
        mixing_products(x + t0 * width, s.fn, count, N, width, m);
        f8 lanes[N];
        to_lanes(m, r, count, N, lanes);
        for (int j = 0; j < N; j++) lanes[j] = sigmoid8(lanes[j] * s.scale[0] + s.base[j]) + s.eps;
        for (int t = 0; t < count; t++)
            collapse<N>(x + (t0 + t) * width, floats(lanes) + t, s.d, out + (t0 + t) * s.d);
    }
}

// fn is in slices. parts: for each thread dfn in slices, dbase [N], dscale [1]. Returns how many threads took part.
template <int N>
int head_back(const Site& s, const float* x, const float* fn, const PreGrad& g, float* parts) {
    const int64_t width = N * s.d, blocks = (s.tokens + LANES - 1) / LANES, size = N * width + N + 1;
    int threads = 1;
#pragma omp parallel if (blocks > 1)
    {
#pragma omp single
        threads = omp_get_num_threads();
        float* dfn = parts + omp_get_thread_num() * size;
        std::memset(dfn, 0, sizeof(float) * size);
        float *dbase = dfn + N * width, *dscale = dbase + N;
#pragma omp for schedule(static)
        for (int64_t b = 0; b < blocks; b++) {
            const int64_t t0 = b * LANES;
            const int count = s.tokens - t0 < LANES ? s.tokens - t0 : LANES;
            const float *rows = x + t0 * width, *dout = g.dout + t0 * s.d;
            f8 lanes[N], grad[N] = {}, weight[N];
            to_lanes(g.mix + t0 * N, g.rms + t0, count, N, lanes);
            float a[LANES * N], coef[LANES];
            for (int j = 0; j < N; j++) {
                for (int t = 0; t < count; t++) grad[j][t] = dot(dout + t * s.d, rows + t * width + j * s.d, s.d);
                f8 gate = sigmoid8(lanes[j] * s.scale[0] + s.base[j]);
                weight[j] = gate + s.eps;
                grad[j] *= gate * (1.0f - gate);
                dbase[j] += sum8(grad[j]);
                dscale[0] += sum8(grad[j] * lanes[j]);
                for (int t = 0; t < count; t++) a[t * N + j] = grad[j][t] * s.scale[0];
            }
            for (int t = 0; t < count; t++) {
                coef[t] = rms_coef(a + t * N, g.mix + (t0 + t) * N, g.rms[t0 + t], N, width);
                for (int j = 0; j < N; j++) a[t * N + j] *= g.rms[t0 + t];
            }
            spread({a, coef, floats(weight), fn, rows, dout, g.dx + t0 * width, dfn, N, N, s.d}, count);
        }
    }
    return threads;
}

template <int N>
void post(int64_t tokens, int64_t d, const float* y, const float* x, const float* weight, const float* comb, float* out) {
#pragma omp parallel for schedule(static) if (tokens > 16)
    for (int64_t t = 0; t < tokens; t++) {
        const float *xs = x + t * N * d, *ys = y + t * d, *c = comb + t * N * N;
        f8 mix[N][N], add[N];
        for (int k = 0; k < N; k++) {
            add[k] = all8(weight[t * N + k]);
            for (int j = 0; j < N; j++) mix[j][k] = all8(c[j * N + k]);
        }
        for (int64_t i = 0; i < d; i += 8) {
            f8 from[N], own = load8(ys + i);
            for (int j = 0; j < N; j++) from[j] = load8(xs + j * d + i);
            for (int k = 0; k < N; k++) {
                f8 sum = add[k] * own;
                for (int j = 0; j < N; j++) sum += mix[j][k] * from[j];
                store8(out + (t * N + k) * d + i, sum);
            }
        }
    }
}

struct PostGrad {
    const float *dout, *y, *x, *weight, *comb;
    float *dy, *dx, *dweight, *dcomb;
};

template <int N>
void post_back(int64_t tokens, int64_t d, const PostGrad& g) {
#pragma omp parallel for schedule(static) if (tokens > 16)
    for (int64_t t = 0; t < tokens; t++) {
        const float *xs = g.x + t * N * d, *gs = g.dout + t * N * d, *ys = g.y + t * d, *c = g.comb + t * N * N;
        f8 dmix[N][N] = {}, dadd[N] = {};
        for (int64_t i = 0; i < d; i += 8) {
            f8 own = load8(ys + i), grad[N], sum = {};
            for (int k = 0; k < N; k++) {
                grad[k] = load8(gs + k * d + i);
                sum += g.weight[t * N + k] * grad[k];
                dadd[k] += own * grad[k];
            }
            store8(g.dy + t * d + i, sum);
            for (int j = 0; j < N; j++) {
                f8 from = load8(xs + j * d + i), into = {};
                for (int k = 0; k < N; k++) {
                    into += c[j * N + k] * grad[k];
                    dmix[j][k] += from * grad[k];
                }
                store8(g.dx + (t * N + j) * d + i, into);
            }
        }
        for (int k = 0; k < N; k++) {
            g.dweight[t * N + k] = sum8(dadd[k]);
            for (int j = 0; j < N; j++) g.dcomb[t * N * N + j * N + k] = sum8(dmix[j][k]);
        }
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

#define FOR_STREAMS(n, call)                                                      \
    switch (n) {                                                                  \
        case 1: { constexpr int N = 1; call; break; }                             \
        case 2: { constexpr int N = 2; call; break; }                             \
        case 3: { constexpr int N = 3; call; break; }                             \
        case 4: { constexpr int N = 4; call; break; }                             \
    }

extern "C" {

int anychip_threads() { return omp_get_max_threads(); }

void anychip_hc_pre(int n, int64_t tokens, int64_t d, int iters, float eps, float norm_eps, const float* x, const float* fn,
                    const float* base, const float* scale, float* out, float* post, float* comb, float* mix, float* rms) {
    Site s = {fn, base, scale, tokens, d, iters, eps, norm_eps};
    FOR_STREAMS(n, pre<N>(s, x, out, post, comb, mix, rms))
}

// `parts` is scratch for anychip_threads() + 1 copies of (fn, base, scale); dfn, dbase, dscale are overwritten.
void anychip_hc_pre_back(int n, int64_t tokens, int64_t d, int iters, float eps, float norm_eps, const float* x,
                         const float* fn, const float* base, const float* scale, const float* mix, const float* rms,
                         const float* dout, const float* dpost, const float* dcomb, float* dx, float* dfn, float* dbase,
                         float* dscale, float* parts) {
    Site s = {fn, base, scale, tokens, d, iters, eps, norm_eps};
    int threads = 1;
    const int m = n * (n + 2);
    float* slices = parts + omp_get_max_threads() * (m * n * d + m + 3);
    to_slices(fn, m, n * d, slices);
    FOR_STREAMS(n, threads = pre_back<N>(s, x, slices, {dout, dpost, dcomb, mix, rms, dx}, parts))
    float* out[3] = {dfn, dbase, dscale};
    sum_parts(parts, m, n * d, 3, threads, out);
}

void anychip_hc_head(int n, int64_t tokens, int64_t d, float eps, float norm_eps, const float* x, const float* fn,
                     const float* base, const float* scale, float* out, float* mix, float* rms) {
    Site s = {fn, base, scale, tokens, d, 0, eps, norm_eps};
    FOR_STREAMS(n, head<N>(s, x, out, mix, rms))
}

void anychip_hc_head_back(int n, int64_t tokens, int64_t d, float eps, float norm_eps, const float* x, const float* fn,
                          const float* base, const float* scale, const float* mix, const float* rms, const float* dout,
                          float* dx, float* dfn, float* dbase, float* dscale, float* parts) {
    Site s = {fn, base, scale, tokens, d, 0, eps, norm_eps};
    int threads = 1;
    float* slices = parts + omp_get_max_threads() * (n * n * d + n + 1);
    to_slices(fn, n, n * d, slices);
    FOR_STREAMS(n, threads = head_back<N>(s, x, slices, {dout, nullptr, nullptr, mix, rms, dx}, parts))
    float* out[3] = {dfn, dbase, dscale};
    sum_parts(parts, n, n * d, 1, threads, out);
}

// anychip_hc_pre for up to eight tokens whose mixing products [T, m] are known.
void anychip_hc_pre_mixed(int n, int64_t tokens, int64_t d, int iters, float eps, float norm_eps, const float* x,
                          const float* base, const float* scale, const float* mix, float* out, float* post, float* comb) {
    const Site s = {nullptr, base, scale, tokens, d, iters, eps, norm_eps};
    float rms[LANES];
    FOR_STREAMS(n, pre_mixed<N>(s, x, tokens, mix, out, post, comb, rms))
}

void anychip_hc_post(int n, int64_t tokens, int64_t d, const float* y, const float* x, const float* weight,
                     const float* comb, float* out) {
    FOR_STREAMS(n, post<N>(tokens, d, y, x, weight, comb, out))
}

void anychip_hc_post_back(int n, int64_t tokens, int64_t d, const float* dout, const float* y, const float* x,
                          const float* weight, const float* comb, float* dy, float* dx, float* dweight, float* dcomb) {
    FOR_STREAMS(n, post_back<N>(tokens, d, {dout, y, x, weight, comb, dy, dx, dweight, dcomb}))
}
}
