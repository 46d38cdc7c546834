// A rough scan of the indexer's keys that leaves few to score exactly: bf16 copies of the keys, products by AMX, and for
// each key an interval that its exact score lies in. The best by exact score are always among those left.
#pragma once
#include <cmath>

#include "index.h"
#if defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__AVX512BF16__) && defined(__linux__)
#define ANYCHIP_ROUGH
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace rough {

constexpr int64_t GROUP = 16;          // keys of a tile
constexpr int64_t UNIT = 4 * GROUP;    // keys that share sixteen maxima: what threads take
constexpr int64_t MAXIMA = 16;         // of a unit
constexpr int64_t LEAST = 8;           // keys of each that is sought: with fewer this is no gain
constexpr int64_t CHUNK = 64;          // keys scored exactly at once
constexpr int64_t AHEAD = 4;           // groups asked for before they are needed: the processor does not follow tiles
constexpr float TINY = 1e-15f;         // more than what numbers lose whose squares are zero

INLINE int64_t units(int64_t keys) { return (keys + UNIT - 1) / UNIT; }

// A copy holds groups of sixteen keys, [key][channel] as bf16 and then their norms.
INLINE int64_t group_bytes(int64_t channels) { return GROUP * (channels * sizeof(uint16_t) + sizeof(float)); }

// What a token's scan leaves, written by the threads that scan and read by the one that selects.
struct Found {
    float* upper;  // [keys, whole units]
    float* best;   // [units][MAXIMA] of the lower ends
};

#ifdef ANYCHIP_ROUGH

constexpr int64_t TERMS = 32;              // bf16 numbers in a row of a tile
constexpr int64_t TILE = GROUP * TERMS;    // numbers of a tile

// Whether the system lets this process use the tiles (asked once).
inline bool allowed() {
    static const bool granted = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
    return granted;
}

// This thread's tiles, all of sixteen rows of 64 bytes, as long as this lives.
class Tiles {
    struct alignas(64) Shape {
        uint8_t palette = 1, start = 0, unused[14] = {};
        uint16_t bytes[16] = {};
        uint8_t rows[16] = {};
    };

public:
    Tiles() {
        Shape shape;
        for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = 16;
        _tile_loadconfig(&shape);
    }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
};

INLINE bool usable(int64_t channels) { return channels % TERMS == 0 && channels <= 512 && allowed(); }

INLINE void keep(const float* key, int64_t channels, uint8_t* copy, int64_t row) {
    uint8_t* group = copy + row / GROUP * group_bytes(channels);
    auto* numbers = reinterpret_cast<uint16_t*>(group) + row % GROUP * channels;
    __m512 square = _mm512_setzero_ps();
    for (int64_t c = 0; c < channels; c += 16) {
        const __m512 x = _mm512_loadu_ps(key + c);
        square = _mm512_fmadd_ps(x, x, square);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(numbers + c), (__m256i)_mm512_cvtneps_pbh(x));
    }
    auto* norms = reinterpret_cast<float*>(group + GROUP * channels * sizeof(uint16_t));
    norms[row % GROUP] = std::sqrt(_mm512_reduce_add_ps(square)) + TINY;
}

