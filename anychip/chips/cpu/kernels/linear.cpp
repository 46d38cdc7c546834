// Products of a few tokens with a weight matrix: every weight is read once, at the speed of memory.
#include "simd.h"

extern "C" {

// y [T, G*O] from x [T, G, I]: output row p of group p / O is x[t][group] . w[p]. One group is a plain linear map.
void anychip_linear_few(int64_t tokens, int64_t groups, int64_t inputs, int64_t outputs, const float* x, const float* w,
                        float* y) {
    const int64_t steps = (outputs + STEP - 1) / STEP, all = groups * outputs;
#pragma omp parallel for schedule(static) if (tokens * all * inputs > 98304)
    for (int64_t i = 0; i < groups * steps; i++) {
        const int64_t g = i / steps, row = i % steps * STEP;
        const int rows = outputs - row < STEP ? outputs - row : STEP;
        for (int64_t t = 0; t < tokens; t++) {
            float part[STEP];
            stream_dots(x + (t * groups + g) * inputs, w + (g * outputs + row) * inputs, rows, inputs, part);
            std::memcpy(y + t * all + g * outputs + row, part, sizeof(float) * rows);
        }
    }
}
}
