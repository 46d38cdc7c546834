// Attention forward: scores, softmax with the sink, and the weighted sum of a panel's rows.
#include "attention.h"

namespace {

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
            lse[first_query(p, panel) + lane] = top[lane / 8][lane % 8] + std::log(sum[lane / 8][lane % 8]);
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

}  // namespace

extern "C" void anychip_attention(int64_t tokens, int64_t heads, int64_t channels, const float* query, const float* window,
                                  const int32_t* start, const int32_t* count, const float* chosen,
                                  const int32_t* chosen_start, const int32_t* chosen_count, const int32_t* rows,
                                  int64_t width, const float* sink, float* out, float* lse) {
    Problem p = problem(tokens, heads, channels, query, window, start, count, chosen, chosen_start, chosen_count, rows, width, sink);
    narrow(p) ? forward<1>(p, out, lse) : forward<2>(p, out, lse);
}
