// Ops that move or make elements: broadcast, ranges, sorting, gathering, interleaving, transposition, padding.
#include <numeric>
#include <vector>

#include "blocks.h"

namespace anychip {

// Copies a tile to a tile of the same element type (or casts nothing: bits are moved), `order`: its dimensions permuted.
void move_tile(TileOp& op, const Operand& from, const Operand& to, const int32_t* order) {
  if (bits_of(from.type()) != bits_of(to.type())) op.fail("a copy between element types");
  Walk walk(to.view);
  walk.add(op, from, order), walk.add(op, to);
  if (bits_of(to.type()) == 64) {
    int64_t buffer[kBlock];
    return walk.run([&](const Block& b) { put(walk, b, 1, fetch(walk, b, 0, buffer)); });
  }
  if (is_float(to.type()) && to.type() == from.type() && to.type() == Type::f32) {
    float buffer[kBlock];
    return walk.run([&](const Block& b) { put(walk, b, 1, fetch(walk, b, 0, buffer)); });
  }
  const int width = bytes_of(to.type());
  int32_t buffer[kBlock];
  walk.run([&](const Block& b) {
    if (b.rows == 1 && b.inner[0] == 1 && b.inner[1] == 1 && width && !from.scalar) {
      std::memmove(to.data + b.offset[1][0] * width, from.data + b.offset[0][0] * width, size_t(b.n) * width);
      return;
    }
    put(walk, b, 1, fetch(walk, b, 0, buffer));
  });
}

namespace {

void broadcast(TileOp& op) {
  Operand from = op.in();
  if (!from.scalar && from.view.rank < op.out().view.rank) {  // leading dimensions were dropped
    const int shift = op.out().view.rank - from.view.rank;
    View v = from.view;
    v.rank = op.out().view.rank;
    for (int d = 0; d < v.rank; ++d) v.size[d] = d < shift ? 1 : from.view.size[d - shift], v.stride[d] = d < shift ? 0 : from.view.stride[d - shift];
    from.view = v;
  }
  move_tile(op, from, op.out(), nullptr);
}

// Attributes: [has offset]; inputs: offset if any, then one stride for each dimension.
void range(TileOp& op) {
  const int has_offset = op.attribute[0];
  const Operand& out = op.out();
  Walk walk(out.view);
  walk.add(op, out);
  int64_t stride[kMaxDims] = {}, size[kMaxDims] = {}, at[kMaxDims] = {}, x = has_offset ? op.in(0).value.i : 0;
  const int rank = out.view.rank;
  for (int d = 0; d < rank; ++d) stride[d] = op.in(has_offset + d).value.i, size[d] = out.view.size[d];
  int64_t whole[kBlock];
  float real[kBlock];
  walk.run([&](const Block& b) {
    for (int i = 0; i < b.total(); ++i) {
      whole[i] = x, real[i] = float(x);
      for (int d = rank - 1; d >= 0; --d) {
        x += stride[d];
        if (++at[d] < size[d]) break;
        x -= stride[d] * size[d], at[d] = 0;
      }
    }
    if (is_float(out.type())) put(walk, b, 0, real);
    else put(walk, b, 0, whole);
  });
}

// Runs f(offsets of row starts for each operand) over all dimensions but `axis`.
template <class F> void for_rows(const std::vector<const View*>& views, int axis, F f) {
  const View& shape = *views[0];
  int64_t at[kMaxDims] = {};
  std::vector<int64_t> start(views.size(), 0);
  for (int d = 0; d < shape.rank; ++d) if (d != axis && shape.size[d] <= 0) return;
  for (;;) {
    f(start);
    int d = shape.rank - 1;
    for (; d >= 0; --d) {
      if (d == axis) continue;
      for (size_t k = 0; k < views.size(); ++k) start[k] += views[k]->stride[d];
      if (++at[d] < shape.size[d]) break;
      for (size_t k = 0; k < views.size(); ++k) start[k] -= views[k]->stride[d] * shape.size[d];
      at[d] = 0;
    }
    if (d < 0) return;
  }
}

double read_number(const Operand& o, int64_t at) {
  const uint8_t* p = o.data + at * bytes_of(o.type());
  switch (o.type()) {
    case Type::f32: return *reinterpret_cast<const float*>(p);
    case Type::f16: return to_float(*reinterpret_cast<const Half*>(p));
    case Type::bf16: return to_float(*reinterpret_cast<const Brain*>(p));
    default: return 0;
  }
}
int64_t read_int(const Operand& o, int64_t at) {
  if (o.type() == Type::bit) return (o.data[(o.bit + at) >> 3] >> ((o.bit + at) & 7)) & 1;
  int64_t x = 0;
  std::memcpy(&x, o.data + at * bytes_of(o.type()), bytes_of(o.type()));
  return is_unsigned(o.type()) ? x : wrap(x, bits_of(o.type()));
}
void write_raw(const Operand& o, int64_t at, int64_t x) {
  if (o.type() == Type::bit) {
    const int64_t b = o.bit + at;
    o.data[b >> 3] = uint8_t((o.data[b >> 3] & ~(1u << (b & 7))) | (unsigned(x & 1) << (b & 7)));
  } else {
    std::memcpy(o.data + at * bytes_of(o.type()), &x, bytes_of(o.type()));
  }
}

// Attributes: [descending, axis]. Stable; NaN sorts as the largest.
void sort(TileOp& op) {
  const Operand &in = op.in(), &out = op.out();
  const int axis = op.attribute[1] < 0 ? op.attribute[1] + in.view.rank : op.attribute[1];
  const bool real = is_float(in.type()), falling = op.attribute[0];
  const int64_t n = in.view.size[axis];
  std::vector<double> key(real ? n : 0);
  std::vector<int64_t> raw(n);
  std::vector<int32_t> order(n);
  std::vector<const View*> views{&in.view, &out.view};
  if (op.outputs > 1) views.push_back(&op.out(1).view);
  for_rows(views, axis, [&](const std::vector<int64_t>& start) {
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = start[0] + i * in.view.stride[axis];
      raw[i] = read_int(in, at), order[i] = int32_t(i);
      if (real) { key[i] = read_number(in, at); if (key[i] != key[i]) key[i] = std::numeric_limits<double>::infinity(); }
    }
    auto less = [&](int32_t a, int32_t b) { return real ? key[a] < key[b] : raw[a] < raw[b]; };
    if (falling) std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return less(b, a); });
    else std::stable_sort(order.begin(), order.end(), less);
    for (int64_t i = 0; i < n; ++i) {
      write_raw(out, start[1] + i * out.view.stride[axis], raw[order[i]]);
      if (op.outputs > 1) write_raw(op.out(1), start[2] + i * op.out(1).view.stride[axis], order[i]);
    }
  });
}

