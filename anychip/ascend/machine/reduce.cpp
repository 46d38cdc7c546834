// vreduce and the cumulative ops. Sums go in the chip's order: halves are added until one 256-byte repeat is left.
#include <vector>

#include "blocks.h"

namespace anychip {
namespace {

template <class T> T combine(Reduce kind, T x, T y) {
  using U = std::conditional_t<std::is_floating_point_v<T>, T, uint64_t>;
  switch (kind) {
    case Reduce::sum: return T(U(x) + U(y));
    case Reduce::prod: return T(U(x) * U(y));
    case Reduce::max: return x > y || x != x ? x : y;
    default: return x < y || x != x ? x : y;
  }
}
inline int64_t combine_bits(Reduce kind, int64_t x, int64_t y) {
  return kind == Reduce::xori ? x ^ y : kind == Reduce::ori || kind == Reduce::any ? x | y : x & y;
}

template <class T, Reduce kind> void fold(T* x, const T* y, int64_t n, Type type) {
  for (int64_t i = 0; i < n; ++i) x[i] = combine(kind, x[i], y[i]);
  if constexpr (std::is_floating_point_v<T>)
    if (type == Type::f16) for (int64_t i = 0; i < n; ++i) x[i] = to_float(to_half(x[i]));
}
template <class T> void fold_any(Reduce kind, T* x, const T* y, int64_t n, Type type) {
  switch (kind) {
    case Reduce::sum: return fold<T, Reduce::sum>(x, y, n, type);
    case Reduce::prod: return fold<T, Reduce::prod>(x, y, n, type);
    case Reduce::max: return fold<T, Reduce::max>(x, y, n, type);
    case Reduce::min: return fold<T, Reduce::min>(x, y, n, type);
    default:
      if constexpr (!std::is_floating_point_v<T>)
        for (int64_t i = 0; i < n; ++i) x[i] = T(combine_bits(kind, x[i], y[i]));
  }
}

// Reduces `count` vectors of `width` elements, in place, into the first.
template <class T> void tree(Reduce kind, T* x, int64_t count, int64_t width, Type type) {
  while (count > 1) {
    const int64_t half = (count + 1) / 2;
    fold_any(kind, x, x + half * width, (count - half) * width, type);
    count = half;
  }
}

// The view with its dimensions in the order `dims`.
View ordered(const View& v, const std::vector<int>& dims) {
  View w = v;
  w.rank = int(dims.size());
  for (int d = 0; d < w.rank; ++d) w.size[d] = v.size[dims[d]], w.stride[d] = v.stride[dims[d]];
  return w;
}

// A copy of a tile, dense, its dimensions in the order of `view`.
template <class T> std::vector<T> dense(TileOp& op, Operand operand, const View& view) {
  operand.view = view;
  std::vector<T> all(size_t(view.elements()));
  Walk walk(view);
  walk.add(op, operand);
  int64_t at = 0;
  walk.run([&](const Block& b) {
    const T* x = fetch(walk, b, 0, all.data() + at);
    if (x != all.data() + at) std::copy(x, x + b.total(), all.data() + at);
    at += b.total();
  });
  return all;
}
template <class T> void spread(TileOp& op, Operand operand, const View& view, const T* from) {
  operand.view = view;
  Walk walk(view);
  walk.add(op, operand);
  walk.run([&](const Block& b) { put(walk, b, 0, from), from += b.total(); });
}

struct Split {
  std::vector<int> kept, reduced;
  int64_t rows = 1, width = 1;  // kept elements, reduced elements
};
Split split(const View& v, const int32_t* dims, int n) {
  Split s;
  for (int d = 0; d < v.rank; ++d) {
    const bool cut = std::find(dims, dims + n, d) != dims + n;
    (cut ? s.reduced : s.kept).push_back(d);
    (cut ? s.width : s.rows) *= v.size[d];
  }
  return s;
}
std::vector<int> joined(const std::vector<int>& a, const std::vector<int>& b) {
  std::vector<int> all = a;
  all.insert(all.end(), b.begin(), b.end());
  return all;
}
// The output's view without the reduced dimensions (which have size 1, or are left out already).
View kept_view(const Operand& out, const Split& s) {
  return out.view.rank == int(s.kept.size()) ? out.view : ordered(out.view, s.kept);
}

template <class T> void plain(TileOp& op, Reduce kind, const Split& s) {
  const View& v = op.in().view;
  const Type type = op.in().type();
  const bool last = s.reduced.back() == v.rank - 1;
  std::vector<T> x = dense<T>(op, op.in(), ordered(v, last ? joined(s.kept, s.reduced) : joined(s.reduced, s.kept)));
  if (last) {
    for (int64_t r = 0; r < s.rows; ++r) {
      tree(kind, x.data() + r * s.width, s.width, 1, type);
      x[r] = x[r * s.width];
    }
  } else {
    tree(kind, x.data(), s.width, s.rows, type);
  }
  spread(op, op.out(), kept_view(op.out(), s), x.data());
}

template <class T> void with_index(TileOp& op, bool maximum, bool left, const Split& s) {
  if (op.outputs < 2) op.fail("a reduction with index needs two outputs");
  std::vector<T> x = dense<T>(op, op.in(), ordered(op.in().view, joined(s.kept, s.reduced)));
  std::vector<int64_t> index(size_t(s.rows));
  for (int64_t r = 0; r < s.rows; ++r) {
    const T* row = x.data() + r * s.width;
    int64_t best = 0;
    for (int64_t i = 1; i < s.width && row[best] == row[best]; ++i)
      if (row[i] != row[i] || (maximum ? row[i] > row[best] : row[i] < row[best]) || (!left && row[i] == row[best])) best = i;
    index[r] = best, x[r] = row[best];
  }
  spread(op, op.out(0), kept_view(op.out(0), s), x.data());
  spread(op, op.out(1), kept_view(op.out(1), s), index.data());
}

template <class T> void reduce_as(TileOp& op, Reduce kind, const Split& s, bool left) {
  switch (kind) {
    case Reduce::max_left: case Reduce::max_right: return with_index<T>(op, true, left && kind == Reduce::max_left, s);
    case Reduce::min_left: case Reduce::min_right: return with_index<T>(op, false, left && kind == Reduce::min_left, s);
    default: return plain<T>(op, kind, s);
  }
}

template <class T> void scan(TileOp& op, int dim, bool reverse) {
  const View& v = op.in().view;
  std::vector<int> order;
  for (int d = 0; d < v.rank; ++d) if (d != dim) order.push_back(d);
  order.push_back(dim);
  std::vector<T> x = dense<T>(op, op.in(), ordered(v, order));
  const Reduce kind = op.code == TileOpCode::vcumsum ? Reduce::sum : op.code == TileOpCode::vcumprod ? Reduce::prod
                    : op.code == TileOpCode::vcummax ? Reduce::max : Reduce::min;
  const int64_t n = v.size[dim], rows = n ? int64_t(x.size()) / n : 0;
  for (int64_t r = 0; r < rows; ++r) {
    T* row = x.data() + r * n;
    if (reverse) std::reverse(row, row + n);
    for (int64_t i = 1; i < n; ++i) fold_any(kind, row + i, row + i - 1, 1, op.in().type());
    if (reverse) std::reverse(row, row + n);
  }
  spread(op, op.out(), ordered(op.out().view, order), x.data());
}

}  // namespace

// Attributes: [kind, unsigned source, tie to the left, dimensions..].
void run_reduce(TileOp& op) {
  const auto kind = Reduce(op.attribute[0]);
  if (op.attribute[1]) for (Operand& o : op.operand) o.view.type = unsigned_of(o.type());
  if (op.in().view.empty()) op.fail("a reduction over nothing");
  const Split s = split(op.in().view, op.attribute + 3, op.attributes - 3);
  if (is_float(op.in().type())) reduce_as<float>(op, kind, s, op.attribute[2]);
  else reduce_as<int64_t>(op, kind, s, op.attribute[2]);
}

// Attributes: [reverse, dimension].
void run_scan(TileOp& op) {
  if (op.in().view.empty()) return;
  if (is_float(op.in().type())) scan<float>(op, op.attribute[1], op.attribute[0]);
  else scan<int64_t>(op, op.attribute[1], op.attribute[0]);
}

}  // namespace anychip
