// The lightning indexer: scores of blocks of tokens against all their visible entries, then an exact top-k.
// A token's heads lie in the lanes; the weighted sum over heads is taken before anything is stored.
#include "index_rough.h"

namespace {

constexpr int64_t TOKENS = 8, KEYS = 128, LANES = INDEX_LANES;

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

// Bytes of the copies of sixteen keys that index_rough.h scans; 0 where this processor gains nothing by them.
extern "C" int anychip_index_group_bytes(int64_t channels) { return rough::usable(channels) ? rough::group_bytes(channels) : 0; }
