// RMS normalisation and rotation of one row, for the ops and for kernels that share out their rows themselves.
#pragma once
#include <cmath>

#include "simd.h"

namespace {

// Which channels are rotated, and which are pairs: 0 stands for neighbours among the last ones.
constexpr int HALVES = 1;  // channels i and i + half
constexpr int FIRST = 2;   // the first channels

struct Rows {
    int64_t count, channels;
    int heads, half;
    float eps, sign;  // sign -1 rotates back
    const float *cos, *sin;
    int form = 0;
    int64_t turned() const { return form & FIRST ? 0 : channels - 2 * half; }  // where the rotated channels begin
};

// out[.] = the rotation of in[.] for one row's rotated channels (may be the same memory).
INLINE void rotate(const float* in, float* out, int64_t token, const Rows& r, float sign) {
    const float *c = r.cos + token * r.half, *s = r.sin + token * r.half;
    if (r.form & HALVES) {
        for (int i = 0; i < r.half; i++) {
            const float a = in[i], b = in[i + r.half], turn = sign * s[i];
            out[i] = a * c[i] - b * turn;
            out[i + r.half] = b * c[i] + a * turn;
        }
        return;
    }
    for (int i = 0; i < r.half; i++) {
        const float even = in[2 * i], odd = in[2 * i + 1], turn = sign * s[i];
        out[2 * i] = even * c[i] - odd * turn;
        out[2 * i + 1] = odd * c[i] + even * turn;
    }
}

INLINE void keep_unturned(const Rows& r, const float* in, float* out) {
    const int64_t from = r.form & FIRST ? 2 * r.half : 0;
    std::memcpy(out + from, in + from, sizeof(float) * (r.channels - 2 * r.half));
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
    rotate(out + r.turned(), out + r.turned(), row / r.heads, r, 1.0f);
    return rms;
}

INLINE void rope_row(const Rows& r, int64_t row, const float* x, float* y) {
    const float* in = x + row * r.channels;
    float* out = y + row * r.channels;
    keep_unturned(r, in, out);
    rotate(in + r.turned(), out + r.turned(), row / r.heads, r, r.sign);
}

}  // namespace
