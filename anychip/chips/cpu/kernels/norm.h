// RMS normalisation and rotation of one row, for the ops and for kernels that share out their rows themselves.
#pragma once
#include <cmath>

#include "simd.h"

namespace {

struct Rows {
    int64_t count, channels;
    int heads, half;
    float eps, sign;  // sign -1 rotates back
    const float *cos, *sin;
};

// out[.] = the rotation of in[.] for one row's tail (may be the same memory).
INLINE void rotate(const float* in, float* out, int64_t token, const Rows& r, float sign) {
    const float *c = r.cos + token * r.half, *s = r.sin + token * r.half;
    for (int i = 0; i < r.half; i++) {
        const float even = in[2 * i], odd = in[2 * i + 1], turn = sign * s[i];
        out[2 * i] = even * c[i] - odd * turn;
        out[2 * i + 1] = odd * c[i] + even * turn;
    }
}

INLINE void norm_row(const float* x, const float* weight, float scale, int64_t n, float* y) {
    int64_t i = 0;
    if (weight) {
        for (; i + 8 <= n; i += 8) store8(y + i, load8(weight + i) * (load8(x + i) * scale));
        for (; i < n; i++) y[i] = weight[i] * (x[i] * scale);
    } else {
        for (; i + 8 <= n; i += 8) store8(y + i, load8(x + i) * scale);
        for (; i < n; i++) y[i] = x[i] * scale;
    }
}

// y = rotate(weight * x / rms) of row `row`; returns 1 / rms.
INLINE float norm_rope_row(const Rows& r, int64_t row, const float* x, const float* weight, float* y) {
    const float* in = x + row * r.channels;
    float* out = y + row * r.channels;
    const float rms = 1.0f / std::sqrt(dot(in, in, r.channels) / r.channels + r.eps);
    norm_row(in, weight, rms, r.channels, out);
    const int64_t tail = r.channels - 2 * r.half;
    rotate(out + tail, out + tail, row / r.heads, r, 1.0f);
    return rms;
}

INLINE void rope_row(const Rows& r, int64_t row, const float* x, float* y) {
    const float* in = x + row * r.channels;
    float* out = y + row * r.channels;
    const int64_t tail = r.channels - 2 * r.half;
    std::memcpy(out, in, sizeof(float) * tail);
    rotate(in + tail, out + tail, row / r.heads, r, r.sign);
}

}  // namespace
