// Attention backward: probabilities again from the kept log-sum-exp, and sums over tokens in a fixed order.
#include "attention.h"

namespace {

// Gradients of one block of tokens: its own rows' sums cover [low, low + rows of the buffer).
struct Sums {
    int64_t low = 0, high = 0;
    std::vector<float> data;
};

struct Back {
    const float *out, *grad, *lse;
    float *grad_query, *grad_sink;  // grad_sink: [blocks][heads]
};

// grad_row[c] += sum over lanes of both[row][lane] * pair[lane][c] (dS with queries, P with output gradients).
template <int DEPTH>
void add_outer(const float* both, int64_t rows, int64_t channels, const float* pair, float* grad, int64_t stride) {
    int64_t r = 0;
    for (; r + 6 <= rows; r += 6)
        for (int64_t c = 0; c < channels; c += 16) {
            if (c + 16 <= channels)
                tile<6, 2>(DEPTH, both + r * DEPTH, DEPTH, 1, pair + c, channels, grad + r * stride + c, stride, true);
            else
                tile<6, 1>(DEPTH, both + r * DEPTH, DEPTH, 1, pair + c, channels, grad + r * stride + c, stride, true);
        }
    for (; r < rows; r++)
        for (int64_t c = 0; c < channels; c += 8)
            tile<1, 1>(DEPTH, both + r * DEPTH, DEPTH, 1, pair + c, channels, grad + r * stride + c, stride, true);
}

template <int V>
void backward_panel(const Problem& p, const Panel& panel, Scratch<V>& s, const Back& back, Sums* sums, float* grad_sink) {
    constexpr int L = 8 * V;
    score<V>(p, panel, s);
    const int64_t count = s.rows.size(), channels = p.shape.channels, lanes = panel.tokens * panel.heads;
    s.grad.resize(std::max<size_t>(s.grad.size(), count * L));
    s.both.resize(std::max<size_t>(s.both.size(), count * 2 * L));
    s.pair.assign(2 * L * channels, 0.0f);
    f8 lse[V] = {}, dot_out[V] = {}, scale[V];
    const float factor = 1.0f / std::sqrt((float)channels);
    for (int v = 0; v < V; v++) scale[v] = all8(factor);
    for (int lane = 0; lane < lanes; lane++) {
        int64_t row = first_query(p, panel) + lane;
        lse[lane / 8][lane % 8] = back.lse[row];
        float d = dot(back.out + row * channels, back.grad + row * channels, channels);
        dot_out[lane / 8][lane % 8] = d;
        int64_t head = row % p.shape.heads;
        grad_sink[head] -= std::exp(p.sink[head] - back.lse[row]) * d;
        for (int64_t c = 0; c < channels; c += 8) {
            store8(&s.pair[lane * channels + c], load8(p.query + row * channels + c) * factor);
            store8(&s.pair[(L + lane) * channels + c], load8(back.grad + row * channels + c));
        }
    }
    to_panel<V>(p, panel, back.grad, 1.0f, s.out.data());
    all_dots<V>(s.rows.data(), count, channels, s.out.data(), s.grad.data());
    for (int64_t k = 0; k < count; k++)
        for (int v = 0; v < V; v++) {
            f8 e = exp8(load8(&s.score[(k * V + v) * 8]) - lse[v]);
            f8 d = e * (load8(&s.grad[(k * V + v) * 8]) - dot_out[v]);
            store8(&s.grad[(k * V + v) * 8], d);
            store8(&s.both[k * 2 * L + 8 * v], d);
            store8(&s.both[k * 2 * L + L + 8 * v], e);
        }
    mix_all<V>(s.rows.data(), count, channels, s.grad.data(), s.query.data());
    from_panel<V>(p, panel, s.query.data(), scale, back.grad_query);
    for (int part = 0; part < 2; part++) {  // runs of consecutive rows are summed together
        int64_t k = part ? s.window_rows : 0, end = part ? count : s.window_rows;
        while (k < end) {
            int64_t run = k + 1;
            while (run < end && s.at[run] == s.at[run - 1] + 1) run++;
            add_outer<2 * L>(&s.both[k * 2 * L], run - k, channels, s.pair.data(),
                             &sums[part].data[(s.at[k] - sums[part].low) * channels], channels);
            k = run;
        }
    }
}

void cover(const Seen& seen, int64_t first, int64_t end, int64_t channels, Sums& sums) {
    int64_t low = INT64_MAX, high = 0;
    if (seen.data)
        for (int64_t t = first; t < end; t++) {
            for (int64_t k = 0; seen.rows && k < seen.width; k++) {
                int64_t row = seen.rows[t * seen.width + k];
                if (row >= 0) low = std::min(low, row), high = std::max(high, row + 1);
            }
            if (!seen.rows && seen.count[t] > 0) {
                low = std::min<int64_t>(low, seen.start[t]);
                high = std::max<int64_t>(high, (int64_t)seen.start[t] + seen.count[t]);
            }
        }
    sums.low = std::min(low, high);
    sums.high = high;
    sums.data.assign((sums.high - sums.low) * channels, 0.0f);
}

void reduce(const std::vector<Sums>& blocks, int64_t part, int64_t rows, int64_t channels, float* grad) {
#pragma omp parallel for
    for (int64_t row = 0; row < rows; row++) {
        float* to = grad + row * channels;
        std::fill(to, to + channels, 0.0f);
        for (size_t b = part; b < blocks.size(); b += 2)
            if (row >= blocks[b].low && row < blocks[b].high) {
                const float* from = &blocks[b].data[(row - blocks[b].low) * channels];
                for (int64_t c = 0; c < channels; c += 8) store8(to + c, load8(to + c) + load8(from + c));
            }
    }
}

constexpr int64_t MOST_BLOCKS = 16;

// Tokens are cut into blocks by their number alone, each with its own sums, added in order: the result does not
// depend on the number of threads.
template <int V>
void backward(const Problem& p, const Back& back, int64_t window_rows, int64_t chosen_rows, float* grad_window,
              float* grad_chosen) {
    const int64_t tokens = p.shape.tokens, heads = p.shape.heads;
    const int64_t blocks = std::clamp<int64_t>(tokens / 64, 1, MOST_BLOCKS);
    std::vector<Sums> sums(2 * blocks);
    std::vector<float> grad_sink(blocks * heads, 0.0f);
#pragma omp parallel
    {
        Scratch<V> s(p.shape.channels);
#pragma omp for schedule(dynamic, 1)
        for (int64_t b = 0; b < blocks; b++) {
            int64_t first = tokens * b / blocks, end = tokens * (b + 1) / blocks;
            cover(p.window, first, end, p.shape.channels, sums[2 * b]);
            cover(p.chosen, first, end, p.shape.channels, sums[2 * b + 1]);
            const auto panels = panels_of<V>(p, first, end);
            for (size_t i = 0; i < panels.size(); i++) {
                if (i + 1 < panels.size())
                    for (const float* data : {p.query, back.grad, back.out}) prefetch(p, panels[i + 1], data);
                backward_panel<V>(p, panels[i], s, back, &sums[2 * b], &grad_sink[b * heads]);
            }
        }
    }
    reduce(sums, 0, window_rows, p.shape.channels, grad_window);
    if (grad_chosen) reduce(sums, 1, chosen_rows, p.shape.channels, grad_chosen);
    for (int64_t h = 0; h < heads; h++) {
        back.grad_sink[h] = 0.0f;
        for (int64_t b = 0; b < blocks; b++) back.grad_sink[h] += grad_sink[b * heads + h];
    }
}

}  // namespace

extern "C" void anychip_attention_back(int64_t tokens, int64_t heads, int64_t channels, const float* query,
                                       const float* window, const int32_t* start, const int32_t* count,
                                       const float* chosen, const int32_t* chosen_start, const int32_t* chosen_count,
                                       const int32_t* rows, int64_t width, const float* sink, const float* out,
                                       const float* lse, const float* grad, int64_t window_rows, int64_t chosen_rows,
                                       float* grad_query, float* grad_window, float* grad_chosen, float* grad_sink) {
    Problem p = problem(tokens, heads, channels, query, window, start, count, chosen, chosen_start, chosen_count, rows, width, sink);
    Back back{out, grad, lse, grad_query, grad_sink};
    narrow(p) ? backward<1>(p, back, window_rows, chosen_rows, grad_window, grad_chosen)
              : backward<2>(p, back, window_rows, chosen_rows, grad_window, grad_chosen);
}