// A token's heads as right operands, each number as the sum of two bf16 limbs; weights; and the width of the intervals.
//
// A key rounded to bf16 is off by 2^-8 of itself, so a head's product by 2^-8 |query| |key| (Cauchy); the limbs left out,
// fp32's roundings here and in the exact score add less than a fiftieth of that.
class Query {
    std::vector<uint16_t> limbs_;  // [panel][step][limb][pair of channels][head][2]
    std::vector<float> weight_;
    int64_t panels_, steps_;
    float slack_ = 0.0f;

public:
    // `panels` as to_panel makes them.
    Query(int64_t heads, int64_t channels, const float* panels, const float* weight)
        : panels_((heads + INDEX_LANES - 1) / INDEX_LANES), steps_(channels / TERMS) {
        limbs_.resize(panels_ * steps_ * 2 * TILE), weight_.resize(panels_ * INDEX_LANES);
        std::copy_n(weight, heads, weight_.begin());
        for (int64_t p = 0; p < panels_; p++) {
            __m512 square = _mm512_setzero_ps();
            for (int64_t c = 0; c < channels; c += 2) {
                const float* from = panels + (p * channels + c) * INDEX_LANES;
                __m512 low = _mm512_loadu_ps(from), high = _mm512_loadu_ps(from + INDEX_LANES);
                square = _mm512_fmadd_ps(low, low, _mm512_fmadd_ps(high, high, square));
                for (int limb = 0; limb < 2; limb++) {
                    const __m512i a = rounded(low), b = rounded(high);
                    _mm512_storeu_si512(tile(p, c / TERMS, limb) + c % TERMS * INDEX_LANES,
                                        _mm512_or_si512(_mm512_srli_epi32(a, 16), b));
                    low = _mm512_sub_ps(low, _mm512_castsi512_ps(a)), high = _mm512_sub_ps(high, _mm512_castsi512_ps(b));
                }
            }
            const __m512 w = _mm512_abs_ps(_mm512_loadu_ps(&weight_[p * INDEX_LANES]));
            const __m512 norm = _mm512_add_ps(_mm512_sqrt_ps(square), _mm512_set1_ps(TINY));
            slack_ += _mm512_reduce_add_ps(_mm512_mul_ps(w, norm)) * 1.03f / 256;
        }
    }

    // Scan the keys [unit * UNIT, ..) of `count` from unit `from` to `to`; `group(g)` is the address of a copy's group g.
    template <class Group>
    void scan(const Group& group, int64_t count, int64_t from, int64_t to, const Found& found) const {
        if (from >= to) return;
        const Tiles tiles;
        const int64_t bytes = group_bytes(steps_ * TERMS);
        for (int64_t unit = from; unit < to; unit++) {
            __m512 best = _mm512_set1_ps(-INFINITY);
            for (int64_t k = unit * UNIT; k < std::min(count, (unit + 1) * UNIT); k += GROUP) {
                const uint8_t* keys = group(k / GROUP);
                for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(keys + AHEAD * bytes + i);
                const __m512 score = scores(keys), off = _mm512_set1_ps(slack_);
                const __m512 norm = _mm512_loadu_ps(keys + GROUP * steps_ * TERMS * sizeof(uint16_t));
                const __mmask16 real = count - k < GROUP ? (1u << (count - k)) - 1 : 0xffff;
                const __m512 upper = _mm512_fmadd_ps(off, norm, score), lower = _mm512_fnmadd_ps(off, norm, score);
                _mm512_storeu_ps(found.upper + k, _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), real, upper));
                // what is not finite, here or in the exact score, shows as an infinite best
                const __mmask16 finite = _mm512_cmp_ps_mask(upper, _mm512_set1_ps(INFINITY), _CMP_LT_OQ);
                best = _mm512_mask_max_ps(best, real, best, _mm512_mask_mov_ps(_mm512_set1_ps(INFINITY), finite, lower));
            }
            _mm512_storeu_ps(found.best + unit * MAXIMA, best);
        }
    }

