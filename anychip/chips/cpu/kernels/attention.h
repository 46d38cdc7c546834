// What both directions of attention share: over runs of rows and selected rows, of query heads that share a key head.
// Queries lie in the lanes of vectors: a panel is 8 V queries (heads of one token, or of a few neighbours), [channel][lane];
// keys and values are read as they lie in memory. Where they are one memory, a value is the first channels of its key.
// A panel's keys are one list of row pointers: a union of its tokens' runs, masked by lane, or one token's choice.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "rows.h"
#include "simd.h"
#include "tile.h"

namespace {

// Key head g serves the `heads / groups` query heads from g * heads / groups on. A key has `channels`, a value `values`.
struct Shape {
    int64_t tokens, heads, groups, channels, values;
    float scale;
    int64_t together() const { return heads / groups; }
};

// Which rows each token sees: a run of `count` from `start`, or (rows != null) `width` chosen rows, -1 for none.
struct Seen {
    const float *key, *value;
    const int32_t *start, *count, *rows;
    int64_t width;
};

struct Problem {
    Shape shape;
    const float* query;
    Seen window, chosen;
    const float* sink;  // or null
    bool shared() const { return window.key == window.value; }
};

// A panel: lanes are (token, head) pairs of `tokens` tokens from `first`, heads from `head` on, all of one key head.
struct Panel {
    int64_t first, tokens, head, heads;
};

constexpr float MASKED = -INFINITY;

// What one thread works with; sized once a call.
template <int V>
struct Scratch {
    static constexpr int LANES = 8 * V;
    std::vector<const float*> rows, values;  // no values where they are the rows
    std::vector<int64_t> at;  // row number of each key, for the backward's sums
    std::vector<float> query, out, score, grad, pair, both;
    int64_t window_rows = 0;
    f8 low[V], high[V], chosen_low[V], chosen_high[V];  // each lane's seen positions in the lists, as floats

