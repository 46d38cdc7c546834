// What mHC's forward and backward share. Streams are [T, n, d]; weights.fn is [m, n*d]. Tokens are worked on eight at a
// time: the mixing weights of eight tokens lie in the lanes of vectors ("lanes"), one token a lane.
#pragma once
#include <cmath>
#include <omp.h>

#include "simd.h"

namespace {

constexpr int LANES = 8;

struct Site {
    const float *fn, *base, *scale;
    int64_t tokens, d;
    int iters;
    float eps, norm_eps;
};

// lanes[o] = mix[.][o] * rms[.]: eight tokens' products, normalised, one token a lane (absent ones zero).
INLINE void to_lanes(const float* mix, const float* rms, int count, int m, f8* lanes) {
    float* flat = reinterpret_cast<float*>(lanes);
    for (int o = 0; o < m; o++)
        for (int t = 0; t < LANES; t++) flat[o * LANES + t] = t < count ? mix[t * m + o] * rms[t] : 0.0f;
}

INLINE float* floats(f8* v) { return reinterpret_cast<float*>(v); }

// The block of up to LANES tokens from t0 on.
INLINE int64_t blocks_of(const Site& s) { return (s.tokens + LANES - 1) / LANES; }
INLINE int tokens_of(const Site& s, int64_t t0) { return s.tokens - t0 < LANES ? s.tokens - t0 : LANES; }

}  // namespace

#define FOR_STREAMS(n, call)                                                      \
    switch (n) {                                                                  \
        case 1: { constexpr int N = 1; call; break; }                             \
        case 2: { constexpr int N = 2; call; break; }                             \
        case 3: { constexpr int N = 3; call; break; }                             \
        case 4: { constexpr int N = 4; call; break; }                             \
    }
