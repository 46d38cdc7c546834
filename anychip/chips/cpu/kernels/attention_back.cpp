// Attention backward: probabilities again from the kept log-sum-exp, and sums over tokens in a fixed order.
#include "attention.h"

namespace {

// Where the rows [low, high) of a gradient are summed, `step` apart: in a block's own memory, or in the result.
struct Sums {
    int64_t low = 0, high = 0, step = 0;
    float* to = nullptr;
    std::vector<float> own;
    float* row(int64_t at) const { return to + (at - low) * step; }
};

struct Back {
    const float *out, *grad, *lse;
    float* grad_query;
};

// What some tokens of some key heads add to; `value` where values are not the keys' memory.
struct Task {
    int64_t first, end, from_group, to_group;
    Sums key[2], value;  // of the window and the chosen rows
    float* sink;         // [heads] or null
};

// grad_row[c] += sum over lanes of both[row][lane] * pair[lane][c] (dS with queries, P with output gradients).
template <int DEPTH>
void add_outer(const float* both, int64_t step, int64_t rows, int64_t channels, const float* pair, float* grad,
               int64_t stride) {
    int64_t r = 0;
    for (; r + SIXTEENS <= rows; r += SIXTEENS)
        for (int64_t c = 0; c < channels; c += 16) {
            if (c + 16 <= channels)
                tile<SIXTEENS, 2>(DEPTH, both + r * step, step, 1, pair + c, channels, grad + r * stride + c, stride, true);
            else
                tile<SIXTEENS, 1>(DEPTH, both + r * step, step, 1, pair + c, channels, grad + r * stride + c, stride, true);
        }
    for (; r < rows; r++)
        for (int64_t c = 0; c < channels; c += 8)
            tile<1, 1>(DEPTH, both + r * step, step, 1, pair + c, channels, grad + r * stride + c, stride, true);
}

template <int V>
void backward_panel(const Problem& p, const Panel& panel, Scratch<V>& s, const Back& back, const Task& task) {
    constexpr int L = 8 * V;
    score<V>(p, panel, s);
    const int64_t count = s.rows.size(), channels = p.shape.channels, values = p.shape.values;
    const int64_t lanes = panel.tokens * panel.heads, value_step = p.shared() ? channels : values;
    s.grad.resize(std::max<size_t>(s.grad.size(), count * L));
    s.both.resize(std::max<size_t>(s.both.size(), count * 2 * L));
    s.pair.assign(L * (channels + value_step), 0.0f);
    float *queries = s.pair.data(), *grads = queries + L * channels;
    f8 lse[V] = {}, dot_out[V] = {}, scale[V];
    const float factor = p.shape.scale;
    for (int v = 0; v < V; v++) scale[v] = all8(factor);
    for (int lane = 0; lane < lanes; lane++) {
        const int64_t row = query_row(p, panel, lane), head = row % p.shape.heads;
        lse[lane / 8][lane % 8] = back.lse[row];
        const float d = dot(back.out + row * values, back.grad + row * values, values);
        dot_out[lane / 8][lane % 8] = d;
        if (task.sink) task.sink[head] -= std::exp(p.sink[head] - back.lse[row]) * d;
        for (int64_t c = 0; c < channels; c += 8)
            store8(queries + lane * channels + c, load8(p.query + row * channels + c) * factor);
        for (int64_t c = 0; c < values; c += 8) store8(grads + lane * value_step + c, load8(back.grad + row * values + c));
    }
    to_panel<V>(p, panel, back.grad, values, 1.0f, s.out.data());
    all_dots<V>(s.value_rows(), count, values, s.out.data(), s.grad.data());
    for (int64_t k = 0; k < count; k++)
        for (int v = 0; v < V; v++) {
            f8 e = exp8(load8(&s.score[(k * V + v) * 8]) - lse[v]);
            f8 d = e * (load8(&s.grad[(k * V + v) * 8]) - dot_out[v]);
            store8(&s.grad[(k * V + v) * 8], d);
            store8(&s.both[k * 2 * L + 8 * v], d);
            store8(&s.both[k * 2 * L + L + 8 * v], e);
        }
    mix_all<V>(s.rows.data(), count, channels, s.grad.data(), s.query.data());
    from_panel<V>(p, panel, s.query.data(), channels, scale, back.grad_query);
    const int64_t group = panel.head / p.shape.together() - task.from_group;
    for (int part = 0; part < 2; part++) {  // runs of consecutive rows are summed together
        int64_t k = part ? s.window_rows : 0, end = part ? count : s.window_rows;
        while (k < end) {
            int64_t run = k + 1;
            while (run < end && s.at[run] == s.at[run - 1] + 1) run++;
            const float* both = &s.both[k * 2 * L];
            float* key = task.key[part].row(s.at[k]) + group * channels;
            if (p.shared()) {
                add_outer<2 * L>(both, 2 * L, run - k, channels, queries, key, task.key[part].step);
            } else {
                add_outer<L>(both, 2 * L, run - k, channels, queries, key, task.key[part].step);
                add_outer<L>(both + L, 2 * L, run - k, values, grads, task.value.row(s.at[k]) + group * values,
                             task.value.step);
            }
            k = run;
        }
    }
}

void cover(const Seen& seen, int64_t first, int64_t end, int64_t channels, Sums& sums) {
    int64_t low = INT64_MAX, high = 0;
    if (seen.key)
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
    sums.step = channels;
    sums.own.assign((sums.high - sums.low) * channels, 0.0f);
    sums.to = sums.own.data();
}

void reduce(const std::vector<Task>& blocks, int64_t part, int64_t rows, int64_t channels, float* grad) {
#pragma omp parallel for
    for (int64_t row = 0; row < rows; row++) {
        float* to = grad + row * channels;
        std::fill(to, to + channels, 0.0f);
        for (const Task& block : blocks) {
            const Sums& sums = block.key[part];
            if (row < sums.low || row >= sums.high) continue;
            for (int64_t c = 0; c < channels; c += 8) store8(to + c, load8(to + c) + load8(sums.row(row) + c));
        }
    }
}

constexpr int64_t MOST_BLOCKS = 16;

template <int V>
void run_task(const Problem& p, const Back& back, const Task& task, Scratch<V>& s) {
    std::vector<Panel> panels;
    for (int64_t g = task.from_group; g < task.to_group; g++) add_panels<V>(p, task.first, task.end, g, panels);
    for (size_t i = 0; i < panels.size(); i++) {
        if (i + 1 < panels.size()) {
            prefetch(p, panels[i + 1], p.query, p.shape.channels);
            for (const float* data : {back.grad, back.out}) prefetch(p, panels[i + 1], data, p.shape.values);
        }
        backward_panel<V>(p, panels[i], s, back, task);
    }
}

struct Made {
    int64_t window_rows, chosen_rows;
    float *window, *chosen, *value, *sink;
};

// One key head: tokens are cut into blocks by their number alone, each with its own sums, added in order: the result
// does not depend on the number of threads.
template <int V>
void backward_blocks(const Problem& p, const Back& back, const Made& made) {
    const int64_t tokens = p.shape.tokens, heads = p.shape.heads, channels = p.shape.channels;
    const int64_t count = std::clamp<int64_t>(tokens / 64, 1, MOST_BLOCKS);
    std::vector<Task> blocks(count);
    std::vector<float> grad_sink(count * heads, 0.0f);
#pragma omp parallel
    {
        Scratch<V> s(p.shape);
#pragma omp for schedule(dynamic, 1)
        for (int64_t b = 0; b < count; b++) {
            Task& block = blocks[b];
            block.first = tokens * b / count, block.end = tokens * (b + 1) / count;
            block.from_group = 0, block.to_group = 1;
            block.sink = p.sink ? &grad_sink[b * heads] : nullptr;
            cover(p.window, block.first, block.end, channels, block.key[0]);
            cover(p.chosen, block.first, block.end, channels, block.key[1]);
            run_task<V>(p, back, block, s);
        }
    }
    reduce(blocks, 0, made.window_rows, channels, made.window);
    if (made.chosen) reduce(blocks, 1, made.chosen_rows, channels, made.chosen);
    for (int64_t h = 0; made.sink && h < heads; h++) {
        made.sink[h] = 0.0f;
        for (int64_t b = 0; b < count; b++) made.sink[h] += grad_sink[b * heads + h];
    }
}

// Several key heads: each of them, in each run of tokens whose rows no other token sees, adds to rows of its own.
template <int V>
void backward_heads(const Problem& p, const Back& back, const Made& made) {
    const Shape& shape = p.shape;
    const int64_t key_step = shape.groups * shape.channels, value_step = shape.groups * shape.values;
    std::vector<Task> tasks;
    int64_t first = 0, seen = 0;
    for (int64_t t = 0; t <= shape.tokens; t++) {
        const bool apart = t == shape.tokens || (t && p.window.start[t] >= seen);
        for (int64_t g = 0; apart && g < shape.groups; g++) {
            Task task{first, t, g, g + 1, {}, {}, nullptr};
            task.key[0].step = key_step, task.key[0].to = made.window + g * shape.channels;
            task.value.step = value_step, task.value.to = made.value + g * shape.values;
            tasks.push_back(task);
        }
        if (apart) first = t;
        if (t < shape.tokens) seen = std::max<int64_t>(seen, (int64_t)p.window.start[t] + p.window.count[t]);
    }
#pragma omp parallel
    {
        Scratch<V> s(shape);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < made.window_rows; row++) {
            std::fill(made.window + row * key_step, made.window + (row + 1) * key_step, 0.0f);
            std::fill(made.value + row * value_step, made.value + (row + 1) * value_step, 0.0f);
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < (int64_t)tasks.size(); i++) run_task<V>(p, back, tasks[i], s);
    }
}

template <int V>
void backward(const Problem& p, const Back& back, const Made& made) {
    p.shared() ? backward_blocks<V>(p, back, made) : backward_heads<V>(p, back, made);
}

}  // namespace

extern "C" void anychip_attention_back(const Call* call, const float* out, const float* lse, const float* grad,
                                       int64_t window_rows, int64_t chosen_rows, float* grad_query, float* grad_window,
                                       float* grad_chosen, float* grad_value, float* grad_sink) {
    const Problem p = problem(*call);
    const Back back{out, grad, lse, grad_query};
    const Made made{window_rows, chosen_rows, grad_window, grad_chosen, grad_value, grad_sink};
    narrow(p) ? backward<1>(p, back, made) : backward<2>(p, back, made);
}
