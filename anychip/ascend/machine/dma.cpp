// Transfers between global memory and on-chip memory, and the dispatch of tile ops.
#include <vector>

#include "blocks.h"

namespace anychip {

void run_elementwise(TileOp& op);
void run_cast(TileOp& op);
void run_reduce(TileOp& op);
void run_scan(TileOp& op);
void run_shuffle(TileOp& op);
void move_tile(TileOp& op, const Operand& from, const Operand& to, const int32_t* order);

namespace {

template <class T> T combined(Atomic kind, T memory, T x) {
  switch (kind) {
    case Atomic::add: return T(memory + x);
    case Atomic::max: case Atomic::umax: return memory > x ? memory : x;
    case Atomic::min: case Atomic::umin: return memory < x ? memory : x;
    default: return x;
  }
}
template <> int64_t combined<int64_t>(Atomic kind, int64_t memory, int64_t x) {
  switch (kind) {
    case Atomic::add: return int64_t(uint64_t(memory) + uint64_t(x));
    case Atomic::max: case Atomic::umax: return memory > x ? memory : x;
    case Atomic::min: case Atomic::umin: return memory < x ? memory : x;
    case Atomic::bit_and: return memory & x;
    case Atomic::bit_or: return memory | x;
    case Atomic::bit_xor: return memory ^ x;
    default: return x;
  }
}

// Element by element, so that elements that share an address (a stride of 0) all count.
template <class T> void store_atomic(TileOp& op, Atomic kind) {
  Walk walk(op.out().view);
  walk.add(op, op.in()), walk.add(op, op.out());
  T first[kBlock], second[kBlock], result[kBlock];
  walk.run([&](const Block& b) {
    const T *x = fetch(walk, b, 0, first), *memory = fetch(walk, b, 1, second);
    for (int i = 0; i < b.total(); ++i) result[i] = combined(kind, memory[i], x[i]);
    put(walk, b, 1, result);
  });
}

// Attributes: [atomic kind].
void store(TileOp& op) {
  const auto kind = Atomic(op.attribute[0]);
  if (kind == Atomic::none) return move_tile(op, op.in(), op.out(), nullptr);
  if (kind == Atomic::umax || kind == Atomic::umin) for (Operand& o : op.operand) o.view.type = unsigned_of(o.type());
  if (is_float(op.out().type())) store_atomic<float>(op, kind);
  else store_atomic<int64_t>(op, kind);
}

// [rows, columns] -> [columns / c0, rows / m0, m0, c0]: the layout that the cube reads. The last block of columns is
// filled with zeros.
void nd_to_nz(TileOp& op) {
  const Operand &in = op.in(), &out = op.out();
  if (in.view.rank != 2 || out.view.rank != 4) op.fail("nd2nz of ranks " + std::to_string(in.view.rank) + " and " + std::to_string(out.view.rank));
  const int64_t rows = in.view.size[0], columns = in.view.size[1], m0 = out.view.size[2], c0 = out.view.size[3];
  const int unit = bytes_of(in.type());
  if (rows > out.view.size[1] * m0 || columns > out.view.size[0] * c0) op.fail("nd2nz: the destination is too small");
  for (int64_t c = 0; c < columns; c += c0) {
    const int64_t n = std::min(c0, columns - c);
    for (int64_t r = 0; r < rows; ++r) {
      const uint8_t* from = in.data + (r * in.view.stride[0] + c * in.view.stride[1]) * unit;
      uint8_t* to = out.data + (c / c0 * out.view.stride[0] + r / m0 * out.view.stride[1] + r % m0 * out.view.stride[2]) * unit;
      if (in.view.stride[1] == 1) std::memcpy(to, from, size_t(n * unit));
      else for (int64_t i = 0; i < n; ++i) std::memcpy(to + i * unit, from + i * in.view.stride[1] * unit, size_t(unit));
      if (n < c0) std::memset(to + n * unit, 0, size_t((c0 - n) * unit));
    }
  }
}

// [columns / c0, rows / m0, m0, c0] -> [rows, columns].
void nz_to_nd(TileOp& op) {
  const Operand &in = op.in(), &out = op.out();
  if (in.view.rank != 4 || out.view.rank != 2) op.fail("nz2nd of ranks " + std::to_string(in.view.rank) + " and " + std::to_string(out.view.rank));
  const int64_t m0 = in.view.size[2], c0 = in.view.size[3];
  const int unit = bytes_of(in.type());
  for (int64_t r = 0; r < out.view.size[0]; ++r)
    for (int64_t c = 0; c < out.view.size[1]; ++c)
      std::memcpy(out.data + (r * out.view.stride[0] + c * out.view.stride[1]) * unit,
                  in.data + (c / c0 * in.view.stride[0] + r / m0 * in.view.stride[1] + r % m0 * in.view.stride[2] + c % c0 * in.view.stride[3]) * unit,
                  size_t(unit));
}

// atomic_xchg, atomic_cas, atomic_rmw: the old values come back in the source tile (xchg, rmw) or the first one (cas).
void exchange(TileOp& op) {
  const bool cas = op.code == TileOpCode::atomic_cas;
  const auto kind = op.code == TileOpCode::atomic_rmw ? Atomic(op.attribute[0]) : Atomic::xchg;
  Operand memory = op.out(), expected = op.in(0), fresh = op.in(cas ? 1 : 0);
  Walk walk(memory.view);
  walk.add(op, expected), walk.add(op, fresh), walk.add(op, memory);
  const bool number = kind != Atomic::xchg && is_float(memory.type());
  int64_t a[kBlock], b[kBlock], c[kBlock], old[kBlock], result[kBlock];
  float fa[kBlock], fc[kBlock], sum[kBlock];
  walk.run([&](const Block& block) {
    if (number) {
      const float *x = fetch(walk, block, 1, fa), *m = fetch(walk, block, 2, fc);
      for (int i = 0; i < block.total(); ++i) sum[i] = combined(kind, m[i], x[i]);
    }
    const int64_t *x = fetch(walk, block, 0, a), *y = fetch(walk, block, 1, b), *m = fetch(walk, block, 2, c);
    for (int i = 0; i < block.total(); ++i) {
      old[i] = m[i];
      result[i] = cas ? (m[i] == x[i] ? y[i] : m[i]) : combined(kind, m[i], y[i]);
    }
    if (number) put(walk, block, 2, sum);
    else put(walk, block, 2, result);
    if (!expected.scalar) put(walk, block, 0, old);
  });
}

}  // namespace

void run_tile_op(TileOp& op) {
  switch (op.code) {
    case TileOpCode::vcast: return run_cast(op);
    case TileOpCode::vreduce: return run_reduce(op);
    case TileOpCode::vcumsum: case TileOpCode::vcumprod: case TileOpCode::vcummax: case TileOpCode::vcummin: return run_scan(op);
    case TileOpCode::load: case TileOpCode::copy: return move_tile(op, op.in(), op.out(), nullptr);
    case TileOpCode::store: return store(op);
    case TileOpCode::nd2nz: return nd_to_nz(op);
    case TileOpCode::nz2nd: return nz_to_nd(op);
    case TileOpCode::atomic_cas: case TileOpCode::atomic_xchg: case TileOpCode::atomic_rmw: return exchange(op);
    case TileOpCode::fixpipe: return run_fixpipe(op);
    default: break;
  }
  if (op.code <= TileOpCode::vsel) return run_elementwise(op);
  run_shuffle(op);
}

}  // namespace anychip
