// Tile instructions: operands found and checked, the op run, the observers told.
#include "machine.h"

namespace anychip {
namespace {

// Calls f(element number, byte offset in the buffer, inside) for every element of a view in row-major order.
template <class F> void for_elements(const View& v, const Memory& m, F f) {
  const int64_t unit = bytes_of(v.type), n = v.elements();
  int64_t at[kMaxDims] = {}, offset = v.base - m.shift + v.offset * unit;
  for (int64_t i = 0; i < n; ++i) {
    f(i, offset, offset >= 0 && offset + unit <= m.bytes);
    for (int d = v.rank - 1; d >= 0; --d) {
      offset += v.stride[d] * unit;
      if (++at[d] < v.size[d]) break;
      offset -= v.stride[d] * unit * v.size[d], at[d] = 0;
    }
  }
}

Pipe pipe_of(TileOp& op, Space from, Space to) {
  switch (op.code) {
    case TileOpCode::load: case TileOpCode::nd2nz: return Pipe::MTE2;
    case TileOpCode::store: case TileOpCode::atomic_cas: case TileOpCode::atomic_xchg: case TileOpCode::atomic_rmw: return Pipe::MTE3;
    case TileOpCode::fixpipe: return Pipe::FIX;
    case TileOpCode::copy: return from == Space::gm ? Pipe::MTE2 : to == Space::ub ? Pipe::V : Pipe::MTE3;
    default: return to == Space::l1 ? Pipe::MTE2 : Pipe::V;  // vbrc may fill L1
  }
}

}  // namespace

// Finds the operand's memory. Elements outside it are read as all ones (NaN) from a copy, and written to nowhere.
void Core::bind(Operand& o) {
  View& v = o.view;
  Memory& m = machine_.memory_[size_t(v.buffer)];
  const Buffer& buffer = machine_.buffers_[size_t(v.buffer)];
  o.access = describe(v, buffer.space, m.shift, o.write, o.scratch);
  const int64_t low = o.access.low(), high = o.access.high();
  if (buffer.space != Space::gm && high > m.used) m.used = std::min(high, m.bytes);
  if (v.type == Type::bit) o.data = m.data, o.bit = (v.base - m.shift) * 8 + v.offset;
  else o.data = m.data + (v.base - m.shift) + v.offset * bytes_of(v.type);
  if ((low >= 0 && high <= m.bytes) || v.empty()) return;
  o.access.outside = o.outside = true;
  Finding f{o.write ? FindingKind::outside_write : FindingKind::outside_read, op_.instruction, -1, id_, -1, -1, -1,
            v.buffer, -1, block_, low, high, 1};
  machine_.findings_.report(f);
  if (v.type == Type::bit) op_.fail("an i1 tile reaches outside its buffer");
  o.home = v;
  staged_.emplace_back(size_t(v.elements() * bytes_of(v.type)), uint8_t(0xff));
  o.data = staged_.back().data();
  const int64_t unit = bytes_of(v.type);
  for_elements(v, m, [&](int64_t i, int64_t offset, bool inside) {
    if (inside) std::memcpy(o.data + i * unit, m.data + offset, size_t(unit));
  });
  v.make_contiguous();
}

void Core::write_back(TileOp& op) {
  for (Operand& o : op.operand) {
    if (!o.outside || !o.write) continue;
    Memory& m = machine_.memory_[size_t(o.home.buffer)];
    const int64_t unit = bytes_of(o.home.type);
    for_elements(o.home, m, [&](int64_t i, int64_t offset, bool inside) {
      if (inside) std::memcpy(m.data + offset, o.data + i * unit, size_t(unit));
    });
  }
}

Step Core::step(int32_t instruction, TileOpCode op, StepKind kind, Pipe pipe) {
  Step s;
  std::memset(&s, 0, offsetof(Step, access));
  std::memset(reinterpret_cast<char*>(&s) + offsetof(Step, element_bytes), 0, sizeof s - offsetof(Step, element_bytes));
  s.instruction = instruction, s.op = int16_t(op), s.kind = kind, s.core = int8_t(id_), s.pipe = s.peer = pipe, s.event = -1;
  return s;
}

void Core::add_access(Step& s, const Access& a) {
  if (s.accesses < kMaxAccesses) s.access[s.accesses++] = a;
}
void Core::add_access(Step& s, const Operand& o) {
  if (!o.scalar) add_access(s, o.access);
}

void Core::emit(Step& s) {
  s.scalar_ops = int32_t(scalar_ops_), scalar_ops_ = 0;
  for (Observer* o : machine_.observers_) o->step(s);
}

// What the observers learn of an op that is one step.
void Core::tile_step(TileOp& op) {
  auto space = [&](const Operand& o) { return o.scalar ? Space::ub : machine_.buffers_[size_t(o.access.buffer)].space; };
  const Space from = op.inputs ? space(op.in()) : Space::ub, to = op.outputs ? space(op.out()) : Space::ub;
  const Pipe pipe = pipe_of(op, from, to);
  Step s = step(op.instruction, op.code, pipe == Pipe::V ? StepKind::vector : pipe == Pipe::FIX ? StepKind::fixpipe : StepKind::dma, pipe);
  const Operand* shape = &op.out();
  for (int pass = 0; pass < 3; ++pass)
    for (Operand& o : op.operand)
      if ((o.scratch ? 2 : o.write ? 1 : 0) == pass) {
        add_access(s, o);
        if (o.scratch) continue;
        s.scalar_operand = s.scalar_operand || (o.scalar && op.code != TileOpCode::varange);
        if (o.scalar) continue;
        if (bytes_of(o.type()) > s.element_bytes) s.element_bytes = bytes_of(o.type()), shape = &o;
        if (pipe != Pipe::V && space(o) == Space::gm) shape = &o;
      }
  if (s.element_bytes == 0) s.element_bytes = 1;
  if (op.code == TileOpCode::vreduce) shape = &op.in();
  s.atomic = op.code == TileOpCode::store && op.attribute[0] != 0;
  s.rows = shape->access.runs(), s.row_bytes = shape->access.run, s.elements = shape->view.elements();
  if (op.code == TileOpCode::fixpipe) fixpipe_access(op, s);
  emit(s);
}

int Core::tile(const int32_t* p) {
  TileOp& op = op_;
  op.code = TileOpCode(p[1]), op.instruction = p[2], op.inputs = p[3], op.outputs = p[4], op.scratch = p[5];
  const int n = op.inputs + op.outputs + op.scratch;
  op.operand.resize(size_t(n));
  const int32_t* q = p + 6;
  for (int i = 0; i < n; ++i, q += 2) {
    Operand& o = op.operand[size_t(i)];
    o.scalar = q[0] >= 0, o.outside = false;
    o.write = i >= op.inputs, o.scratch = i >= op.inputs + op.outputs;
    if (o.scalar) {
      o.view.type = Type(q[0]), o.view.rank = 0;
      o.value.i = x(q[1]).i;
    } else {
      o.view = v(q[1]);
    }
  }
  op.attributes = q[0], op.attribute = q + 1;
  ++machine_.steps_;
  const int length = int(q + 1 + q[0] - p);
  if (op.code == TileOpCode::mmadL1) { matrix(op); return length; }
  if (op.code == TileOpCode::fixpipe && op.attribute[1]) { fixpipe_halves(op); return length; }
  if (op.outputs && op.out().view.empty()) return length;
  run_bound(op);
  return length;
}

void Core::run_bound(TileOp& op) {
  for (Operand& o : op.operand)
    if (!o.scalar) bind(o);
  if (!machine_.observers_.empty()) tile_step(op);
  if (machine_.numerics_ || op.code == TileOpCode::load) run_tile_op(op);
  if (!staged_.empty()) write_back(op), staged_.clear();
}

// 950: the upper half of the rows goes to the first vector core's UB, the lower half to the second's.
void Core::fixpipe_halves(TileOp& op) {
  const Operand in = op.in(), out = op.out();
  const int64_t rows = out.view.size[out.view.rank - 2], m0 = in.view.size[2];
  if (out.view.rank != 2 || rows % m0) op.fail("a fixpipe split between vector cores that does not cut whole blocks");
  run_bound(op);
  op.in() = in, op.out() = out;
  op.in().view.offset += rows / m0 * in.view.stride[1], op.in().view.size[1] -= rows / m0;
  op.out().view.buffer = machine_.buffer_of(2, Space::ub);
  run_bound(op);
}

}  // namespace anychip
