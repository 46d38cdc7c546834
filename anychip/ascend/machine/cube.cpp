// The cube: C[m, n] (+)= A[m, k] x B[k, n] from L1 to L0C in the chip's block layouts, and the fixpipe that brings L0C out.
#include <algorithm>
#include <vector>

#include "convert.h"
#include "tile.h"

namespace anychip {
namespace {

// Blocked matrices in L1 and L0C: [columns / c0, rows / r0, r0, c0].
struct Nz {
  const Operand& tile;
  int64_t r0, c0;
  explicit Nz(TileOp& op, const Operand& t) : tile(t), r0(t.view.size[2]), c0(t.view.size[3]) {
    if (t.view.rank != 4) op.fail("a matrix of the cube has rank " + std::to_string(t.view.rank));
  }
  int64_t rows() const { return tile.view.size[1] * r0; }
  int64_t columns() const { return tile.view.size[0] * c0; }
  int64_t at(int64_t row, int64_t column) const {
    const int64_t* s = tile.view.stride;
    return column / c0 * s[0] + row / r0 * s[1] + row % r0 * s[2] + column % c0 * s[3];
  }
};

// Cube inputs of 32-bit floats may be rounded to HF32: 10 bits of mantissa.
inline float hf32(float x) { return as_bits<float>((as_bits<uint32_t>(x) + 0x1000u) & 0xffffe000u); }

template <class T, class S> void unpack(const Nz& z, int64_t rows, int64_t columns, bool transpose, T* out) {
  const S* data = reinterpret_cast<const S*>(z.tile.data);
  for (int64_t c = 0; c < columns; c += z.c0) {
    const int64_t n = std::min(z.c0, columns - c);
    for (int64_t r = 0; r < rows; ++r) {
      const S* from = data + z.at(r, c);
      if (transpose) for (int64_t i = 0; i < n; ++i) out[(c + i) * rows + r] = widen<T>(from[i]);
      else for (int64_t i = 0; i < n; ++i) out[r * columns + c + i] = widen<T>(from[i]);
    }
  }
}

// A matrix of L1 as a dense row-major [rows, columns] of T; `transpose`: it lies as [columns, rows].
template <class T> std::vector<T> matrix(TileOp& op, const Operand& tile, int64_t rows, int64_t columns, bool transpose) {
  const Nz z(op, tile);
  const int64_t r = transpose ? columns : rows, c = transpose ? rows : columns;
  if (r > z.rows() || c > z.columns()) op.fail("a matrix of the cube is smaller than the product asks for");
  std::vector<T> out(size_t(rows * columns));
  switch (tile.type()) {
    case Type::f16: unpack<T, Half>(z, r, c, transpose, out.data()); break;
    case Type::bf16: unpack<T, Brain>(z, r, c, transpose, out.data()); break;
    case Type::f32: unpack<T, float>(z, r, c, transpose, out.data()); break;
    case Type::i8: unpack<T, int8_t>(z, r, c, transpose, out.data()); break;
    default: op.fail("the cube multiplies f16, bf16, f32 and i8");
  }
  return out;
}

#if defined(__GNUC__) || defined(__clang__)
template <class T> struct Wide { typedef T type __attribute__((vector_size(32), aligned(4))); };
#endif

// 6 x 16 elements of C in registers over the whole of k. b: panels of 16 columns, k x 16 each.
template <class T, int kRows> void micro(const T* a, int64_t lda, const T* b, int64_t k, T* c, int64_t ldc) {
  using V = typename Wide<T>::type;
  V sum[kRows][2] = {};
  for (int64_t p = 0; p < k; ++p) {
    const V b0 = *reinterpret_cast<const V*>(b + p * 16), b1 = *reinterpret_cast<const V*>(b + p * 16 + 8);
    for (int i = 0; i < kRows; ++i) {
      const T x = a[i * lda + p];
      sum[i][0] += x * b0, sum[i][1] += x * b1;
    }
  }
  for (int i = 0; i < kRows; ++i) {
    *reinterpret_cast<V*>(c + i * ldc) = sum[i][0];
    *reinterpret_cast<V*>(c + i * ldc + 8) = sum[i][1];
  }
}

// out[m, n16] = a[m, k] x b[k, n]; n16 = n rounded up to 16.
template <class T> std::vector<T> product(const std::vector<T>& a, const std::vector<T>& b, int64_t m, int64_t k, int64_t n) {
  const int64_t panels = (n + 15) / 16, wide = panels * 16;
  std::vector<T> out(size_t(m * wide)), panel(size_t(k * 16));
  for (int64_t j = 0; j < panels; ++j) {
    const int64_t width = std::min<int64_t>(16, n - j * 16);
    for (int64_t p = 0; p < k; ++p)
      for (int64_t i = 0; i < 16; ++i) panel[p * 16 + i] = i < width ? b[p * n + j * 16 + i] : T(0);
    int64_t r = 0;
    for (; r + 6 <= m; r += 6) micro<T, 6>(a.data() + r * k, k, panel.data(), k, out.data() + r * wide + j * 16, wide);
    for (; r < m; ++r) micro<T, 1>(a.data() + r * k, k, panel.data(), k, out.data() + r * wide + j * 16, wide);
  }
  return out;
}

template <class T> void accumulate(TileOp& op, const MatmulShape& s) {
  std::vector<T> a = matrix<T>(op, op.in(0), s.m, s.k, s.transpose_a);
  std::vector<T> b = matrix<T>(op, op.in(1), s.k, s.n, s.transpose_b);
  if constexpr (std::is_floating_point_v<T>)
    if (s.round_hf32) {
      for (T& x : a) x = hf32(x);
      for (T& x : b) x = hf32(x);
    }
  const std::vector<T> sum = product(a, b, s.m, s.k, s.n);
  const Nz z(op, op.out());
  if (s.m > z.rows() || s.n > z.columns()) op.fail("L0C's tile is smaller than the product");
  const int64_t wide = (s.n + 15) / 16 * 16;
  T* c = reinterpret_cast<T*>(op.out().data);
  for (int64_t j = 0; j < wide; j += z.c0)
    for (int64_t r = 0; r < s.m; ++r) {
      T* to = c + z.at(r, j);
      const T* from = sum.data() + r * wide + j;
      const int64_t n = std::min(z.c0, wide - j);
      if (s.fresh) std::copy(from, from + n, to);
      else for (int64_t i = 0; i < n; ++i) to[i] = T(to[i] + from[i]);
    }
}

// `n` elements of a row of L0C, scaled (and cut at 0), to `n` elements of the destination `step` apart.
template <class D> void convert_row(const float* in, D* out, int64_t n, int64_t step, float scale, bool relu) {
  for (int64_t i = 0; i < n; ++i) {
    const float x = in[i] * scale;
    out[i * step] = narrow<D>(relu && x < 0 ? 0.0f : x);
  }
}

void write_row(TileOp& op, const Operand& in, int64_t from, const Operand& out, int64_t to, int64_t n, int64_t step) {
  const float scale = op.inputs > 1 ? float(op.in(1).value.f) : 1.0f;
  const bool relu = op.attribute[0];
  float row[64];
  const float* real = reinterpret_cast<const float*>(in.data) + from;
  const int32_t* whole = reinterpret_cast<const int32_t*>(in.data) + from;
  if (in.type() == Type::i32 && out.type() == Type::i32) {
    for (int64_t i = 0; i < n; ++i) reinterpret_cast<int32_t*>(out.data)[to + i * step] = relu && whole[i] < 0 ? 0 : whole[i];
    return;
  }
  if (in.type() == Type::i32) {
    for (int64_t i = 0; i < n; ++i) row[i] = float(whole[i]);
    real = row;
  }
  switch (out.type()) {
    case Type::f32: return convert_row(real, reinterpret_cast<float*>(out.data) + to, n, step, scale, relu);
    case Type::f16: return convert_row(real, reinterpret_cast<Half*>(out.data) + to, n, step, scale, relu);
    case Type::bf16: return convert_row(real, reinterpret_cast<Brain*>(out.data) + to, n, step, scale, relu);
    case Type::i8:
      for (int64_t i = 0; i < n; ++i) {
        const float x = std::nearbyint(relu && real[i] < 0 ? 0.0f : real[i] * scale);
        reinterpret_cast<int8_t*>(out.data)[to + i * step] = int8_t(x < -128 ? -128 : x > 127 ? 127 : x);
      }
      return;
    default: op.fail("the fixpipe does not write this element type");
  }
}

}  // namespace

void matmul(TileOp& op, const MatmulShape& shape) {
  if (op.out().type() == Type::i32) accumulate<int32_t>(op, shape);
  else accumulate<float>(op, shape);
}

// Attributes: [relu]. Inputs: the L0C tile, then the quantisation scale if any. Output: rows and columns, or blocks.
void run_fixpipe(TileOp& op) {
  const Operand &in = op.in(), &out = op.out();
  const Nz z(op, in);
  const View& v = out.view;
  const bool blocked = v.rank == 4;
  const int64_t rows = blocked ? v.size[1] * v.size[2] : v.size[v.rank - 2], columns = blocked ? v.size[0] * v.size[3] : v.size[v.rank - 1];
  if (rows > z.rows() || columns > z.columns()) op.fail("the fixpipe's destination is larger than its L0C tile");
  const int64_t width = std::min<int64_t>(blocked ? std::min(z.c0, v.size[3]) : z.c0, 64);  // of one run in both layouts
  if (in.view.stride[3] != 1) op.fail("an L0C tile whose innermost dimension is not contiguous");
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; c += width) {
      const int64_t to = blocked ? c / v.size[3] * v.stride[0] + r / v.size[2] * v.stride[1] + r % v.size[2] * v.stride[2] + c % v.size[3] * v.stride[3]
                                 : r * v.stride[v.rank - 2] + c * v.stride[v.rank - 1];
      write_row(op, in, z.at(r, c), out, to, std::min(width, columns - c), v.stride[v.rank - 1]);
    }
}

}  // namespace anychip
