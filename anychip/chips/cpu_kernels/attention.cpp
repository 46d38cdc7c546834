// Attention over a window and selected rows, forward and backward. Queries lie in the lanes of vectors: a panel is
// 8 V queries (heads of one token, or of a few neighbours), [channel][lane]; keys are read as they lie in memory.
// A panel's keys are one list of row pointers: a union of its tokens' runs, masked by lane, or one token's choice.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "simd.h"
#include "tile.h"

namespace {

struct Shape {
    int64_t tokens, heads, channels;
};

// Which rows each token sees: a run of `count` from `start`, or (rows != null) `width` chosen rows, -1 for none.
struct Seen {
    const float* data;
    const int32_t *start, *count, *rows;
    int64_t width;
};

struct Problem {
    Shape shape;
    const float* query;
    Seen window, chosen;
    const float* sink;
};

// A panel: lanes are (token, head) pairs of `tokens` tokens from `first`, heads from `head` on.
struct Panel {
    int64_t first, tokens, head, heads;
};

constexpr float MASKED = -INFINITY;

// out[r][lane] = row_r . panel[.][lane] for R rows.
template <int R, int V>
INLINE void dots(const float* const* rows, int64_t channels, const float* panel, float* out) {
    f8 acc[R][V] = {};
    for (int64_t c = 0; c < channels; c++) {
        f8 b[V];
        for (int v = 0; v < V; v++) b[v] = load8(panel + (c * V + v) * 8);
        for (int r = 0; r < R; r++)
            for (int v = 0; v < V; v++) acc[r][v] += rows[r][c] * b[v];
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) store8(out + (r * V + v) * 8, acc[r][v]);
}

template <int V>
void all_dots(const float* const* rows, int64_t count, int64_t channels, const float* panel, float* out) {
    constexpr int R = V == 1 ? 12 : 6;
    int64_t r = 0;
    for (; r + R <= count; r += R) dots<R, V>(rows + r, channels, panel, out + r * V * 8);
    for (; r < count; r++) dots<1, V>(rows + r, channels, panel, out + r * V * 8);
}

// out[c][lane] (+)= sum over rows of row[c] weight[row][lane], for R channels from c.
template <int R, int V>
INLINE void mix(const float* const* rows, int64_t count, int64_t c, const float* weight, float* out, bool add) {
    f8 acc[R][V];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) acc[r][v] = add ? load8(out + ((c + r) * V + v) * 8) : all8(0.0f);
    for (int64_t k = 0; k < count; k++) {
        f8 b[V];
        for (int v = 0; v < V; v++) b[v] = load8(weight + (k * V + v) * 8);
        const float* row = rows[k] + c;
        for (int r = 0; r < R; r++)
            for (int v = 0; v < V; v++) acc[r][v] += row[r] * b[v];
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) store8(out + ((c + r) * V + v) * 8, acc[r][v]);
}

// Rows lie a power of two apart, so only some of them fit the first cache's sets at once: blocks of 32.
template <int V>
void mix_all(const float* const* rows, int64_t count, int64_t channels, const float* weight, float* out) {
    constexpr int R = V == 1 ? 8 : 6;
    constexpr int64_t BLOCK = 32;
    if (!count) std::fill(out, out + channels * V * 8, 0.0f);
    for (int64_t k = 0; k < count; k += BLOCK) {
        const int64_t n = std::min(BLOCK, count - k);
        int64_t c = 0;
        for (; c + R <= channels; c += R) mix<R, V>(rows + k, n, c, weight + k * V * 8, out, k > 0);
        for (; c + 2 <= channels; c += 2) mix<2, V>(rows + k, n, c, weight + k * V * 8, out, k > 0);
    }
}

// What one thread works with; sized once a call.
template <int V>
struct Scratch {
    static constexpr int LANES = 8 * V;
    std::vector<const float*> rows;
    std::vector<int64_t> at;  // row number of each key, for the backward's sums
    std::vector<float> query, out, score, grad, pair, both;
    int64_t window_rows = 0;
    f8 low[V], high[V], chosen_low[V], chosen_high[V];  // each lane's seen positions in the lists, as floats

    explicit Scratch(int64_t channels) : query(channels * LANES), out(channels * LANES) {}
};

template <int V>
INLINE int64_t query_row(const Problem& p, const Panel& panel, int lane) {
    return (panel.first + lane / panel.heads) * p.shape.heads + panel.head + lane % panel.heads;
}

