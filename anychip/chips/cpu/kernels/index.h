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
INLINE int64_t index_lanes(int64_t heads) { return (heads + INDEX_LANES - 1) / INDEX_LANES * INDEX_LANES; }  // whole vectors

// panel[c][lane] = query head `lane` of one token, heads from `head` on; missing lanes are zero.
void to_panel(const float* query, int64_t heads, int64_t channels, float* panel) {
    for (int64_t c = 0; c < channels; c++)
        for (int64_t lane = 0; lane < INDEX_LANES; lane++) panel[c * INDEX_LANES + lane] = lane < heads ? query[lane * channels + c] : 0.0f;
}

#ifdef __AVX512F__
typedef f16 Wide;
constexpr int KEYS_TOGETHER = 8;  // as many sums as hide the latency of multiply-adds
#else
typedef f8 Wide;
constexpr int KEYS_TOGETHER = 4;
#endif
constexpr int WIDE = sizeof(Wide) / sizeof(float), PARTS = INDEX_LANES / WIDE;

INLINE Wide load_lanes(const float* p) {
    Wide v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

// score[r] (+)= sum over lanes of weight * max(0, key_r . panel), for R consecutive keys.
template <int R>
INLINE void score_keys(const float* key, int64_t channels, const float* panel, const float* weight, float* score, bool add) {
    Wide acc[R][PARTS] = {};
    for (int64_t c = 0; c < channels; c++)
        for (int i = 0; i < PARTS; i++) {
            const Wide b = load_lanes(panel + c * INDEX_LANES + i * WIDE);
            for (int r = 0; r < R; r++) acc[r][i] += key[r * channels + c] * b;
        }
    f8 sum[R] = {};
    for (int r = 0; r < R; r++)
        for (int i = 0; i < PARTS; i++)
            sum[r] += fold8((acc[r][i] < 0.0f ? Wide{} : acc[r][i]) * load_lanes(weight + i * WIDE));  // NaN stays
    float out[R];
    if constexpr (R % 4 == 0)
        for (int r = 0; r < R; r += 4) {
            const f4 four = sum8x4(sum[r], sum[r + 1], sum[r + 2], sum[r + 3]);
            std::memcpy(out + r, &four, sizeof four);
        }
    else
        for (int r = 0; r < R; r++) out[r] = sum8(sum[r]);
    for (int r = 0; r < R; r++) score[r] = add ? score[r] + out[r] : out[r];
}

struct Indexer {
    int64_t heads, channels;
    const float *query, *weight, *key;
};

// Scores of one token against `count` keys from `first`, into score[0..count).
void score_token(const Indexer& x, int64_t token, const float* panels, int64_t first, int64_t count, float* score) {
    for (int64_t head = 0, panel = 0; head < x.heads; head += INDEX_LANES, panel++) {
        float w[INDEX_LANES] = {};
        std::memcpy(w, x.weight + token * x.heads + head, sizeof(float) * std::min(INDEX_LANES, x.heads - head));
        const float *key = x.key + first * x.channels, *p = panels + panel * x.channels * INDEX_LANES;
        int64_t k = 0;
        constexpr int R = KEYS_TOGETHER;
        for (; k + R <= count; k += R) score_keys<R>(key + k * x.channels, x.channels, p, w, score + k, head > 0);
        for (; k < count; k++) score_keys<1>(key + k * x.channels, x.channels, p, w, score + k, head > 0);
    }
}

// A number that orders like the score: larger is better, -0 equals 0, NaN is the lowest.
INLINE uint32_t order(float score) {
    int32_t bits;
    const float x = score + 0.0f;  // -0 becomes 0
    std::memcpy(&bits, &x, 4);
    return score != score ? 0u : uint32_t(bits) ^ (uint32_t(bits >> 31) | 0x80000000u);
}

// Write the rows of the `topk` best of `count` scores, ascending, ties to the lowest row; -1 where there are fewer.
//
// The topk-th best of the groups' best scores is no better than the topk-th best score: only what reaches it is sorted.
void select(const float* score, int64_t count, int64_t first, int64_t topk, std::vector<uint32_t>& keys,
            std::vector<uint32_t>& best, int32_t* out) {
    if (count <= topk) {
        for (int64_t k = 0; k < topk; k++) out[k] = k < count ? int32_t(first + k) : -1;
        return;
    }
    constexpr int64_t GROUP = 32;
    const int64_t groups = (count + GROUP - 1) / GROUP;
    keys.assign(groups * GROUP, 0), best.assign(2 * groups, 0);
    for (int64_t k = 0; k < count; k++) keys[k] = order(score[k]);
    for (int64_t g = 0; g < groups; g++)
        for (int64_t k = g * GROUP; k < (g + 1) * GROUP; k++) best[g] = std::max(best[g], keys[k]);
    const auto nth_best = [](uint32_t* from, uint32_t* to, int64_t n) {
        std::nth_element(from, from + n - 1, to, std::greater<uint32_t>());
        return from[n - 1];
    };
    uint32_t bound = 0;
    if (groups >= topk) {
        std::copy_n(best.data(), groups, best.data() + groups);
        bound = nth_best(best.data() + groups, best.data() + 2 * groups, topk);
    }
    best.resize(groups);
    const auto reaches = [&](uint32_t least, const auto& take) {
        for (int64_t g = 0; g < groups; g++)
            if (best[g] >= least)
                for (int64_t k = g * GROUP; k < std::min(count, (g + 1) * GROUP); k++)
                    if (keys[k] >= least) take(k);
    };
    reaches(bound, [&](int64_t k) { best.push_back(keys[k]); });
    const uint32_t least = nth_best(best.data() + groups, best.data() + best.size(), topk);
    int64_t equal = topk - std::count_if(best.begin() + groups, best.end(), [&](uint32_t key) { return key > least; });
    reaches(least, [&](int64_t k) {
        if (keys[k] > least || equal-- > 0) *out++ = int32_t(first + k);
    });
}

}  // namespace
