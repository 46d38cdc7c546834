// Attention forward: scores, softmax with the sink, and the weighted sum of a panel's rows.
#include "attention.h"

namespace {

template <int V>
void forward_panel(const Problem& p, const Panel& panel, Scratch<V>& s, float* out, float* lse) {
    score<V>(p, panel, s);
    const int64_t count = s.rows.size(), lanes = panel.tokens * panel.heads;
    f8 top[V], sum[V], sink[V];
    for (int v = 0; v < V; v++) {
        for (int i = 0; i < 8; i++) {
            const float own = p.sink ? p.sink[panel.head + (8 * v + i) % panel.heads] : MASKED;
            sink[v][i] = 8 * v + i < lanes ? own : 0.0f;
        }
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
    mix_all<V>(s.value_rows(), count, p.shape.values, s.score.data(), s.out.data());
    f8 inverse[V];
    for (int v = 0; v < V; v++) inverse[v] = 1.0f / sum[v];
    from_panel<V>(p, panel, s.out.data(), p.shape.values, inverse, out);
    if (lse)
        for (int lane = 0; lane < lanes; lane++)
            lse[query_row(p, panel, lane)] = top[lane / 8][lane % 8] + std::log(sum[lane / 8][lane % 8]);
}

template <int V>
void forward(const Problem& p, float* out, float* lse) {
    std::vector<Panel> panels;
    for (int64_t g = 0; g < p.shape.groups; g++) add_panels<V>(p, 0, p.shape.tokens, g, panels);
#pragma omp parallel if (p.shape.tokens > 8)
    {
        Scratch<V> s(p.shape);
#pragma omp for schedule(dynamic, 4)
        for (int64_t i = 0; i < (int64_t)panels.size(); i++) {
            if (i + 1 < (int64_t)panels.size()) prefetch(p, panels[i + 1], p.query, p.shape.channels);
            forward_panel<V>(p, panels[i], s, out, lse);
        }
    }
}

}  // namespace

extern "C" void anychip_attention(const Call* call, float* out, float* lse) {
    const Problem p = problem(*call);
    narrow(p) ? forward<1>(p, out, lse) : forward<2>(p, out, lse);
}
