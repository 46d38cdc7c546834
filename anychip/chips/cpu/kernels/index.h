// The lightning indexer's parts: scores of keys with a token's heads in the lanes, and an exact top-k.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "simd.h"

namespace {

constexpr int64_t INDEX_LANES = 16;

// panel[c][lane] = query head `lane` of one token, heads from `head` on; missing lanes are zero.
void to_panel(const float* query, int64_t heads, int64_t channels, float* panel) {
    for (int64_t c = 0; c < channels; c++)
        for (int64_t lane = 0; lane < INDEX_LANES; lane++) panel[c * INDEX_LANES + lane] = lane < heads ? query[lane * channels + c] : 0.0f;
}

// score[r] (+)= sum over lanes of weight * max(0, key_r . panel), for R consecutive keys.
template <int R>
INLINE void score_keys(const float* key, int64_t channels, const float* panel, f8 w0, f8 w1, float* score, bool add) {
    f8 acc[R][2] = {};
    for (int64_t c = 0; c < channels; c++) {
        f8 b0 = load8(panel + c * INDEX_LANES), b1 = load8(panel + c * INDEX_LANES + 8);
        for (int r = 0; r < R; r++) {
            acc[r][0] += key[r * channels + c] * b0;
            acc[r][1] += key[r * channels + c] * b1;
        }
    }
    for (int r = 0; r < R; r++) {
        float sum = sum8(max8(acc[r][0], 0.0f) * w0 + max8(acc[r][1], 0.0f) * w1);
        score[r] = add ? score[r] + sum : sum;
    }
}

struct Indexer {
    int64_t heads, channels;
    const float *query, *weight, *key;
};

// Scores of one token against `count` keys from `first`, into score[0..count).
void score_token(const Indexer& x, int64_t token, const float* panels, int64_t first, int64_t count, float* score) {
    for (int64_t head = 0, panel = 0; head < x.heads; head += INDEX_LANES, panel++) {
        f8 w[2] = {};
        for (int64_t lane = 0; lane < std::min(INDEX_LANES, x.heads - head); lane++)
            w[lane / 8][lane % 8] = x.weight[token * x.heads + head + lane];
        const float *key = x.key + first * x.channels, *p = panels + panel * x.channels * INDEX_LANES;
        int64_t k = 0;
        for (; k + 6 <= count; k += 6) score_keys<6>(key + k * x.channels, x.channels, p, w[0], w[1], score + k, head > 0);
        for (; k < count; k++) score_keys<1>(key + k * x.channels, x.channels, p, w[0], w[1], score + k, head > 0);
    }
}

// A number that orders like the score: larger is better, -0 equals 0, NaN is the lowest.
INLINE uint32_t order(float score) {
    if (score != score) return 0;
    uint32_t bits;
    score += 0.0f;  // -0 becomes 0
    std::memcpy(&bits, &score, 4);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Write the rows of the `topk` best of `count` scores, ascending, ties to the lowest row; -1 where there are fewer.
void select(const float* score, int64_t count, int64_t first, int64_t topk, std::vector<uint32_t>& keys,
            std::vector<uint32_t>& ties, int32_t* out) {
    if (count <= topk) {
        for (int64_t k = 0; k < topk; k++) out[k] = k < count ? int32_t(first + k) : -1;
        return;
    }
    keys.resize(count);
    constexpr int BINS = 2048;
    int32_t bins[BINS] = {};
    for (int64_t k = 0; k < count; k++) bins[(keys[k] = order(score[k])) >> 21]++;
    int64_t above = 0;
    uint32_t bin = BINS - 1;
    while (above + bins[bin] < topk) above += bins[bin--];
    ties.clear();
    for (int64_t k = 0; k < count; k++)
        if (keys[k] >> 21 == bin) ties.push_back(keys[k]);
    auto nth = ties.begin() + (topk - above - 1);
    std::nth_element(ties.begin(), nth, ties.end(), std::greater<uint32_t>());
    const uint32_t threshold = *nth;
    int64_t equal = topk - above - std::count_if(ties.begin(), nth, [&](uint32_t key) { return key > threshold; });
    int64_t n = 0;
    for (int64_t k = 0; n < topk; k++)
        if (keys[k] > threshold || (keys[k] == threshold && equal-- > 0)) out[n++] = int32_t(first + k);
}

}  // namespace