    explicit Scratch(const Shape& shape) : query(shape.channels * LANES), out(shape.channels * LANES) {}
    const float* const* value_rows() const { return values.empty() ? rows.data() : values.data(); }
};

// Number of a lane's query among the rows [tokens * heads].
INLINE int64_t query_row(const Problem& p, const Panel& panel, int64_t lane) {
    return (panel.first + lane / panel.heads) * p.shape.heads + panel.head + lane % panel.heads;
}

// panel[c][lane] = scale * rows[lane][c]; lanes without a query are zero.
template <int V>
void to_panel(const Problem& p, const Panel& panel, const float* from, int64_t channels, float scale, float* to) {
    const int64_t lanes = panel.tokens * panel.heads;
    const float* rows[8 * V];
    for (int64_t lane = 0; lane < lanes; lane++) rows[lane] = from + query_row(p, panel, lane) * channels;
    for (int v = 0; v < V; v++)
        for (int64_t c = 0; c < channels; c += 8) {
            f8 block[8];
            for (int i = 0; i < 8; i++) block[i] = 8 * v + i < lanes ? load8(rows[8 * v + i] + c) * scale : all8(0.0f);
            transpose8(block);
            for (int i = 0; i < 8; i++) store8(to + ((c + i) * V + v) * 8, block[i]);
        }
}

template <int V>
void from_panel(const Problem& p, const Panel& panel, const float* from, int64_t channels, const f8* scale, float* to) {
    const int64_t lanes = panel.tokens * panel.heads;
    float* rows[8 * V];
    for (int64_t lane = 0; lane < lanes; lane++) rows[lane] = to + query_row(p, panel, lane) * channels;
    for (int v = 0; v < V; v++)
        for (int64_t c = 0; c < channels; c += 8) {
            f8 block[8];
            for (int i = 0; i < 8; i++) block[i] = load8(from + ((c + i) * V + v) * 8) * scale[v];
            transpose8(block);
            for (int i = 0; i < 8 && 8 * v + i < lanes; i++) store8(rows[8 * v + i] + c, block[i]);
        }
}

// Append the rows that a panel's tokens see, and note which of them each lane sees.
template <int V>
void list_rows(const Problem& p, const Seen& seen, const Panel& panel, Scratch<V>& s, f8* low, f8* high) {
    const int64_t base = s.rows.size(), group = panel.head / p.shape.together();
    const int64_t key_step = p.shape.groups * p.shape.channels, value_step = p.shape.groups * p.shape.values;
    const float *key = seen.key + group * p.shape.channels, *value = seen.value + group * p.shape.values;
    const bool shared = p.shared();
    const auto push = [&](int64_t row) {
        s.rows.push_back(key + row * key_step);
        if (!shared) s.values.push_back(value + row * value_step);
        s.at.push_back(row);
    };
    for (int v = 0; v < V; v++) low[v] = high[v] = all8(0.0f);
    if (!seen.key) return;
    if (seen.rows) {  // one token
        const int32_t* chosen = seen.rows + panel.first * seen.width;
        for (int64_t k = 0; k < seen.width; k++)
            if (chosen[k] >= 0) push(chosen[k]);
        for (int v = 0; v < V; v++) low[v] = all8(base), high[v] = all8(s.rows.size());
        return;
    }
    int64_t from = INT64_MAX, to = 0;
    for (int64_t t = panel.first; t < panel.first + panel.tokens; t++)
        if (seen.count[t] > 0) {
            from = std::min<int64_t>(from, seen.start[t]);
            to = std::max<int64_t>(to, (int64_t)seen.start[t] + seen.count[t]);
        }
    for (int64_t row = from; row < to; row++) push(row);
    for (int lane = 0; lane < panel.tokens * panel.heads; lane++) {
        int64_t t = panel.first + lane / panel.heads;
        if (seen.count[t] <= 0) continue;
        low[lane / 8][lane % 8] = base + seen.start[t] - from;
        high[lane / 8][lane % 8] = base + seen.start[t] - from + seen.count[t];
    }
}

// Take out the scores of rows in [first, end) that a lane does not see; the rows that all lanes see are passed over.
template <int V>
void mask(const Panel& panel, const f8* low, const f8* high, int64_t first, int64_t end, float* score) {
    int64_t all_from = first, all_to = end;
    for (int64_t lane = 0; lane < panel.tokens * panel.heads; lane++) {
        all_from = std::max<int64_t>(all_from, low[lane / 8][lane % 8]);
        all_to = std::min<int64_t>(all_to, high[lane / 8][lane % 8]);
    }
    for (int64_t k = first; k < end; k++) {
        if (k == all_from && all_to > k) k = all_to;
        if (k >= end) break;
        for (int v = 0; v < V; v++) {
            f8 at = all8((float)k), x = load8(score + (k * V + v) * 8);
            x = at < low[v] ? all8(MASKED) : x;
            store8(score + (k * V + v) * 8, at < high[v] ? x : all8(MASKED));
        }
    }
}

// Keys of a panel, their scores, and the mask of rows that a lane does not see.
template <int V>
void score(const Problem& p, const Panel& panel, Scratch<V>& s) {
    s.rows.clear();
    s.values.clear();
    s.at.clear();
    list_rows<V>(p, p.window, panel, s, s.low, s.high);
    s.window_rows = s.rows.size();
    list_rows<V>(p, p.chosen, panel, s, s.chosen_low, s.chosen_high);
    const int64_t count = s.rows.size();
    if ((int64_t)s.score.size() < count * s.LANES) s.score.resize(count * s.LANES);
    to_panel<V>(p, panel, p.query, p.shape.channels, p.shape.scale, s.query.data());
    all_dots<V>(s.rows.data(), count, p.shape.channels, s.query.data(), s.score.data());
    if (panel.tokens == 1) return;  // every listed row is seen by every lane
    mask<V>(panel, s.low, s.high, 0, s.window_rows, s.score.data());
    mask<V>(panel, s.chosen_low, s.chosen_high, s.window_rows, count, s.score.data());
}

// Ask for a later panel's query-sized rows while this one is worked on.
INLINE void prefetch(const Problem& p, const Panel& panel, const float* data, int64_t channels) {
    for (int64_t lane = 0; lane < panel.tokens * panel.heads; lane++)
        for (int64_t c = 0; c < channels; c += 16)
            __builtin_prefetch(data + query_row(p, panel, lane) * channels + c, 0, 2);
}

int64_t union_rows(const Seen& seen, int64_t first, int64_t tokens, int64_t* longest) {
    if (!seen.key || seen.rows) return 0;
    int64_t from = INT64_MAX, to = 0;
    for (int64_t t = first; t < first + tokens; t++)
        if (seen.count[t] > 0) {
            from = std::min<int64_t>(from, seen.start[t]);
            to = std::max<int64_t>(to, (int64_t)seen.start[t] + seen.count[t]);
            *longest = std::max<int64_t>(*longest, seen.count[t]);
        }
    return std::max<int64_t>(to - from, 0);
}

// Neighbouring tokens share a panel where their heads of key head `group` fit its lanes and their rows nearly coincide.
template <int V>
void add_panels(const Problem& p, int64_t first, int64_t end, int64_t of, std::vector<Panel>& panels) {
    constexpr int64_t L = 8 * V;
    const int64_t heads = p.shape.together();
    for (int64_t t = first; t < end;) {
        int64_t group = p.chosen.rows || heads > L ? 1 : std::min(L / heads, end - t);
        while (group > 1) {
            int64_t longest = 0, together = union_rows(p.window, t, group, &longest) + union_rows(p.chosen, t, group, &longest);
            if (together <= 2 * longest + 16) break;
            group--;
        }
        for (int64_t h = 0; h < heads; h += L) panels.push_back({t, group, of * heads + h, std::min(L, heads - h)});
        t += group;
    }
}

// What both directions are given; filled by attention.py field by field, each of 8 bytes. scale 0 stands for
// channels^-0.5; value is key where both are one memory; chosen and sink may be null.
struct Call {
    int64_t tokens, heads, groups, channels, values;
    double scale;
    const float *query, *key, *value;
    const int32_t *start, *count;
    const float* chosen;
    const int32_t *chosen_start, *chosen_count, *rows;
    int64_t width;
    const float* sink;
};

Problem problem(const Call& c) {
    const float scale = c.scale ? (float)c.scale : 1.0f / std::sqrt((float)c.channels);
    return {{c.tokens, c.heads, c.groups, c.channels, c.values, scale}, c.query,
            {c.key, c.value, c.start, c.count, nullptr, 0},
            {c.chosen, c.chosen, c.chosen_start, c.chosen_count, c.rows, c.width}, c.sink};
}

// One vector of lanes suffices where a token's own heads fill at most eight and its rows are its own.
bool narrow(const Problem& p) { return p.shape.together() <= 8 && (p.chosen.rows || p.shape.tokens == 1); }

}  // namespace