// panel[c][lane] = scale * rows[lane][c]; lanes without a query are zero.
template <int V>
void to_panel(const Problem& p, const Panel& panel, const float* from, float scale, float* to) {
    const int64_t channels = p.shape.channels, lanes = panel.tokens * panel.heads;
    for (int v = 0; v < V; v++)
        for (int64_t c = 0; c < channels; c += 8) {
            f8 block[8];
            for (int i = 0; i < 8; i++) {
                int lane = 8 * v + i;
                block[i] = lane < lanes ? load8(from + query_row<V>(p, panel, lane) * channels + c) * scale : all8(0.0f);
            }
            transpose8(block);
            for (int i = 0; i < 8; i++) store8(to + ((c + i) * V + v) * 8, block[i]);
        }
}

template <int V>
void from_panel(const Problem& p, const Panel& panel, const float* from, const f8* scale, float* to) {
    const int64_t channels = p.shape.channels, lanes = panel.tokens * panel.heads;
    for (int v = 0; v < V; v++)
        for (int64_t c = 0; c < channels; c += 8) {
            f8 block[8];
            for (int i = 0; i < 8; i++) block[i] = load8(from + ((c + i) * V + v) * 8) * scale[v];
            transpose8(block);
            for (int i = 0; i < 8 && 8 * v + i < lanes; i++)
                store8(to + query_row<V>(p, panel, 8 * v + i) * channels + c, block[i]);
        }
}

// Append the rows that a panel's tokens see, and note which of them each lane sees.
template <int V>
void list_rows(const Problem& p, const Seen& seen, const Panel& panel, Scratch<V>& s, f8* low, f8* high) {
    const int64_t base = s.rows.size(), channels = p.shape.channels;
    for (int v = 0; v < V; v++) low[v] = high[v] = all8(0.0f);
    if (!seen.data) return;
    if (seen.rows) {  // one token
        const int32_t* chosen = seen.rows + panel.first * seen.width;
        for (int64_t k = 0; k < seen.width; k++)
            if (chosen[k] >= 0) {
                s.rows.push_back(seen.data + chosen[k] * channels);
                s.at.push_back(chosen[k]);
            }
        for (int v = 0; v < V; v++) low[v] = all8(base), high[v] = all8(s.rows.size());
        return;
    }
    int64_t from = INT64_MAX, to = 0;
    for (int64_t t = panel.first; t < panel.first + panel.tokens; t++)
        if (seen.count[t] > 0) {
            from = std::min<int64_t>(from, seen.start[t]);
            to = std::max<int64_t>(to, (int64_t)seen.start[t] + seen.count[t]);
        }
    for (int64_t row = from; row < to; row++) {
        s.rows.push_back(seen.data + row * channels);
        s.at.push_back(row);
    }
    for (int lane = 0; lane < panel.tokens * panel.heads; lane++) {
        int64_t t = panel.first + lane / panel.heads;
        if (seen.count[t] <= 0) continue;
        low[lane / 8][lane % 8] = base + seen.start[t] - from;
        high[lane / 8][lane % 8] = base + seen.start[t] - from + seen.count[t];
    }
}

// Keys of a panel, their scores, and the mask of rows that a lane does not see.
template <int V>
void score(const Problem& p, const Panel& panel, Scratch<V>& s) {
    s.rows.clear();
    s.at.clear();
    list_rows<V>(p, p.window, panel, s, s.low, s.high);
    s.window_rows = s.rows.size();
    list_rows<V>(p, p.chosen, panel, s, s.chosen_low, s.chosen_high);
    const int64_t count = s.rows.size();
    if ((int64_t)s.score.size() < count * s.LANES) s.score.resize(count * s.LANES);
    to_panel<V>(p, panel, p.query, 1.0f / std::sqrt((float)p.shape.channels), s.query.data());
    all_dots<V>(s.rows.data(), count, p.shape.channels, s.query.data(), s.score.data());
    if (panel.tokens == 1) return;  // every listed row is seen by every lane
    for (int64_t k = 0; k < count; k++)
        for (int v = 0; v < V; v++) {
            f8 low = k < s.window_rows ? s.low[v] : s.chosen_low[v], high = k < s.window_rows ? s.high[v] : s.chosen_high[v];
            f8 at = all8((float)k), x = load8(&s.score[(k * V + v) * 8]);
            x = at < low ? all8(MASKED) : x;
            store8(&s.score[(k * V + v) * 8], at < high ? x : all8(MASKED));
        }
}

// Ask for a later panel's query-sized rows while this one is worked on.
INLINE void prefetch(const Problem& p, const Panel& panel, const float* data) {
    const char* from = reinterpret_cast<const char*>(data + (panel.first * p.shape.heads + panel.head) * p.shape.channels);
    const int64_t bytes = panel.tokens * panel.heads * p.shape.channels * sizeof(float);
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + at, 0, 2);
}

