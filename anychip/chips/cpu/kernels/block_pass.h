// How the threads of a block's one parallel region share its work: products whose weights are streamed once, each thread
// its own contiguous part of the rows; barriers only where one thread reads what another made.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>
#include <omp.h>

#include "block.h"
#include "tile.h"

extern "C" {
void anychip_hc_pre_mixed(int, int64_t, int64_t, int, float, float, const float*, const float*, const float*, const float*,
                          float*, float*, float*);
void anychip_hc_post(int, int64_t, int64_t, const float*, const float*, const float*, const float*, float*);
void anychip_norm_rope(int64_t, int64_t, int, int, int, float, const float*, const float*, const float*, const float*, float*,
                       float*);
void anychip_rope(int64_t, int64_t, int, int, int, float, const float*, const float*, const float*, float*);
void anychip_compress(int64_t, int64_t, int64_t, int64_t, const float*, const float*, const float*, const int32_t*,
                      const int32_t*, float*, float*);
void anychip_route(int64_t, int64_t, int64_t, const RouteRule*, const float*, const float*, const int64_t*, int64_t*, float*);
}

namespace {

// Threads run the same code; `me` of `count` takes its share, and sync() waits for all.
struct Team {
    int64_t me, count;
    int64_t from(int64_t work) const { return work * me / count; }
    int64_t to(int64_t work) const { return work * (me + 1) / count; }
    bool mine(int64_t task) const { return task % count == me; }
    void sync() const {
#pragma omp barrier
    }
};

// A product of every token's x with the rows of w. Rows of y lie `y_step` apart, in the order of `to`.
struct Product {
    const float *w, *x;
    int64_t x_step, rows, inputs;
    float* y;
    int64_t y_step;
    Targets to;
};

void products(const Team& team, const Product* jobs, int count, int64_t tokens) {
    int64_t all = 0, base = 0;
    for (int j = 0; j < count; j++) all += (jobs[j].rows + STEP - 1) / STEP;
    const int64_t from = team.from(all), to = team.to(all);
    for (int j = 0; j < count; base += (jobs[j].rows + STEP - 1) / STEP, j++) {
        const Product& p = jobs[j];
        const int64_t last = std::min(to - base, (p.rows + STEP - 1) / STEP);
        for (int64_t s = std::max<int64_t>(from - base, 0); s < last; s++) {
            const int rows = std::min(STEP, p.rows - s * STEP);
            for (int64_t t = 0; t < tokens; t++) {
                float part[STEP];
                stream_dots(p.x + t * p.x_step, p.w + s * STEP * p.inputs, rows, p.inputs, part);
                std::memcpy(p.y + p.to(t) * p.y_step + s * STEP, part, sizeof(float) * rows);
            }
        }
    }
}

struct Pass {
    const BlockWeights& w;
    const LayerBuffers& b;
    const BlockPlan& p;
    const Shared& s;
    const Own& o;
    Team team;
    bool csa() const { return w.ratio == 4; }
    bool sparse() const { return w.index_heads && p.most > w.index_topk; }
    int64_t width(int64_t channels) const { return csa() ? 2 * channels : channels; }
    Product product(const float* w_, const float* x, int64_t rows, int64_t inputs, float* y) const {
        return {w_, x, inputs, rows, inputs, y, rows, {nullptr, 0}};
    }
};

}  // namespace
