// The lightning indexer: scores of blocks of tokens against all their visible entries, then an exact top-k.
// A token's heads lie in the lanes; the weighted sum over heads is taken before anything is stored.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "simd.h"

namespace {

constexpr int64_t LANES = 16, TOKENS = 8, KEYS = 128;

// panel[c][lane] = query head `lane` of one token, heads from `head` on; missing lanes are zero.
void to_panel(const float* query, int64_t heads, int64_t channels, float* panel) {
    for (int64_t c = 0; c < channels; c++)
        for (int64_t lane = 0; lane < LANES; lane++) panel[c * LANES + lane] = lane < heads ? query[lane * channels + c] : 0.0f;
}

// score[r] (+)= sum over lanes of weight * max(0, key_r . panel), for R consecutive keys.
template <int R>
INLINE void score_keys(const float* key, int64_t channels, const float* panel, f8 w0, f8 w1, float* score, bool add) {
    f8 acc[R][2] = {};
    for (int64_t c = 0; c < channels; c++) {
        f8 b0 = load8(panel + c * LANES), b1 = load8(panel + c * LANES + 8);
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
    for (int64_t head = 0, panel = 0; head < x.heads; head += LANES, panel++) {
        f8 w[2] = {};
        for (int64_t lane = 0; lane < std::min(LANES, x.heads - head); lane++)
            w[lane / 8][lane % 8] = x.weight[token * x.heads + head + lane];
        const float *key = x.key + first * x.channels, *p = panels + panel * x.channels * LANES;
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

void few_tokens(const Indexer& x, int64_t tokens, const int32_t* start, const int32_t* count, int64_t topk, int32_t* out) {
    const int64_t panels = (x.heads + LANES - 1) / LANES;
    std::vector<float> panel(panels * x.channels * LANES), score;
    std::vector<uint32_t> keys, ties;
    for (int64_t t = 0; t < tokens; t++) {
        score.resize(std::max<size_t>(score.size(), count[t]));
        for (int64_t i = 0; i < panels; i++)
            to_panel(x.query + (t * x.heads + i * LANES) * x.channels, std::min(LANES, x.heads - i * LANES), x.channels,
                     &panel[i * x.channels * LANES]);
        const int64_t blocks = (count[t] + KEYS - 1) / KEYS;
#pragma omp parallel for if (blocks > 8)
        for (int64_t b = 0; b < blocks; b++)
            score_token(x, t, panel.data(), start[t] + b * KEYS, std::min<int64_t>(KEYS, count[t] - b * KEYS), &score[b * KEYS]);
        select(score.data(), count[t], start[t], topk, keys, ties, out + t * topk);
    }
}

void many_tokens(const Indexer& x, int64_t tokens, const int32_t* start, const int32_t* count, int64_t most, int64_t topk, int32_t* out) {
    const int64_t panels = (x.heads + LANES - 1) / LANES, size = panels * x.channels * LANES;
#pragma omp parallel
    {
        std::vector<float> panel(TOKENS * size), score(TOKENS * most);
        std::vector<uint32_t> keys, ties;
#pragma omp for schedule(dynamic, 1)
        for (int64_t t0 = 0; t0 < tokens; t0 += TOKENS) {
            const int64_t n = std::min(TOKENS, tokens - t0);
            int64_t longest = 0;
            for (int64_t t = 0; t < n; t++) {
                longest = std::max<int64_t>(longest, count[t0 + t]);
                for (int64_t i = 0; i < panels; i++)
                    to_panel(x.query + ((t0 + t) * x.heads + i * LANES) * x.channels, std::min(LANES, x.heads - i * LANES),
                             x.channels, &panel[t * size + i * x.channels * LANES]);
            }
            for (int64_t k = 0; k < longest; k += KEYS)
                for (int64_t t = 0; t < n; t++)
                    if (int64_t keys_left = std::min<int64_t>(KEYS, count[t0 + t] - k); keys_left > 0)
                        score_token(x, t0 + t, &panel[t * size], start[t0 + t] + k, keys_left, &score[t * most + k]);
            for (int64_t t = 0; t < n; t++)
                select(&score[t * most], count[t0 + t], start[t0 + t], topk, keys, ties, out + (t0 + t) * topk);
        }
    }
}

}  // namespace

extern "C" void anychip_index_topk(int64_t tokens, int64_t heads, int64_t channels, const float* query, const float* weight,
                                   const float* key, const int32_t* start, const int32_t* count, int64_t most,
                                   int64_t topk, int32_t* out) {
    Indexer x{heads, channels, query, weight, key};
    tokens <= 4 ? few_tokens(x, tokens, start, count, topk, out) : many_tokens(x, tokens, start, count, most, topk, out);
}

// Scores of one token (query [H, I], weight [H]) against `count` keys from row `first`.
extern "C" void anychip_index_scores(int64_t heads, int64_t channels, const float* query, const float* weight,
                                     const float* key, int64_t first, int64_t count, float* score) {
    const Indexer x{heads, channels, query, weight, key};
    std::vector<float> panel((heads + LANES - 1) / LANES * channels * LANES);
    for (int64_t head = 0; head < heads; head += LANES)
        to_panel(query + head * channels, std::min(LANES, heads - head), channels, &panel[head * channels]);
    score_token(x, 0, panel.data(), first, count, score);
}

// The rows of the topk best of `count` scores of the rows from `first`, ascending; -1 where there are fewer.
extern "C" void anychip_index_select(const float* score, int64_t count, int64_t first, int64_t topk, int32_t* out) {
    std::vector<uint32_t> keys, ties;
    select(score, count, first, topk, keys, ties, out);
}
