// mHC backward: exact gradients of reading the streams, of their last collapse, and of mixing an output back.
#include "hyper.h"
#include "hyper_sinkhorn.h"
#include "hyper_spread.h"

namespace {

struct PreGrad {
    const float *dout, *dpost, *dcomb, *mix, *rms;
    float *dx;
    bool add;  // to what dx holds

    // The same from token t on. The head has neither dpost nor dcomb.
    PreGrad from(int64_t t, int64_t d, int64_t n, int64_t m) const {
        return {dout + t * d, dpost ? dpost + t * n : nullptr, dcomb ? dcomb + t * n * n : nullptr, mix + t * m, rms + t,
                dx + t * n * d, add};
    }
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

// The same for the head: N logits, no Sinkhorn.
template <int N>
void head_logit_grad(const Site& s, const float* x, const PreGrad& g, int count, f8* lanes, f8* grad, f8* weight) {
    to_lanes(g.mix, g.rms, count, N, lanes);
    for (int j = 0; j < N; j++) {
        grad[j] = all8(0.0f);
        for (int t = 0; t < count; t++) grad[j][t] = dot(g.dout + t * s.d, x + (t * N + j) * s.d, s.d);
        f8 gate = sigmoid8(lanes[j] * s.scale[0] + s.base[j]);
        weight[j] = gate + s.eps;
        grad[j] *= gate * (1.0f - gate);
    }
}

// M logits, whose gradients `logit_grad` makes, one block at a time. fn is in slices. parts: for each thread dfn in
// slices, dbase [M] and dscale (one, or one for each of the three parts). Returns how many threads took part.
template <int N, int M, class LogitGrad>
int site_back(const Site& s, const float* x, const float* fn, const PreGrad& g, float* parts, LogitGrad logit_grad) {
    constexpr int SCALES = M == N ? 1 : 3;
    const int64_t width = N * s.d, blocks = blocks_of(s), size = M * width + M + SCALES;
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
            const int count = tokens_of(s, t0);
            const float* rows = x + t0 * width;
            const PreGrad own = g.from(t0, s.d, N, M);
            f8 lanes[M], grad[M], weight[N];
            logit_grad(rows, own, count, lanes, grad, weight);
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
            spread({a, coef, floats(weight), fn, rows, own.dout, own.dx, dfn, M, N, s.d, g.add}, count);
        }
    }
    return threads;
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

}  // namespace

extern "C" {

// `parts` is scratch for anychip_threads() + 1 copies of (fn, base, scale); dfn, dbase, dscale are overwritten, and dx
// where `add` is 0.
void anychip_hc_pre_back(int n, int64_t tokens, int64_t d, int iters, float eps, float norm_eps, const float* x,
                         const float* fn, const float* base, const float* scale, const float* mix, const float* rms,
                         const float* dout, const float* dpost, const float* dcomb, float* dx, float* dfn, float* dbase,
                         float* dscale, float* parts, int add) {
    Site s = {fn, base, scale, tokens, d, iters, eps, norm_eps};
    int threads = 1;
    const int m = n * (n + 2);
    float* slices = parts + omp_get_max_threads() * (m * n * d + m + 3);
    to_slices(fn, m, n * d, slices);
    const PreGrad g = {dout, dpost, dcomb, mix, rms, dx, add != 0};
    FOR_STREAMS(n, threads = (site_back<N, N * (N + 2)>(s, x, slices, g, parts, [&](auto... block) {
                       pre_logit_grad<N>(s, block...);
                   })))
    float* out[3] = {dfn, dbase, dscale};
    sum_parts(parts, m, n * d, 3, threads, out);
}

void anychip_hc_head_back(int n, int64_t tokens, int64_t d, float eps, float norm_eps, const float* x, const float* fn,
                          const float* base, const float* scale, const float* mix, const float* rms, const float* dout,
                          float* dx, float* dfn, float* dbase, float* dscale, float* parts) {
    Site s = {fn, base, scale, tokens, d, 0, eps, norm_eps};
    int threads = 1;
    float* slices = parts + omp_get_max_threads() * (n * n * d + n + 1);
    to_slices(fn, n, n * d, slices);
    const PreGrad g = {dout, nullptr, nullptr, mix, rms, dx, false};
    FOR_STREAMS(n, threads = (site_back<N, N>(s, x, slices, g, parts, [&](auto... block) {
                       head_logit_grad<N>(s, block...);
                   })))
    float* out[3] = {dfn, dbase, dscale};
    sum_parts(parts, n, n * d, 1, threads, out);
}

void anychip_hc_post_back(int n, int64_t tokens, int64_t d, const float* dout, const float* y, const float* x,
                          const float* weight, const float* comb, float* dy, float* dx, float* dweight, float* dcomb) {
    FOR_STREAMS(n, post_back<N>(tokens, d, {dout, y, x, weight, comb, dy, dx, dweight, dcomb}))
}
}
