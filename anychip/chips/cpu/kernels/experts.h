// Routed experts and the shared expert: w2 (weight * silu(min(w1 x, limit)) * clamp(w3 x, -limit, limit)).
// (token, choice) pairs are sorted by expert and cut into panels of PANEL tokens; threads take panels (forward, dx) or
// blocks of weight rows (dw). Every result is made by one thread in one order, whichever thread that is.
#pragma once
#include <algorithm>
#include <vector>
#include <omp.h>

#include "tile.h"

namespace {

struct Bank {
    const float *w1, *w3, *w2;
    int64_t stride13, stride2;  // from one expert to the next
    int64_t experts, d, width;
};

// Where each pair goes. In `memory` (int32): offset [E+1], first panel [E+1], order [pairs], position [pairs].
struct Plan {
    int32_t *offset, *panel, *order, *position;
    int64_t pairs;
};

Plan plan_at(int32_t* memory, int64_t experts, int64_t pairs) {
    return {memory, memory + experts + 1, memory + 2 * (experts + 1), memory + 2 * (experts + 1) + pairs, pairs};
}

struct Item {
    int32_t expert, begin, count, panel;  // sorted rows begin .. begin + count, and the panel they are
    bool half() const { return count <= 8; }
};

// One or two panels of an expert that are worked on at once.
struct Together {
    const Item* first;
    int count;
    Panels panels() const { return count == 2 ? Panels::TWO : first->half() ? Panels::HALF : Panels::ONE; }
};

std::vector<Item> panels_of(const Plan& p, int64_t experts) {
    std::vector<Item> items;
    for (int32_t e = 0; e < experts; e++)
        for (int32_t at = p.offset[e], n = p.panel[e]; at < p.offset[e + 1]; at += PANEL, n++)
            items.push_back({e, at, std::min<int32_t>(PANEL, p.offset[e + 1] - at), n});
    return items;
}

std::vector<Together> together_of(const std::vector<Item>& items) {
    std::vector<Together> found;
    for (size_t i = 0; i < items.size(); i += found.back().count) {
        const bool pair = i + 1 < items.size() && items[i + 1].expert == items[i].expert;
        found.push_back({&items[i], pair ? 2 : 1});
    }
    return found;
}

struct Batch {
    const float *x, *weight;  // weight null: one
    int64_t tokens, choices;
    float limit;
};

// panel[channel][lane] of the tokens of an item, from rows [tokens][channels].
INLINE void gather(const Item& it, const Plan& p, int64_t choices, const float* from, int64_t channels, float* panel) {
    const float* rows[PANEL];
    for (int i = 0; i < it.count; i++) rows[i] = from + p.order[it.begin + i] / choices * channels;
    rows_to_panel(rows, it.count, channels, panel);
}

INLINE void lane_weights(const Item& it, const Plan& p, const float* weight, float* lanes) {
    for (int i = 0; i < PANEL; i++) lanes[i] = i >= it.count ? 0.0f : weight ? weight[p.order[it.begin + i]] : 1.0f;
}

// out[t] = the sum over the token's choices, in their order, of rows[position].
void sum_choices(const float* rows, const Plan& p, int64_t tokens, int64_t choices, int64_t d, float* out) {
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t c = 0; c < d; c += 8) {
            f8 sum = {};
            for (int64_t k = 0; k < choices; k++) {
                const int32_t at = p.position[t * choices + k];
                if (at >= 0) sum += load8(rows + at * d + c);
            }
            store8(out + t * d + c, sum);
        }
}

}  // namespace
