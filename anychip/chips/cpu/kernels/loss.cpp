// Cross-entropy of logits that exist for a chunk of tokens only.
#include <cmath>

#include "simd.h"

extern "C" {

// losses[t] = logsumexp(logits[t]) - logits[t][target]; 0 where target < 0. With `into_gradient`, logits become
// softmax - onehot(target) (zero rows where target < 0): the gradient of each token's own loss.
void anychip_cross_entropy(int64_t tokens, int64_t vocabulary, float* logits, const int64_t* target, int into_gradient,
                           float* losses) {
#pragma omp parallel for schedule(static) if (tokens * vocabulary > 16384)
    for (int64_t t = 0; t < tokens; t++) {
        float* row = logits + t * vocabulary;
        if (target[t] < 0) {
            losses[t] = 0.0f;
            if (into_gradient) std::memset(row, 0, sizeof(float) * vocabulary);
            continue;
        }
        f8 tops = all8(-INFINITY), sums = {};
        int64_t i = 0;
        for (; i + 8 <= vocabulary; i += 8) tops = larger8(tops, load8(row + i));
        float top = top8(tops), sum = 0.0f;
        for (int64_t j = i; j < vocabulary; j++) top = row[j] > top ? row[j] : top;
        const float own = row[target[t]];
        for (i = 0; i + 8 <= vocabulary; i += 8) {
            f8 e = exp8(load8(row + i) - top);
            sums += e;
            if (into_gradient) store8(row + i, e);
        }
        sum = sum8(sums);
        for (; i < vocabulary; i++) {
            const float e = std::exp(row[i] - top);
            sum += e;
            if (into_gradient) row[i] = e;
        }
        losses[t] = std::log(sum) + top - own;
        if (!into_gradient) continue;
        const float inverse = 1.0f / sum;
        for (int64_t j = 0; j < vocabulary; j++) row[j] *= inverse;
        row[target[t]] -= 1.0f;
    }
}
}
