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

// out[row][PANEL] (+)= A panel for `rows` rows of A. With `half`, only lanes 0-7 are worked on: what the others get is
// undefined. The shapes of the tiles fill the registers; the last rows take smaller ones.
INLINE void panel_product(int64_t rows, int64_t depth, const float* a, int64_t a_row, int64_t a_k, const float* panel,
                          float* out, bool half, bool add) {
    int64_t r = 0;
    if (half) {
        for (; r + 12 <= rows; r += 12) tile<12, 1>(depth, a + r * a_row, a_row, a_k, panel, PANEL, out + r * PANEL, PANEL, add);
        for (; r + 4 <= rows; r += 4) tile<4, 1>(depth, a + r * a_row, a_row, a_k, panel, PANEL, out + r * PANEL, PANEL, add);
        for (; r < rows; r++) tile<1, 1>(depth, a + r * a_row, a_row, a_k, panel, PANEL, out + r * PANEL, PANEL, add);
        return;
    }
    for (; r + SIXTEENS <= rows; r += SIXTEENS)
        tile<SIXTEENS, 2>(depth, a + r * a_row, a_row, a_k, panel, PANEL, out + r * PANEL, PANEL, add);
    for (; r + 4 <= rows; r += 4) tile<4, 2>(depth, a + r * a_row, a_row, a_k, panel, PANEL, out + r * PANEL, PANEL, add);
    for (; r + 2 <= rows; r += 2) tile<2, 2>(depth, a + r * a_row, a_row, a_k, panel, PANEL, out + r * PANEL, PANEL, add);
    for (; r < rows; r++) tile<1, 2>(depth, a + r * a_row, a_row, a_k, panel, PANEL, out + r * PANEL, PANEL, add);
}

// out[row][PANEL] = W panel, W [rows][depth] as it lies (forward products).
INLINE void times_panel(const float* w, int64_t rows, int64_t depth, const float* panel, float* out, bool half) {
    panel_product(rows, depth, w, depth, 1, panel, out, half, false);
}

// out[column][PANEL] (+)= W^T panel, W [depth][columns] as it lies (products of the backward).
INLINE void transposed_times_panel(const float* w, int64_t columns, int64_t depth, const float* panel, float* out, bool half,
                                   bool add) {
    panel_product(columns, depth, w, 1, columns, panel, out, half, add);
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