template <int V>
void forward_panel(const Problem& p, const Panel& panel, Scratch<V>& s, float* out, float* lse) {
    score<V>(p, panel, s);
    const int64_t count = s.rows.size(), lanes = panel.tokens * panel.heads;
    f8 top[V], sum[V], sink[V];
    for (int v = 0; v < V; v++) {
        for (int i = 0; i < 8; i++) sink[v][i] = 8 * v + i < lanes ? p.sink[panel.head + (8 * v + i) % panel.heads] : 0.0f;
        top[v] = sink[v];
        for (int64_t k = 0; k < count; k++) top[v] = larger8(top[v], load8(&s.score[(k * V + v) * 8]));
        sum[v] = exp8(sink[v] - top[v]);
    }
    for (int64_t k = 0; k < count; k++)
        for (int v = 0; v < V; v++) {
            float* at = &s.score[(k * V + v) * 8];
            f8 e = exp8(load8(at) - top[v]);
            sum[v] += e;
            store8(at, e);
        }
    mix_all<V>(s.rows.data(), count, p.shape.channels, s.score.data(), s.out.data());
    f8 inverse[V];
    for (int v = 0; v < V; v++) inverse[v] = 1.0f / sum[v];
    from_panel<V>(p, panel, s.out.data(), inverse, out);
    if (lse)
        for (int lane = 0; lane < lanes; lane++)
            lse[query_row<V>(p, panel, lane)] = top[lane / 8][lane % 8] + std::log(sum[lane / 8][lane % 8]);
}

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
        int64_t row = query_row<V>(p, panel, lane);
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

int64_t union_rows(const Seen& seen, int64_t first, int64_t tokens, int64_t* longest) {
    if (!seen.data || seen.rows) return 0;
    int64_t from = INT64_MAX, to = 0;
    for (int64_t t = first; t < first + tokens; t++)
        if (seen.count[t] > 0) {
            from = std::min<int64_t>(from, seen.start[t]);
            to = std::max<int64_t>(to, (int64_t)seen.start[t] + seen.count[t]);
            *longest = std::max<int64_t>(*longest, seen.count[t]);
        }
    return std::max<int64_t>(to - from, 0);
}

// Neighbouring tokens share a panel where their heads fit its lanes and their rows nearly coincide.
template <int V>
std::vector<Panel> panels_of(const Problem& p, int64_t first, int64_t end) {
    constexpr int64_t L = 8 * V;
    const int64_t heads = p.shape.heads;
    std::vector<Panel> panels;
    for (int64_t t = first; t < end;) {
        int64_t group = p.chosen.rows || heads > L ? 1 : std::min(L / heads, end - t);
        while (group > 1) {
            int64_t longest = 0, together = union_rows(p.window, t, group, &longest) + union_rows(p.chosen, t, group, &longest);
            if (together <= 2 * longest + 16) break;
            group--;
        }
        for (int64_t h = 0; h < heads; h += L) panels.push_back({t, group, h, std::min(L, heads - h)});
        t += group;
    }
    return panels;
}

template <int V>
void forward(const Problem& p, float* out, float* lse) {
    const auto panels = panels_of<V>(p, 0, p.shape.tokens);
#pragma omp parallel if (p.shape.tokens > 8)
    {
        Scratch<V> s(p.shape.channels);
#pragma omp for schedule(dynamic, 4)
        for (int64_t i = 0; i < (int64_t)panels.size(); i++) {
            if (i + 1 < (int64_t)panels.size()) prefetch(p, panels[i + 1], p.query);
            forward_panel<V>(p, panels[i], s, out, lse);
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

Problem problem(int64_t tokens, int64_t heads, int64_t channels, const float* query, const float* window,
                const int32_t* start, const int32_t* count, const float* chosen, const int32_t* chosen_start,
                const int32_t* chosen_count, const int32_t* rows, int64_t width, const float* sink) {
    return {{tokens, heads, channels}, query, {window, start, count, nullptr, 0},
            {chosen, chosen_start, chosen_count, rows, width}, sink};
}

// One vector of lanes suffices where a token's own heads fill at most eight and its rows are its own.
bool narrow(const Problem& p) { return p.shape.heads <= 8 && (p.chosen.rows || p.shape.tokens == 1); }

}  // namespace

extern "C" void anychip_attention(int64_t tokens, int64_t heads, int64_t channels, const float* query, const float* window,
                                  const int32_t* start, const int32_t* count, const float* chosen,
                                  const int32_t* chosen_start, const int32_t* chosen_count, const int32_t* rows,
                                  int64_t width, const float* sink, float* out, float* lse) {
    Problem p = problem(tokens, heads, channels, query, window, start, count, chosen, chosen_start, chosen_count, rows, width, sink);
    narrow(p) ? forward<1>(p, out, lse) : forward<2>(p, out, lse);
}

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
