// Pooling of a window's tokens into one entry: per channel, a softmax over the window's slots weighs the values.
// Rows are [N, width]; with overlap, width = 2 channels: [:channels] serves the next window, the rest the own one.
#include <algorithm>
#include <cmath>
#include <omp.h>

#include "simd.h"

namespace {

struct Windows {
    const float *value, *gate, *ape;
    const int32_t *first, *previous;  // previous null: no overlap
    int64_t entries, slots, channels, width;
};

// One run of `slots` rows that an entry pools: where it starts, and which half of the width it takes.
struct Run {
    int64_t row, column;
};

INLINE int runs_of(const Windows& w, int64_t e, Run* runs) {
    runs[0] = {w.first[e], w.width - w.channels};
    if (!w.previous || w.previous[e] < 0) return 1;
    runs[1] = {w.previous[e], 0};
    return 2;
}

INLINE f8 gate_at(const Windows& w, const Run& run, int64_t slot, int64_t c, int count) {
    return load_part(w.gate + (run.row + slot) * w.width + run.column + c, count)
           + load_part(w.ape + slot * w.width + run.column + c, count);
}

INLINE void pool(const Windows& w, int64_t e, int64_t c, int count, float* out, float* kept) {
    Run runs[2];
    const int many = runs_of(w, e, runs);
    f8 top = all8(-INFINITY), sum = {}, total = {};
    for (int r = 0; r < many; r++)
        for (int64_t s = 0; s < w.slots; s++) top = larger8(top, gate_at(w, runs[r], s, c, count));
    for (int r = 0; r < many; r++)
        for (int64_t s = 0; s < w.slots; s++) {
            f8 p = exp8(gate_at(w, runs[r], s, c, count) - top);
            sum += p;
            total += p * load_part(w.value + (runs[r].row + s) * w.width + runs[r].column + c, count);
        }
    f8 inverse = 1.0f / sum;
    store_part(out + e * w.channels + c, total * inverse, count);
    if (!kept) return;
    store_part(kept + e * w.channels + c, top, count);
    store_part(kept + (w.entries + e) * w.channels + c, inverse, count);
}

struct Gradient {
    const float *out, *kept, *dout;
    float *dvalue, *dgate, *dape;
};

INLINE void pool_back(const Windows& w, const Gradient& g, int64_t e, int64_t c, int count) {
    Run runs[2];
    const int many = runs_of(w, e, runs);
    f8 top = load_part(g.kept + e * w.channels + c, count), out = load_part(g.out + e * w.channels + c, count);
    f8 inverse = load_part(g.kept + (w.entries + e) * w.channels + c, count);
    f8 grad = load_part(g.dout + e * w.channels + c, count);
    for (int r = 0; r < many; r++)
        for (int64_t s = 0; s < w.slots; s++) {
            const int64_t at = (runs[r].row + s) * w.width + runs[r].column + c;
            const int64_t at_ape = s * w.width + runs[r].column + c;
            f8 dvalue = exp8(gate_at(w, runs[r], s, c, count) - top) * inverse * grad;
            f8 dgate = dvalue * (load_part(w.value + at, count) - out);
            store_part(g.dvalue + at, load_part(g.dvalue + at, count) + dvalue, count);
            store_part(g.dgate + at, load_part(g.dgate + at, count) + dgate, count);
            store_part(g.dape + at_ape, load_part(g.dape + at_ape, count) + dgate, count);
        }
}

}  // namespace

extern "C" {

// out [E, channels]; kept [2, E, channels] (each softmax's top and inverse sum) may be null.
void anychip_compress(int64_t entries, int64_t slots, int64_t channels, int64_t width, const float* value, const float* gate,
                      const float* ape, const int32_t* first, const int32_t* previous, float* out, float* kept) {
    const Windows w = {value, gate, ape, first, previous, entries, slots, channels, width};
#pragma omp parallel for schedule(static) if (entries * slots * channels > 16384)
    for (int64_t e = 0; e < entries; e++) {
        int64_t c = 0;
        for (; c + 8 <= channels; c += 8) pool(w, e, c, 8, out, kept);
        if (c < channels) pool(w, e, c, channels - c, out, kept);
    }
}

// Adds to dvalue, dgate [N, width] and dape [slots, width]. Threads take channels, so that no two meet.
void anychip_compress_back(int64_t entries, int64_t slots, int64_t channels, int64_t width, const float* value,
                           const float* gate, const float* ape, const int32_t* first, const int32_t* previous,
                           const float* out, const float* kept, const float* dout, float* dvalue, float* dgate, float* dape) {
    const Windows w = {value, gate, ape, first, previous, entries, slots, channels, width};
    const Gradient g = {out, kept, dout, dvalue, dgate, dape};
#pragma omp parallel if (entries * slots * channels > 16384)
    {
        const int64_t blocks = (channels + 7) / 8, threads = omp_get_num_threads(), me = omp_get_thread_num();
        const int64_t from = blocks * me / threads * 8, to = std::min(blocks * (me + 1) / threads * 8, channels);
        for (int64_t e = 0; e < entries; e++)
            for (int64_t c = from; c < to; c += 8) {
                if (c + 8 <= to) pool_back(w, g, e, c, 8);
                else pool_back(w, g, e, c, to - c);
            }
    }
}
}