// Attributes: [axis]. Inputs: source, indices. An index outside the axis is an error of the kernel.
void gather(TileOp& op) {
  const Operand &from = op.in(0), &index = op.in(1), &out = op.out();
  const int axis = op.attribute[0] < 0 ? op.attribute[0] + from.view.rank : op.attribute[0];
  for_rows({&out.view, &index.view, &from.view}, axis, [&](const std::vector<int64_t>& start) {
    for (int64_t i = 0; i < out.view.size[axis]; ++i) {
      const int64_t j = read_int(index, start[1] + i * index.view.stride[axis]);
      if (j < 0 || j >= from.view.size[axis])
        op.fail("vgather: index " + std::to_string(j) + " outside [0, " + std::to_string(from.view.size[axis]) + ")");
      write_raw(out, start[0] + i * out.view.stride[axis], read_int(from, start[2] + j * from.view.stride[axis]));
    }
  });
}

// Inputs: source, mask. Outputs: the chosen elements in order, and their number.
void gather_mask(TileOp& op) {
  const Operand &from = op.in(0), &mask = op.in(1), &out = op.out(0);
  int64_t n = 0;
  for (int64_t i = 0; i < from.view.size[0]; ++i)
    if (read_int(mask, i * mask.view.stride[0]))
      write_raw(out, n++ * out.view.stride[0], read_int(from, i * from.view.stride[0]));
  if (op.outputs > 1) write_raw(op.out(1), 0, n);
}

