// Muon's update of many small matrices: momentum, ten Newton-Schulz steps, decay and step, one thread a matrix.
//
// X <- (a + b G + c G^2) X with G = X X^T is worked on through G alone: all factors are polynomials of one symmetric
// matrix, so they commute, stay symmetric, and half of each product is enough. G's rounding errors grow with every step;
// X is formed and G made again from it half-way, which keeps the result as exact as the steps one by one.
//
// Layout: a matrix is kept as panels of 16 columns, [panel][row][16], sizes rounded up to 16 with zeros.
#include <algorithm>
#include <cmath>
#include <vector>

#include "tile.h"

namespace {

constexpr int STEPS = 10, HALF = 5;

struct Job {
    int64_t out, grad, momentum, rows, columns;  // addresses (momentum 0: grad is what is orthogonalised) and the shape
};

struct Rule {
    float mu, keep;                // momentum's factor; what is left of `out`
    const float (*coefficients)[3];
};

// A square symmetric matrix or the panels of a rectangular one.
struct Panels {
    float* data;
    int64_t rows;
    float* panel(int64_t i) const { return data + i * rows * PANEL; }
};

int64_t up(int64_t size) { return (size + PANEL - 1) / PANEL * PANEL; }

template <int R>
__attribute__((noinline)) void rows_of_block(int64_t depth, const float* a, int64_t a_k, const float* b, float* c, int64_t c_row) {
    tile<R, 2>(depth, a, 1, a_k, b, PANEL, c, c_row, false);
}

// c [16][16] = sum_k a[k][.] b[k][.], the first index a's lane.
void block_product(int64_t depth, const float* a, const float* b, float* c, int64_t c_row) {
    rows_of_block<6>(depth, a, PANEL, b, c, c_row);
    rows_of_block<6>(depth, a + 6, PANEL, b, c + 6 * c_row, c_row);
    rows_of_block<4>(depth, a + 12, PANEL, b, c + 12 * c_row, c_row);
}

// out[16][16] (rows out_row apart) = block [16][16] turned.
void turn(const float* block, int64_t row, float* out, int64_t out_row) {
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 16; j += 8) {
            f8 part[8];
            for (int k = 0; k < 8; k++) part[k] = load8(block + (i + k) * row + j);
            transpose8(part);
            for (int k = 0; k < 8; k++) store8(out + (j + k) * out_row + i, part[k]);
        }
}

// c = x y + plus * base, where x y is known to be symmetric: x, y are given as panels whose columns are its rows.
void symmetric_product(int64_t size, int64_t depth, const float* x, const float* y, const Panels& c, float times = 1.0f,
                       float plus = 0.0f, const float* base = nullptr, float diagonal = 0.0f) {
    alignas(64) float block[PANEL * PANEL];
    for (int64_t j = 0; j < size; j += PANEL)
        for (int64_t i = j; i < size; i += PANEL) {
            block_product(depth, x + i * depth, y + j * depth, block, PANEL);
            float* at = c.panel(j / PANEL) + i * PANEL;
            for (int64_t r = 0; r < PANEL * PANEL; r += 8) {
                f8 v = times * load8(block + r);
                if (base) v += plus * load8(base + j * c.rows + i * PANEL + r);
                store8(block + r, v);
            }
            if (i == j)
                for (int r = 0; r < PANEL; r++) block[r * PANEL + r] += diagonal;
            std::memcpy(at, block, sizeof block);
            if (i != j) turn(block, PANEL, c.panel(i / PANEL) + j * PANEL, PANEL);
        }
}

// Panels of X^T from panels of X.
void turn_panels(int64_t rows, int64_t columns, const float* x, float* out) {
    for (int64_t j = 0; j < columns; j += PANEL)
        for (int64_t i = 0; i < rows; i += PANEL) turn(x + j * rows + i * PANEL, PANEL, out + i * columns + j * PANEL, PANEL);
}

struct Memory {
    std::vector<float> floats;
    float *x, *turned, *g, *p, *r, *q, *next;
    void fit(int64_t m, int64_t n) {
        const int64_t wide = m * n, square = m * m;
        if ((int64_t)floats.size() < 3 * wide + 5 * square + 16) floats.resize(3 * wide + 5 * square + 16);
        float* at = floats.data() + (64 - reinterpret_cast<uintptr_t>(floats.data()) % 64) % 64 / sizeof(float);
        x = at, turned = at + wide, g = at + 2 * wide, p = g + square, r = p + square, q = r + square, next = q + square;
    }
};

