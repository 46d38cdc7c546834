// Routing: scores sqrt(softplus(logit)), the K largest of score + bias (ties to the lowest id), weights that sum to one.
#include <cmath>
#include <vector>

#include "simd.h"

namespace {

// Sorting puts NaN first, as torch does, so that a broken token stays visible.
INLINE bool before(float a, float b) { return a > b || (std::isnan(a) && !std::isnan(b)); }

void scores_of(const float* logits, int64_t experts, float* scores) {
    for (int64_t e = 0; e < experts; e += 8) {
        const int count = experts - e < 8 ? experts - e : 8;
        f8 soft = softplus8(load_part(logits + e, count));
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

struct Scratch {
    std::vector<float> score, choice;
    std::vector<char> used;
    explicit Scratch(int64_t experts) : score(experts), choice(experts), used(experts) {}
};

void route_token(const float* logits, int64_t experts, int64_t topk, const float* bias, const int64_t* given, Scratch& s,
                 int64_t* ids, float* weights) {
    scores_of(logits, experts, s.score.data());
    if (given) {
        std::memcpy(ids, given, sizeof(int64_t) * topk);
    } else {
        for (int64_t e = 0; e < experts; e++) s.choice[e] = bias ? s.score[e] + bias[e] : s.score[e];
        choose(s.choice.data(), experts, topk, reinterpret_cast<bool*>(s.used.data()), ids);
    }
    float sum = 0.0f;
    for (int64_t k = 0; k < topk; k++) sum += s.score[ids[k]];
    for (int64_t k = 0; k < topk; k++) weights[k] = s.score[ids[k]] / sum;
}

}  // namespace

extern "C" {

// From logits [T, E]. bias, given may be null; `given` ids [T, K] must lie in 0 .. E-1.
void anychip_route(int64_t tokens, int64_t experts, int64_t topk, const float* logits, const float* bias,
                   const int64_t* given, int64_t* ids, float* weights) {
#pragma omp parallel if (tokens * experts > 8192)
    {
        Scratch scratch(experts);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < tokens; t++)
            route_token(logits + t * experts, experts, topk, bias, given ? given + t * topk : nullptr, scratch,
                        ids + t * topk, weights + t * topk);
    }
}

// The same from x [T, d] and the gate's weight [E, d], for a few tokens.
void anychip_route_few(int64_t tokens, int64_t experts, int64_t topk, int64_t d, const float* x, const float* gate,
                       const float* bias, const int64_t* given, int64_t* ids, float* weights) {
    Scratch scratch(experts);
    std::vector<float> logits(experts);
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t e = 0; e < experts; e += 4)
            row_dots(x + t * d, gate + e * d, experts - e < 4 ? experts - e : 4, d, logits.data() + e);
        route_token(logits.data(), experts, topk, bias, given ? given + t * topk : nullptr, scratch, ids + t * topk,
                    weights + t * topk);
    }
}

// dlogits [T, E] (overwritten) from the gradient of the weights.
void anychip_route_back(int64_t tokens, int64_t experts, int64_t topk, const float* logits, const int64_t* ids,
                        const float* weights, const float* dweights, float* dlogits) {
#pragma omp parallel for schedule(static) if (tokens * experts > 32768)
    for (int64_t t = 0; t < tokens; t++) {
        const float *row = logits + t * experts, *w = weights + t * topk, *dw = dweights + t * topk;
        const int64_t* id = ids + t * topk;
        float* out = dlogits + t * experts;
        std::memset(out, 0, sizeof(float) * experts);
        float sum = 0.0f, along = 0.0f;
        for (int64_t k = 0; k < topk; k++) {
            sum += std::sqrt(softplus8(all8(row[id[k]]))[0]);
            along += dw[k] * w[k];
        }
        for (int64_t k = 0; k < topk; k++) {
            const float logit = row[id[k]], score = std::sqrt(softplus8(all8(logit))[0]);
            const float slope = score == 0.0f ? 0.0f : sigmoid8(all8(logit))[0] / (2.0f * score);
            out[id[k]] += (dw[k] - along) / sum * slope;
        }
    }
}
}
