// Routing: scores of logits, the K largest of score + bias (ties to the lowest id) in the best groups, and their weights.
#include <cmath>
#include <vector>

#include "route.h"
#include "simd.h"

namespace {

// Sorting puts NaN first, as torch does, so that a broken token stays visible.
INLINE bool before(float a, float b) { return a > b || (std::isnan(a) && !std::isnan(b)); }

void softmax(const float* logits, int64_t experts, float* scores) {
    float top = logits[0], sum = 0.0f;
    for (int64_t e = 1; e < experts; e++) top = before(logits[e], top) ? logits[e] : top;
    for (int64_t e = 0; e < experts; e += 8) {
        const int count = experts - e < 8 ? experts - e : 8;
        const f8 part = exp8(load_part(logits + e, count) - top);
        store_part(scores + e, part, count);
        for (int i = 0; i < count; i++) sum += part[i];
    }
    for (int64_t e = 0; e < experts; e++) scores[e] /= sum;
}

void scores_of(const float* logits, int64_t experts, int64_t kind, float* scores) {
    if (kind == SOFTMAX) return softmax(logits, experts, scores);
    for (int64_t e = 0; e < experts; e += 8) {
        const int count = experts - e < 8 ? experts - e : 8;
        const f8 x = load_part(logits + e, count);
        if (kind == SIGMOID) {
            store_part(scores + e, sigmoid8(x), count);
            continue;
        }
        const f8 soft = softplus8(x);
        for (int i = 0; i < count; i++) scores[e + i] = std::sqrt(soft[i]);
    }
}

void choose(const float* choice, int64_t experts, int64_t topk, bool* used, int64_t* ids) {
    std::memset(used, 0, experts);
    for (int64_t k = 0; k < topk; k++) {
        int64_t best = -1;
        for (int64_t e = 0; e < experts; e++)
            if (!used[e] && (best < 0 || before(choice[e], choice[best]))) best = e;
        used[best] = true;
        ids[k] = best;
    }
}

// A chosen expert's score, and its derivative (of a softmax: the score, which meets the sum of all).
INLINE float score_and_slope(float logit, int64_t kind, const float* known, float* slope) {
    if (kind == SOFTMAX) return *slope = *known;
    const float open = sigmoid8(all8(logit))[0];
    if (kind == SIGMOID) return *slope = open * (1.0f - open), open;
    const float score = std::sqrt(softplus8(all8(logit))[0]);
    *slope = score == 0.0f ? 0.0f : open / (2.0f * score);
    return score;
}

struct Scratch {
    std::vector<float> score, choice, group;
    std::vector<int64_t> kept;
    std::vector<char> used;
    Scratch(int64_t experts, const RouteRule& rule)
        : score(experts), choice(experts), group(rule.groups), kept(rule.kept), used(experts) {}
    bool* marks() { return reinterpret_cast<bool*>(used.data()); }
};

// -inf for the choice of experts outside the best groups, by the sum of a group's two best.
void keep_groups(int64_t experts, const RouteRule& rule, Scratch& s) {
    const int64_t size = experts / rule.groups;
    for (int64_t g = 0; g < rule.groups; g++) {
        const float* choice = s.choice.data() + g * size;
        int64_t best[2];
        choose(choice, size, 2, s.marks(), best);
        s.group[g] = choice[best[0]] + choice[best[1]];
    }
    choose(s.group.data(), rule.groups, rule.kept, s.marks(), s.kept.data());
    for (int64_t g = 0; g < rule.groups; g++)
        if (!s.used[g]) std::fill_n(s.choice.begin() + g * size, size, -INFINITY);
}

void route_token(const float* logits, int64_t experts, int64_t topk, const RouteRule& rule, const float* bias,
                 const int64_t* given, Scratch& s, int64_t* ids, float* weights) {
    scores_of(logits, experts, rule.score, s.score.data());
    if (given) {
        std::memcpy(ids, given, sizeof(int64_t) * topk);
    } else {
        for (int64_t e = 0; e < experts; e++) s.choice[e] = bias ? s.score[e] + bias[e] : s.score[e];
        if (rule.kept < rule.groups) keep_groups(experts, rule, s);
        choose(s.choice.data(), experts, topk, s.marks(), ids);
    }
    float sum = 0.0f;
    for (int64_t k = 0; k < topk; k++) sum += s.score[ids[k]];
    for (int64_t k = 0; k < topk; k++) weights[k] = rule.normalize ? s.score[ids[k]] / sum : s.score[ids[k]];
}

}  // namespace

extern "C" {

// From logits [T, E]. bias, given may be null; `given` ids [T, K] must lie in 0 .. E-1.
void anychip_route(int64_t tokens, int64_t experts, int64_t topk, const RouteRule* rule, const float* logits,
                   const float* bias, const int64_t* given, int64_t* ids, float* weights) {
#pragma omp parallel if (tokens * experts > 8192)
    {
        Scratch scratch(experts, *rule);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < tokens; t++)
            route_token(logits + t * experts, experts, topk, *rule, bias, given ? given + t * topk : nullptr, scratch,
                        ids + t * topk, weights + t * topk);
    }
}

// The same from x [T, d] and the gate's weight [E, d], for a few tokens.
void anychip_route_few(int64_t tokens, int64_t experts, int64_t topk, int64_t d, const RouteRule* rule, const float* x,
                       const float* gate, const float* bias, const int64_t* given, int64_t* ids, float* weights) {
    Scratch scratch(experts, *rule);
    std::vector<float> logits(experts);
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t e = 0; e < experts; e += 4)
            row_dots(x + t * d, gate + e * d, experts - e < 4 ? experts - e : 4, d, logits.data() + e);
        route_token(logits.data(), experts, topk, *rule, bias, given ? given + t * topk : nullptr, scratch,
                    ids + t * topk, weights + t * topk);
    }
}

// dlogits [T, E] (overwritten) from the gradient of the weights.
void anychip_route_back(int64_t tokens, int64_t experts, int64_t topk, const RouteRule* rule, const float* logits,
                        const int64_t* ids, const float* weights, const float* dweights, float* dlogits) {
#pragma omp parallel if (tokens * experts > 32768)
    {
        std::vector<float> score(rule->score == SOFTMAX ? experts : 0), slope(topk), dscore(topk);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < tokens; t++) {
            const float *row = logits + t * experts, *w = weights + t * topk, *dw = dweights + t * topk;
            const int64_t* id = ids + t * topk;
            float *out = dlogits + t * experts, sum = 0.0f, along = 0.0f, back = 0.0f;
            if (rule->score == SOFTMAX) softmax(row, experts, score.data());
            for (int64_t k = 0; k < topk; k++) {
                const float s = score_and_slope(row[id[k]], rule->score, score.data() + (score.empty() ? 0 : id[k]), &slope[k]);
                sum += s;
                along += dw[k] * w[k];
            }
            for (int64_t k = 0; k < topk; k++) dscore[k] = rule->normalize ? (dw[k] - along) / sum : dw[k];
            std::memset(out, 0, sizeof(float) * experts);
            for (int64_t k = 0; k < topk; k++) {
                out[id[k]] += dscore[k] * slope[k];
                back += dscore[k] * slope[k];
            }
            if (rule->score == SOFTMAX && !rule->normalize)
                for (int64_t e = 0; e < experts; e++) out[e] -= score[e] * back;
        }
    }
}
}
