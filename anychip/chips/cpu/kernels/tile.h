// Matrix products with the tokens in the lanes of vectors. A panel holds up to PANEL tokens: [channel][PANEL].
// Weights are read as they lie in memory, one number for all tokens of a panel; nothing is packed but the tokens.
#pragma once
#include "simd.h"

constexpr int PANEL = 16;

// c[r][.] (+)= sum_k a(r, k) b[k][.] for R rows and V vectors of eight columns. a(r, k) = a[r * a_row + k * a_k].
template <int R, int V>
INLINE void tile(int64_t depth, const float* a, int64_t a_row, int64_t a_k, const float* b, int64_t b_k, float* c,
                 int64_t c_row, bool add) {
    typename Lanes<V>::type acc[R] = {};
    for (int r = 0; r < R && add; r++) acc[r] = Lanes<V>::load(c + r * c_row);
    for (int64_t k = 0; k < depth; k++) {
        const auto bs = Lanes<V>::hold(Lanes<V>::load(b + k * b_k));
        for (int r = 0; r < R; r++) acc[r] += a[r * a_row + k * a_k] * bs;
    }
    for (int r = 0; r < R; r++) Lanes<V>::store(c + r * c_row, acc[r]);
}

// The same for two panels at once, `b_pair` and `c_pair` floats apart: each number of a serves both.
template <int R>
INLINE void tile_pair(int64_t depth, const float* a, int64_t a_row, int64_t a_k, const float* b, int64_t b_pair, float* c,
                      int64_t c_pair, bool add) {
#if defined(__AVX512F__)
    Sixteen low[R] = {}, high[R] = {};
    for (int r = 0; r < R && add; r++) low[r] = load16(c + r * PANEL), high[r] = load16(c + c_pair + r * PANEL);
    for (int64_t k = 0; k < depth; k++) {
        const Sixteen l = hold16(load16(b + k * PANEL)), h = hold16(load16(b + b_pair + k * PANEL));
        for (int r = 0; r < R; r++) {
            const Sixteen x = all16(a[r * a_row + k * a_k]);
            low[r] += x * l, high[r] += x * h;
        }
    }
    for (int r = 0; r < R; r++) store16(c + r * PANEL, low[r]), store16(c + c_pair + r * PANEL, high[r]);
#else
    tile<R, 2>(depth, a, a_row, a_k, b, PANEL, c, PANEL, add);
    tile<R, 2>(depth, a, a_row, a_k, b + b_pair, PANEL, c + c_pair, PANEL, add);
#endif
}

// Panels that a product works on: one, its lanes 0-7 alone (what the others get is undefined), or two at once.
enum class Panels { HALF, ONE, TWO };

// Rows r .. of `rows` by tiles of R rows as long as they fit.
template <int R>
INLINE void tiles(int64_t& r, int64_t rows, int64_t depth, const float* a, int64_t a_row, int64_t a_k, const float* panel,
                  int64_t panel_pair, float* out, int64_t out_pair, Panels panels, bool add) {
    for (; r + R <= rows; r += R) {
        const float* from = a + r * a_row;
        float* to = out + r * PANEL;
        if (panels == Panels::TWO) tile_pair<R>(depth, from, a_row, a_k, panel, panel_pair, to, out_pair, add);
        else if (panels == Panels::ONE) tile<R, 2>(depth, from, a_row, a_k, panel, PANEL, to, PANEL, add);
        else tile<R, 1>(depth, from, a_row, a_k, panel, PANEL, to, PANEL, add);
    }
}

constexpr int64_t TERMS = 256;  // summed at once: so much of a panel stays in the first cache while all rows pass