// Every `count`-th element of the last dimension, from element `first`.
Operand channel(const Operand& whole, int first, int count) {
  Operand part = whole;
  const int last = whole.view.rank - 1;
  const int64_t shift = first * whole.view.stride[last];
  if (whole.type() == Type::bit) part.bit += shift;
  else part.data += shift * bytes_of(whole.type());
  part.view.size[last] = whole.view.size[last] / count;
  part.view.stride[last] = whole.view.stride[last] * count;
  return part;
}

// A part of `whole` that begins at `start` in dimension `dim` and has `size` elements there.
Operand slice(const Operand& whole, int dim, int64_t start, int64_t size) {
  Operand part = whole;
  const int64_t shift = start * whole.view.stride[dim];
  if (whole.type() == Type::bit) part.bit += shift;
  else part.data += shift * bytes_of(whole.type());
  part.view.size[dim] = size;
  return part;
}

void flip(TileOp& op) {
  const int last = op.attributes ? op.attribute[0] : op.in().view.rank - 1;
  for_rows({&op.in().view, &op.out().view}, last, [&](const std::vector<int64_t>& start) {
    const int64_t n = op.in().view.size[last];
    for (int64_t i = 0; i < n; ++i)
      write_raw(op.out(), start[1] + i * op.out().view.stride[last], read_int(op.in(), start[0] + (n - 1 - i) * op.in().view.stride[last]));
  });
}

// Attributes: low padding of each dimension. Inputs: source, value.
void pad(TileOp& op) {
  move_tile(op, op.in(1), op.out(), nullptr);
  Operand inner = op.out();
  for (int d = 0; d < op.out().view.rank; ++d) inner = slice(inner, d, op.attribute[d], op.in(0).view.size[d]);
  move_tile(op, op.in(0), inner, nullptr);
}

void concatenate(TileOp& op) {
  int64_t at = 0;
  for (int i = 0; i < op.inputs; ++i) {
    const int64_t n = op.in(i).view.size[op.attribute[0]];
    move_tile(op, op.in(i), slice(op.out(), op.attribute[0], at, n), nullptr);
    at += n;
  }
}

}  // namespace

void run_shuffle(TileOp& op) {
  switch (op.code) {
    case TileOpCode::vbrc: return broadcast(op);
    case TileOpCode::varange: return range(op);
    case TileOpCode::vsort: return sort(op);
    case TileOpCode::vgather: return gather(op);
    case TileOpCode::vgathermask: return gather_mask(op);
    case TileOpCode::vtranspose: return move_tile(op, op.in(), op.out(), op.attribute);
    case TileOpCode::vflip: return flip(op);
    case TileOpCode::vpad: return pad(op);
    case TileOpCode::vconcat: return concatenate(op);
    case TileOpCode::vinterleave:
      for (int i = 0; i < op.inputs; ++i) move_tile(op, op.in(i), channel(op.out(), i, op.inputs), nullptr);
      return;
    case TileOpCode::vdeinterleave: {  // attributes: [channels, the one wanted or -1 for all]
      const int wanted = op.attribute[1];
      for (int i = 0; i < op.outputs; ++i) move_tile(op, channel(op.in(), wanted < 0 ? i : wanted, op.attribute[0]), op.out(i), nullptr);
      return;
    }
    default: op.fail("this tile op is not known to the machine");
  }
}

}  // namespace anychip
