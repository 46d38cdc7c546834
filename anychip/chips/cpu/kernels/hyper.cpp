// mHC forward: reading the sub-layer's input from n residual streams, mixing its output back, and the last collapse.
#include "hyper.h"
#include "hyper_sinkhorn.h"

namespace {

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
    const int64_t width = N * s.d, blocks = blocks_of(s);
#pragma omp parallel for schedule(static) if (blocks > 1)
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t t = b * LANES;
        const int count = tokens_of(s, t);
        float own_mix[LANES * M], own_rms[LANES];
        float* products = mix ? mix + t * M : own_mix;
        mixing_products(x + t * width, s.fn, count, M, width, products);
        pre_mixed<N>(s, x + t * width, count, products, out + t * s.d, post + t * N, comb + t * N * N,
                     rms ? rms + t : own_rms);
    }
}

template <int N>
void head(const Site& s, const float* x, float* out, float* mix, float* rms) {
    const int64_t width = N * s.d, blocks = blocks_of(s);
#pragma omp parallel for schedule(static) if (blocks > 1)
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t t0 = b * LANES;
        const int count = tokens_of(s, t0);
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

}  // namespace

extern "C" {

int anychip_threads() { return omp_get_max_threads(); }

void anychip_hc_pre(int n, int64_t tokens, int64_t d, int iters, float eps, float norm_eps, const float* x, const float* fn,
                    const float* base, const float* scale, float* out, float* post, float* comb, float* mix, float* rms) {
    Site s = {fn, base, scale, tokens, d, iters, eps, norm_eps};
    FOR_STREAMS(n, pre<N>(s, x, out, post, comb, mix, rms))
}

void anychip_hc_head(int n, int64_t tokens, int64_t d, float eps, float norm_eps, const float* x, const float* fn,
                     const float* base, const float* scale, float* out, float* mix, float* rms) {
    Site s = {fn, base, scale, tokens, d, 0, eps, norm_eps};
    FOR_STREAMS(n, head<N>(s, x, out, mix, rms))
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
}