private:
    // To bf16, as the upper halves of words.
    static __m512i rounded(__m512 x) { return _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x)), 16); }
    uint16_t* tile(int64_t panel, int64_t step, int limb) {
        return &limbs_[((panel * steps_ + step) * 2 + limb) * TILE];
    }

    // Of a group's sixteen keys.
    __m512 scores(const uint8_t* keys) const {
        alignas(64) float product[GROUP * INDEX_LANES];
        __m512 sum = _mm512_setzero_ps();
        const uint16_t* query = limbs_.data();
        for (int64_t p = 0; p < panels_; p++) {
            _tile_zero(0);
            for (int64_t s = 0; s < steps_; s++, query += 2 * TILE) {
                _tile_loadd(1, keys + s * TERMS * sizeof(uint16_t), steps_ * TERMS * sizeof(uint16_t));
                _tile_loadd(2, query, 64);
                _tile_dpbf16ps(0, 1, 2);
                _tile_loadd(3, query + TILE, 64);
                _tile_dpbf16ps(0, 1, 3);
            }
            _tile_stored(0, product, 64);
            sum = _mm512_add_ps(sum, over_heads(product, _mm512_loadu_ps(&weight_[p * INDEX_LANES])));
        }
        return sum;
    }

    // Key by key the sum over heads of weight * max(0, product).
    static __m512 over_heads(const float* product, __m512 weight) {
        __m512 v[16];
        for (int i = 0; i < 16; i++)
            v[i] = _mm512_mul_ps(weight, _mm512_max_ps(_mm512_load_ps(product + i * INDEX_LANES), _mm512_setzero_ps()));
        for (int i = 0; i < 8; i++) {
            const __m512 a = v[2 * i], b = v[2 * i + 1];
            v[i] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        }
        for (int i = 0; i < 4; i++) {
            const __m512d a = _mm512_castps_pd(v[2 * i]), b = _mm512_castps_pd(v[2 * i + 1]);
            v[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
        }
        const auto join = [](__m512 a, __m512 b) {
            return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, _MM_SHUFFLE(2, 0, 2, 0)),
                                 _mm512_shuffle_f32x4(a, b, _MM_SHUFFLE(3, 1, 3, 1)));
        };
        return join(join(v[0], v[1]), join(v[2], v[3]));
    }
};

// The keys that may be among the topk best, ascending; none where this cannot tell: exact scores of all are needed.
inline std::vector<int32_t> left(const Found& found, int64_t count, int64_t topk) {
    const int64_t maxima = units(count) * MAXIMA;
    std::vector<float> best(found.best, found.best + maxima);
    if (maxima < topk || std::any_of(best.begin(), best.end(), [](float x) { return x == INFINITY; })) return {};
    // topk keys lie in different units or lanes and have a score of at least this, so what stays below is not among the best
    std::nth_element(best.begin(), best.begin() + topk - 1, best.end(), std::greater<float>());
    const __m512 least = _mm512_set1_ps(best[topk - 1]);
    std::vector<int32_t> keys(count / 4 + GROUP);
    int64_t n = 0;
    __m512i at = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int64_t k = 0; k < count; k += GROUP, at = _mm512_add_epi32(at, _mm512_set1_epi32(GROUP))) {
        const __mmask16 reaches = _mm512_cmp_ps_mask(_mm512_loadu_ps(found.upper + k), least, _CMP_GE_OQ);
        if (!reaches) continue;
        if (n > count / 4) return {};
        _mm512_mask_compressstoreu_epi32(&keys[n], reaches, at);
        n += __builtin_popcount(reaches);
    }
    keys.resize(n);
    return keys;
}

#else

INLINE bool usable(int64_t) { return false; }
INLINE void keep(const float*, int64_t, uint8_t*, int64_t) {}
struct Query {
    Query(int64_t, int64_t, const float*, const float*) {}
    template <class Group>
    void scan(const Group&, int64_t, int64_t, int64_t, const Found&) const {}
};
inline std::vector<int32_t> left(const Found&, int64_t, int64_t) { return {}; }

#endif

// The topk best of a token's `count` keys after a scan: exact scores of those left, or of all. `key(k)` is an address.
template <class Key>
void select_best(const Indexer& x, const float* panels, const Found& found, int64_t count, int64_t topk, const Key& key,
                 int32_t* out) {
    std::vector<int32_t> keys = left(found, count, topk);
    if (keys.empty()) {
        keys.resize(count);
        for (int64_t k = 0; k < count; k++) keys[k] = k;
    }
    const int64_t n = keys.size();
    std::vector<float> rows(CHUNK * x.channels), score(n);
    for (int64_t k = 0; k < n; k += CHUNK) {
        const int64_t some = std::min(CHUNK, n - k);
        for (int64_t i = 0; i < some; i++)
            std::memcpy(&rows[i * x.channels], key(keys[k + i]), sizeof(float) * x.channels);
        score_token({x.heads, x.channels, x.query, x.weight, rows.data()}, 0, panels, 0, some, &score[k]);
    }
    std::vector<uint32_t> orders, ties;
    select(score.data(), n, 0, topk, orders, ties, out);
    for (int64_t k = 0; k < topk; k++) out[k] = keys[out[k]];
}

}  // namespace rough
