// Attention's inner loops: queries in the lanes, 8 V of them in a panel [channel][lane], and keys by a list of pointers.
#pragma once
#include <algorithm>
#include <cstdint>

#include "simd.h"

namespace {

// out[r][lane] = row_r . panel[.][lane] for R rows.
template <int R, int V>
INLINE void dots(const float* const* rows, int64_t channels, const float* panel, float* out) {
    typename Lanes<V>::type acc[R] = {};
    const float* row[R];
    for (int r = 0; r < R; r++) row[r] = rows[r];
    for (int64_t c = 0; c < channels; c++) {
        const auto b = Lanes<V>::hold(Lanes<V>::load(panel + c * V * 8));
        for (int r = 0; r < R; r++) acc[r] += row[r][c] * b;
    }
    for (int r = 0; r < R; r++) Lanes<V>::store(out + r * V * 8, acc[r]);
}

template <int V>
void all_dots(const float* const* rows, int64_t count, int64_t channels, const float* panel, float* out) {
    constexpr int R = V == 1 ? 12 : SIXTEENS;
    int64_t r = 0;
    for (; r + R <= count; r += R) dots<R, V>(rows + r, channels, panel, out + r * V * 8);
    for (; r < count; r++) dots<1, V>(rows + r, channels, panel, out + r * V * 8);
}

// out[c][lane] (+)= sum over rows of row[c] weight[row][lane], for R channels from c.
template <int R, int V>
INLINE void mix(const float* const* rows, int64_t count, int64_t c, const float* weight, float* out, bool add) {
    typename Lanes<V>::type acc[R] = {};
    for (int r = 0; r < R && add; r++) acc[r] = Lanes<V>::load(out + (c + r) * V * 8);
    for (int64_t k = 0; k < count; k++) {
        const auto b = Lanes<V>::hold(Lanes<V>::load(weight + k * V * 8));
        const float* row = rows[k] + c;
        for (int r = 0; r < R; r++) acc[r] += row[r] * b;
    }
    for (int r = 0; r < R; r++) Lanes<V>::store(out + (c + r) * V * 8, acc[r]);
}

// Rows lie a power of two apart, so only some of them fit the first cache's sets at once: blocks of 32.
template <int V>
void mix_all(const float* const* rows, int64_t count, int64_t channels, const float* weight, float* out) {
    constexpr int R = V == 1 ? 8 : SIXTEENS;
    constexpr int64_t BLOCK = 32;
    if (!count) std::fill(out, out + channels * V * 8, 0.0f);
    for (int64_t k = 0; k < count; k += BLOCK) {
        const int64_t n = std::min(BLOCK, count - k);
        int64_t c = 0;
        for (; c + R <= channels; c += R) mix<R, V>(rows + k, n, c, weight + k * V * 8, out, k > 0);
        for (; c + 2 <= channels; c += 2) mix<2, V>(rows + k, n, c, weight + k * V * 8, out, k > 0);
    }
}

}  // namespace
