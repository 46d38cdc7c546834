// Sinkhorn on the n x n mixing logits of eight tokens at once, and its exact gradient.
#pragma once
#include "simd.h"

namespace {

constexpr int MAX_ITERS = 64;  // iterations that the backward's scratch holds

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

}  // namespace