// out[row][PANEL] (+)= A panel for `rows` rows of A; a second panel lies `panel_pair`, its result `out_pair` floats after.
// The shapes of the tiles fill the registers; the last rows take smaller ones.
INLINE void panel_product(int64_t rows, int64_t depth, const float* a, int64_t a_row, int64_t a_k, const float* panel,
                          int64_t pair, float* out, int64_t out_pair, Panels panels, bool add) {
    for (int64_t k = 0; k < depth || !k; k += TERMS, add = true, a += TERMS * a_k, panel += TERMS * PANEL) {
        const int64_t n = depth - k < TERMS ? depth - k : TERMS;
        int64_t r = 0;
        if (panels == Panels::HALF) tiles<12>(r, rows, n, a, a_row, a_k, panel, pair, out, out_pair, panels, add);
        tiles<SIXTEENS>(r, rows, n, a, a_row, a_k, panel, pair, out, out_pair, panels, add);
        tiles<4>(r, rows, n, a, a_row, a_k, panel, pair, out, out_pair, panels, add);
        tiles<2>(r, rows, n, a, a_row, a_k, panel, pair, out, out_pair, panels, add);
        tiles<1>(r, rows, n, a, a_row, a_k, panel, pair, out, out_pair, panels, add);
    }
}

// out[row][PANEL] = W panel, W [rows][depth] as it lies (forward products).
INLINE void times_panel(const float* w, int64_t rows, int64_t depth, const float* panel, int64_t pair, float* out,
                        int64_t out_pair, Panels panels) {
    panel_product(rows, depth, w, depth, 1, panel, pair, out, out_pair, panels, false);
}

// out[column][PANEL] (+)= W^T panel, W [depth][columns] as it lies (products of the backward).
INLINE void transposed_times_panel(const float* w, int64_t columns, int64_t depth, const float* panel, int64_t pair,
                                   float* out, int64_t out_pair, Panels panels, bool add) {
    panel_product(columns, depth, w, 1, columns, panel, pair, out, out_pair, panels, add);
}

INLINE void transpose8(f8* v) {
    f8 a[8];
    for (int i = 0; i < 4; i++) {
        a[2 * i] = __builtin_shuffle(v[2 * i], v[2 * i + 1], (i8){0, 8, 2, 10, 4, 12, 6, 14});
        a[2 * i + 1] = __builtin_shuffle(v[2 * i], v[2 * i + 1], (i8){1, 9, 3, 11, 5, 13, 7, 15});
    }
    f8 b[8];
    for (int h = 0; h < 8; h += 4)
        for (int i = 0; i < 2; i++) {
            b[h + i] = __builtin_shuffle(a[h + i], a[h + i + 2], (i8){0, 1, 8, 9, 4, 5, 12, 13});
            b[h + i + 2] = __builtin_shuffle(a[h + i], a[h + i + 2], (i8){2, 3, 10, 11, 6, 7, 14, 15});
        }
    for (int i = 0; i < 4; i++) {
        v[i] = __builtin_shuffle(b[i], b[i + 4], (i8){0, 1, 2, 3, 8, 9, 10, 11});
        v[i + 4] = __builtin_shuffle(b[i], b[i + 4], (i8){4, 5, 6, 7, 12, 13, 14, 15});
    }
}

// panel[channel][lane] = rows[lane][channel]; lanes from `count` to the next eighth are zero. channels is a multiple of 8.
INLINE void rows_to_panel(const float* const* rows, int count, int64_t channels, float* panel) {
    for (int half = 0; half < count; half += 8)
        for (int64_t c = 0; c < channels; c += 8) {
            f8 block[8];
            for (int i = 0; i < 8; i++) block[i] = half + i < count ? load8(rows[half + i] + c) : all8(0.0f);
            transpose8(block);
            for (int i = 0; i < 8; i++) store8(panel + (c + i) * PANEL + half, block[i]);
        }
}

// rows [lane][channels] from a panel, the first `count` lanes.
INLINE void panel_to_rows(const float* panel, int count, int64_t channels, float* rows) {
    for (int half = 0; half < count; half += 8)
        for (int64_t c = 0; c < channels; c += 8) {
            f8 block[8];
            for (int i = 0; i < 8; i++) block[i] = load8(panel + (c + i) * PANEL + half);
            transpose8(block);
            for (int i = 0; i < 8 && half + i < count; i++) store8(rows + (half + i) * channels + c, block[i]);
        }
}