// q <- the product of the factors of steps first..last, all made from g, which is used up.
void factors(int64_t m, int first, int last, const Rule& rule, Memory& use) {
    for (int step = first; step < last; step++) {
        const float *k = rule.coefficients[step];
        symmetric_product(m, m, use.g, use.g, {use.p, m}, k[2], k[1], use.g, k[0]);
        if (step == first)
            std::memcpy(use.q, use.p, sizeof(float) * m * m);
        else {
            symmetric_product(m, m, use.q, use.p, {use.r, m});
            std::swap(use.q, use.r);
        }
        if (step + 1 == last) return;
        symmetric_product(m, m, use.g, use.p, {use.r, m});
        symmetric_product(m, m, use.r, use.p, {use.next, m});
        std::swap(use.g, use.next);
    }
}

// x [m, n] (panels) <- its ten steps. m <= n.
void steps(int64_t m, int64_t n, const Rule& rule, Memory& use) {
    for (int first = 0; first < STEPS; first += HALF) {
        turn_panels(m, n, use.x, use.turned);
        symmetric_product(m, n, use.turned, use.turned, {use.g, m});
        factors(m, first, first + HALF, rule, use);
        for (int64_t j = 0; j < n; j += PANEL)
            for (int64_t i = 0; i < m; i += PANEL)
                block_product(m, use.q + i * m, use.x + j * m, use.turned + j * m + i * PANEL, PANEL);
        std::swap(use.x, use.turned);
    }
}

// Fill panels [columns / 16][rows][16] with what is orthogonalised, moving the momentum on; returns its norm.
double gather(const Job& job, float mu, float* panels, int64_t rows, int64_t columns) {
    const float* grad = reinterpret_cast<const float*>(job.grad);
    float* momentum = reinterpret_cast<float*>(job.momentum);
    double squares = 0;
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < columns; j += PANEL) {
            float* at = panels + j * rows + i * PANEL;
            const int64_t count = i < job.rows ? std::min<int64_t>(PANEL, job.columns - j) : 0, from = i * job.columns + j;
            for (int64_t k = std::max<int64_t>(count, 0); k < PANEL; k++) at[k] = 0;
            float sum = 0;
            for (int64_t k = 0; k < count; k++) {
                float value = grad[from + k];
                if (momentum) {
                    const float moved = mu * momentum[from + k] + value;
                    momentum[from + k] = moved;
                    value = mu * moved + value;
                }
                at[k] = value;
                sum += value * value;
            }
            squares += sum;
        }
    }
    return std::sqrt(squares);
}

void update(const Job& job, float gain, const Rule& rule, Memory& use) {
    const bool tall = job.rows > job.columns;
    const int64_t rows = up(job.rows), columns = up(job.columns), m = std::min(rows, columns), n = std::max(rows, columns);
    use.fit(m, n);
    float* first = tall ? use.turned : use.x;
    const double norm = gather(job, rule.mu, first, rows, columns);
    const float scale = norm > 0 ? (float)(1 / norm) : norm == 0 ? 0.0f : NAN;
    for (int64_t i = 0; i < m * n; i += 8) store8(first + i, scale * load8(first + i));
    if (tall) turn_panels(rows, columns, use.turned, use.x);
    steps(m, n, rule, use);
    if (tall) turn_panels(columns, rows, use.x, use.turned);
    const float* made = tall ? use.turned : use.x;
    float* out = reinterpret_cast<float*>(job.out);
    for (int64_t i = 0; i < job.rows; i++)
        for (int64_t j = 0; j < job.columns; j++) {
            float& at = out[i * job.columns + j];
            const float step = gain * made[j / PANEL * PANEL * rows + i * PANEL + j % PANEL];
            at = rule.keep == 0 ? step : rule.keep * at + step;
        }
}

}  // namespace

extern "C" {

// For each of `count` matrices: momentum = mu momentum + grad, O = the ten steps on mu momentum + grad,
// out = keep out + gain O. Without a momentum O is made of grad. Matrices lie row by row; out may not overlap the others.
void anychip_muon(int64_t count, const Job* jobs, const float* gains, float mu, float keep, const float* coefficients) {
    const Rule rule = {mu, keep, reinterpret_cast<const float(*)[3]>(coefficients)};
#pragma omp parallel
    {
        thread_local Memory use;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < count; i++) update(jobs[i], gains[i], rule, use);
    }
}
}
