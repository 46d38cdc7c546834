// RMS normalisation and rotary embedding of rows of C channels, forward and backward, each in one pass.
// A row belongs to token row / heads; 2 * half channels are rotated as `form` says. half may be 0.
#include <omp.h>

#include "norm.h"

namespace {

// Below this many elements one thread is faster than waking the others.
INLINE bool worth_threads(const Rows& r) { return r.count * r.channels > 32768; }

// dx = rms (dy w - x rms^2 mean(dy w x)); dw += dy x rms. `dy` is the gradient before the rotation was undone.
void norm_row_back(const float* x, const float* weight, const float* dy, float rms, int64_t n, float* dx, float* dw) {
    float sum = 0.0f;
    if (weight) {
        f8 part = {};
        int64_t i = 0;
        for (; i + 8 <= n; i += 8) {
            f8 both = load8(dy + i) * load8(x + i);
            part += both * load8(weight + i);
            if (dw) store8(dw + i, load8(dw + i) + both * rms);
        }
        for (; i < n; i++) {
            sum += dy[i] * x[i] * weight[i];
            if (dw) dw[i] += dy[i] * x[i] * rms;
        }
        sum += sum8(part);
    } else {
        sum = dot(dy, x, n);
    }
    const float back = sum * rms * rms / n;
    for (int64_t i = 0; i < n; i++) dx[i] = rms * ((weight ? dy[i] * weight[i] : dy[i]) - x[i] * back);
}

}  // namespace

extern "C" {

// y = rotate(weight * x / rms). `weight`, `kept` (1 / rms of each row) may be null; half 0 is no rotation.
void anychip_norm_rope(int64_t count, int64_t channels, int heads, int half, int form, float eps, const float* x,
                       const float* weight, const float* cos, const float* sin, float* y, float* kept) {
    const Rows r = {count, channels, heads, half, eps, 1.0f, cos, sin, form};
#pragma omp parallel for schedule(static) if (worth_threads(r))
    for (int64_t row = 0; row < count; row++) {
        const float rms = norm_rope_row(r, row, x, weight, y);
        if (kept) kept[row] = rms;
    }
}

// `parts` holds `threads` rows of channels (null without weight); dw receives their sum in thread order.
void anychip_norm_rope_back(int64_t count, int64_t channels, int heads, int half, int form, const float* x, const float* weight,
                            const float* cos, const float* sin, const float* kept, const float* dy, float* dx, float* dw,
                            float* parts) {
    const Rows r = {count, channels, heads, half, 0.0f, 1.0f, cos, sin, form};
    int threads = 1;
#pragma omp parallel if (worth_threads(r))
    {
#pragma omp single
        threads = omp_get_num_threads();
        float *own = parts ? parts + 2 * omp_get_thread_num() * channels : nullptr, *turned = own ? own + channels : nullptr;
        float* sums = dw ? own : nullptr;
        if (sums) std::memset(sums, 0, sizeof(float) * channels);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < count; row++) {
            const float* grad = dy + row * channels;
            if (half) {
                keep_unturned(r, grad, turned);
                rotate(grad + r.turned(), turned + r.turned(), row / heads, r, -1.0f);
                grad = turned;
            }
            norm_row_back(x + row * channels, weight, grad, kept[row], channels, dx + row * channels, sums);
        }
    }
    if (!dw) return;
    for (int64_t i = 0; i < channels; i++) {
        float sum = parts[i];
        for (int p = 1; p < threads; p++) sum += parts[2 * p * channels + i];
        dw[i] = sum;
    }
}

// y = x with every row's rotated channels turned by sign * angle.
void anychip_rope(int64_t count, int64_t channels, int heads, int half, int form, float sign, const float* x, const float* cos,
                  const float* sin, float* y) {
    const Rows r = {count, channels, heads, half, 0.0f, sign, cos, sin, form};
#pragma omp parallel for schedule(static) if (worth_threads(r))
    for (int64_t row = 0; row < count; row++) rope_row(r, row, x, y);
}
}
