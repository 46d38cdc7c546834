// Products of large matrices for processors whose widest vectors hold eight floats, where torch's library reaches less
// of the multiply-add rate. b is copied into panels of 16 columns that stay in the first cache; rows of a meet them six at
// a time. Wider processors should ask torch: anychip_product_fits() tells.
#include <algorithm>
#include <vector>
#include <omp.h>

#include "tile.h"

namespace {

constexpr int64_t DEPTH = 256;  // terms summed before c is touched: a panel of b takes half the first cache
constexpr int64_t ROWS = 120;   // rows of a that pass all panels of b before the next ones
constexpr int64_t TALL = 144;   // columns of a (rows of c) that are copied at once into the second cache
constexpr int64_t ALONE = 262144;  // multiply-adds that one thread does faster than several

struct Matrix {
    const float* data;
    int64_t row, column;  // steps; one of them is 1
};

struct Result {
    float* data;
    int64_t row;
    bool add;
};

// Memory of one thread, kept from call to call.
float* working_memory(int64_t floats) {
    thread_local std::vector<float> memory;
    if ((int64_t)memory.size() < floats + 16) memory.resize(floats + 16);
    const auto at = reinterpret_cast<uintptr_t>(memory.data());
    return memory.data() + (64 - at % 64) % 64 / sizeof(float);
}

// panel[k][lane] = b(k, lane) for `depth` k and `count` lanes, the others zero.
void pack_panel(const Matrix& b, int64_t depth, int64_t count, float* panel) {
    int64_t k = 0;
    if (count == PANEL && b.column == 1)
        for (; k < depth; k++)
            for (int half = 0; half < PANEL; half += 8) store8(panel + k * PANEL + half, load8(b.data + k * b.row + half));
    if (count == PANEL && b.row == 1)
        for (; k + 8 <= depth; k += 8)
            for (int half = 0; half < PANEL; half += 8) {
                f8 block[8];
                for (int i = 0; i < 8; i++) block[i] = load8(b.data + (half + i) * b.column + k);
                transpose8(block);
                for (int i = 0; i < 8; i++) store8(panel + (k + i) * PANEL + half, block[i]);
            }
    for (; k < depth; k++)
        for (int64_t lane = 0; lane < PANEL; lane++)
            panel[k * PANEL + lane] = lane < count ? b.data[k * b.row + lane * b.column] : 0.0f;
}

// The height of the next tile where `left` rows remain: six, or what leaves no thin tile behind.
INLINE int64_t height(int64_t left) { return left == 7 || left == 8 ? 4 : std::min<int64_t>(left, 6); }

#define OF_HEIGHT(height, call)                       \
    switch (height) {                                 \
        case 1: { constexpr int R = 1; call; break; } \
        case 2: { constexpr int R = 2; call; break; } \
        case 3: { constexpr int R = 3; call; break; } \
        case 4: { constexpr int R = 4; call; break; } \
        case 5: { constexpr int R = 5; call; break; } \
        case 6: { constexpr int R = 6; call; break; } \
    }

// Columns of a as rows of tiles: [tile][k][R], for `rows` rows of c.
void pack_columns(const float* from, int64_t step, int64_t depth, int64_t rows, float* packed) {
    for (int64_t k = 0; k < depth; k++, from += step) {
        int64_t r = 0;
        for (; rows - r > 8; r += 6) std::memcpy(packed + r * depth + k * 6, from + r, sizeof(float) * 6);
        for (; r < rows; r += height(rows - r))
            OF_HEIGHT(height(rows - r), std::memcpy(packed + r * depth + k * R, from + r, sizeof(float) * R))
    }
}

// One tile of c. Not inlined: alone, the compiler keeps all its sums in registers. a(r, k) = a[r * a_row + k], or with
// COLUMNS a[k * R + r].
template <int R, bool COLUMNS>
__attribute__((noinline)) void multiply(int64_t depth, const float* a, int64_t a_row, const float* panel, int64_t count,
                                        float* c, int64_t c_row, bool add) {
    const int64_t row = COLUMNS ? 1 : a_row, k = COLUMNS ? R : 1;
    if (count == PANEL) return tile<R, 2>(depth, a, row, k, panel, PANEL, c, c_row, add);
    float part[R * PANEL];
    tile<R, 2>(depth, a, row, k, panel, PANEL, part, PANEL, false);
    for (int r = 0; r < R; r++)
        for (int64_t j = 0; j < count; j++) c[r * c_row + j] = part[r * PANEL + j] + (add ? c[r * c_row + j] : 0.0f);
}

// `rows` rows of c against one panel of `count` columns.
template <bool COLUMNS>
void multiply_rows(int64_t rows, int64_t depth, const float* a, int64_t a_row, const float* panel, int64_t count,
                   const Result& c) {
    for (int64_t r = 0; r < rows; r += height(rows - r)) {
        const float* from = a + r * (COLUMNS ? depth : a_row);
        OF_HEIGHT(height(rows - r), (multiply<R, COLUMNS>(depth, from, a_row, panel, count, c.data + r * c.row, c.row, c.add)))
    }
}

// a's rows lie in memory: all threads share b's panels, each takes a part of the rows.
void product_of_rows(int64_t m, int64_t n, int64_t k, const Matrix& a, const Matrix& b, const Result& c) {
    const int64_t panels = (n + PANEL - 1) / PANEL;
    float* packed = working_memory(panels * PANEL * std::min(DEPTH, k));
#pragma omp parallel if (m * n * k > ALONE)
    {
        const int64_t threads = omp_get_num_threads(), me = omp_get_thread_num();
        const int64_t from = m * me / threads / 2 * 2, to = me + 1 == threads ? m : m * (me + 1) / threads / 2 * 2;
        for (int64_t k0 = 0; k0 < k; k0 += DEPTH) {
            const int64_t depth = std::min(DEPTH, k - k0);
#pragma omp for schedule(static)
            for (int64_t p = 0; p < panels; p++)
                pack_panel({b.data + k0 * b.row + p * PANEL * b.column, b.row, b.column}, depth,
                           std::min<int64_t>(PANEL, n - p * PANEL), packed + p * PANEL * depth);
            for (int64_t r = from; r < to; r += ROWS)
                for (int64_t j = 0; j < n; j += PANEL)
                    multiply_rows<false>(std::min(ROWS, to - r), depth, a.data + r * a.row + k0, a.row, packed + j * depth,
                                         std::min<int64_t>(PANEL, n - j), {c.data + r * c.row + j, c.row, c.add || k0});
#pragma omp barrier
        }
    }
}

// a's columns lie in memory (a weight's gradient: many terms, few results): each thread makes its own part of c.
void sums_of_rows(int64_t m, int64_t n, int64_t k, const Matrix& a, const Matrix& b, const Result& c) {
    float *panel = working_memory((PANEL + TALL) * DEPTH), *packed = panel + PANEL * DEPTH;
    for (int64_t r = 0; r < m; r += TALL)
        for (int64_t k0 = 0; k0 < k; k0 += DEPTH) {
            const int64_t depth = std::min(DEPTH, k - k0), rows = std::min(TALL, m - r);
            pack_columns(a.data + k0 * a.column + r, a.column, depth, rows, packed);
            for (int64_t j = 0; j < n; j += PANEL) {
                const int64_t count = std::min<int64_t>(PANEL, n - j);
                pack_panel({b.data + k0 * b.row + j * b.column, b.row, b.column}, depth, count, panel);
                multiply_rows<true>(rows, depth, packed, 0, panel, count, {c.data + r * c.row + j, c.row, c.add || k0});
            }
        }
}

void product_of_columns(int64_t m, int64_t n, int64_t k, const Matrix& a, const Matrix& b, const Result& c) {
    const bool wide = n >= m;  // which side of c the threads share out
    const int64_t size = wide ? n : m, unit = wide ? PANEL : 6, units = (size + unit - 1) / unit;
#pragma omp parallel if (m * n * k > ALONE)
    {
        const int64_t threads = omp_get_num_threads(), me = omp_get_thread_num();
        const int64_t from = units * me / threads * unit, to = std::min(units * (me + 1) / threads * unit, size);
        if (wide)
            sums_of_rows(m, to - from, k, a, {b.data + from * b.column, b.row, b.column}, {c.data + from, c.row, c.add});
        else
            sums_of_rows(to - from, n, k, {a.data + from, a.row, a.column}, b, {c.data + from * c.row, c.row, c.add});
    }
}

}  // namespace

extern "C" {

// Whether anychip_product is worth its use on the processor that it was built for.
int anychip_product_fits() {
#if defined(__AVX2__) && !defined(__AVX512F__)
    return 1;
#else
    return 0;
#endif
}

// c [m, n] = or (add) += a [m, k] b [k, n]. a and b have steps between their rows and columns, one of the two 1.
void anychip_product(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_row, int64_t a_column, const float* b,
                     int64_t b_row, int64_t b_column, float* c, int64_t c_row, int add) {
    if (k == 0 && !add)
        for (int64_t r = 0; r < m; r++) std::fill(c + r * c_row, c + r * c_row + n, 0.0f);
    const Matrix left = {a, a_row, a_column}, right = {b, b_row, b_column};
    a_column == 1 ? product_of_rows(m, n, k, left, right, {c, c_row, add != 0})
                  : product_of_columns(m, n, k, left, right, {c, c_row, add != 0});
}
}
