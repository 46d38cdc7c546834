// Products whose every result is summed in one fixed order, whatever the number of tokens: eight running sums over the
// terms k = 0, 8, 16, .. to k = 7, 15, .., joined as sum8 does, then the terms that are left.
#pragma once
#include "batch.h"

namespace {

constexpr int64_t TOGETHER = 6144;  // floats of tokens that stay in the first cache while weights pass by

// y[j] = (w_0 . x_j, .., w_3 . x_j) for N tokens; w_r = w + r * step.
template <int N>
INLINE void dots4(const float* w, int64_t step, int64_t n, const float* const* x, f4* y) {
    f8 acc[4][N] = {};
    const float *w0 = w, *w1 = w0 + step, *w2 = w1 + step, *w3 = w2 + step;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        f8 xs[N];
        for (int j = 0; j < N; j++) xs[j] = hold8(load8(x[j] + i));
        const f8 a = hold8(load8(w0 + i));
        for (int j = 0; j < N; j++) acc[0][j] += a * xs[j];
        const f8 b = hold8(load8(w1 + i));
        for (int j = 0; j < N; j++) acc[1][j] += b * xs[j];
        const f8 c = hold8(load8(w2 + i));
        for (int j = 0; j < N; j++) acc[2][j] += c * xs[j];
        const f8 d = hold8(load8(w3 + i));
        for (int j = 0; j < N; j++) acc[3][j] += d * xs[j];
    }
    for (int j = 0; j < N; j++) {
        y[j] = sum8x4(acc[0][j], acc[1][j], acc[2][j], acc[3][j]);
        for (int64_t k = i; k < n; k++) y[j] += f4{w0[k], w1[k], w2[k], w3[k]} * x[j][k];
    }
}

// Rows r .. r+3 (fewer at the end) of w times `count` tokens; put(token, sums) receives four results a token.
template <class Put>
INLINE void rows_times_tokens(const float* w, int64_t rows, int64_t n, const float* const* x, int64_t count, const Put& put) {
    std::vector<float> copy;
    if (rows < 4) {  // rare: the last rows of an odd matrix
        copy.assign(4 * n, 0.0f);
        std::memcpy(copy.data(), w, sizeof(float) * rows * n);
        w = copy.data();
    }
    f4 y[3];
    int64_t t = 0;
    for (; t + 3 <= count; t += 3) {
        dots4<3>(w, n, n, x + t, y);
        for (int j = 0; j < 3; j++) put(t + j, y[j]);
    }
    if (count - t == 2) {
        dots4<2>(w, n, n, x + t, y);
        put(t, y[0]), put(t + 1, y[1]);
    } else if (count - t == 1) {
        dots4<1>(w, n, n, x + t, y);
        put(t, y[0]);
    }
}

INLINE void ask_for(const float* w, int64_t floats) {
    for (int64_t i = 0; i < floats; i += 16) __builtin_prefetch(w + i);
}

// y [tokens][y_step] = x [tokens][x_step] times the rows of w [rows][inputs].
struct Product {
    const float *w, *x;
    int64_t x_step, rows, inputs;
    float* y;
    int64_t y_step;
};

// This thread's share of steps [from, to) of four rows of one product.
void product_steps(const Product& p, int64_t tokens, int64_t from, int64_t to) {
    const int64_t block = std::max<int64_t>(3, TOGETHER / p.inputs / 3 * 3);
    std::vector<const float*> x(std::min(block, tokens));
    for (int64_t t0 = 0; t0 < tokens; t0 += block) {
        const int64_t count = std::min(block, tokens - t0);
        for (int64_t t = 0; t < count; t++) x[t] = p.x + (t0 + t) * p.x_step;
        for (int64_t s = from; s < to; s++) {
            const int64_t rows = std::min<int64_t>(4, p.rows - 4 * s);
            const float* w = p.w + 4 * s * p.inputs;
            if (tokens <= 3) ask_for(w + 4 * p.inputs, rows * p.inputs);
            float* y = p.y + t0 * p.y_step + 4 * s;
            rows_times_tokens(w, rows, p.inputs, x.data(), count,
                              [&](int64_t t, f4 v) { std::memcpy(y + t * p.y_step, &v, sizeof(float) * rows); });
        }
    }
}

// Several products of the same tokens; each thread takes its part of all their rows.
void products(const Crew& crew, const Product* jobs, int count, int64_t tokens) {
    int64_t all = 0, base = 0;
    for (int j = 0; j < count; j++) all += (jobs[j].rows + 3) / 4;
    const int64_t from = crew.from(all), to = crew.to(all);
    for (int j = 0; j < count; j++) {
        const int64_t steps = (jobs[j].rows + 3) / 4;
        const int64_t a = std::max<int64_t>(from - base, 0), b = std::min(to - base, steps);
        if (a < b) product_steps(jobs[j], tokens, a, b);
        base += steps;
    }
}

}  // namespace
