// mmadL1: a macro of the cube core. It loads parts of A and B from L1 to L0A and L0B (MTE1) while the cube (M) multiplies
// the parts before, with two buffers for each, and waits and sets the flags that the compiler passes to it.
#include "machine.h"

namespace anychip {
namespace {

constexpr int kBackEvents[2] = {6, 7}, kReadyEvent = 5;

int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// Bytes of the valid rows and columns of a blocked matrix in L1 or L0C, from row 0, columns [from, to).
Access blocked(const Operand& o, int64_t rows, int64_t from, int64_t to) {
  View v = o.view;
  const int64_t c0 = v.size[3];
  v.offset += from / c0 * v.stride[0];
  v.rank = 3;  // [column blocks, rows, c0]: rows of one block of columns follow each other
  const int64_t stride = v.stride[2], inner = v.stride[3];
  v.size[0] = (to - from + c0 - 1) / c0, v.size[1] = rows, v.size[2] = c0;
  v.stride[1] = stride, v.stride[2] = inner;
  return describe(v, o.access.space, 0, o.write);
}

Access level0(int buffer, Space space, int half, int64_t bytes, bool write) {
  Access a{};
  a.buffer = buffer, a.space = space, a.write = write;
  a.first = half * 32768, a.run = std::min<int64_t>(bytes, half ? 32768 : 65536);
  return a;
}

}  // namespace

// Operands: A, B, init (scalar), m, k, n (scalars) -> C. Attributes: [transpose A, transpose B, HF32, then the registers
// of: wait A, wait B, set A, set B, loop parity, back event 0, back event 1].
void Core::matrix(TileOp& op) {
  MatmulShape shape{op.in(3).value.i, op.in(4).value.i, op.in(5).value.i, op.attribute[0] != 0, op.attribute[1] != 0,
                    op.in(2).value.i != 0, op.attribute[2] != 0};
  int64_t events[7];
  for (int i = 0; i < 7; ++i) events[i] = op.attributes > 3 + i ? x(op.attribute[3 + i]).i : -1;
  for (Operand* o : {&op.in(0), &op.in(1), &op.out()}) bind(*o);
  const bool nothing = shape.m <= 0 || shape.k <= 0 || shape.n <= 0;
  if (nothing) {
    for (int i = 0; i < 2; ++i) if (events[i] >= 0) wait_event(op.instruction, int(Pipe::MTE2), int(Pipe::MTE1), int(events[i]));
    for (int i = 2; i < 4; ++i) if (events[i] >= 0) set_event(op.instruction, int(Pipe::MTE1), int(Pipe::MTE2), int(events[i]));
    return;
  }
  matrix_steps(op, shape, events);
  if (op.in(0).outside || op.in(1).outside || op.out().outside) op.fail("a matrix of the cube reaches outside its buffer");
  if (machine_.numerics_) matmul(op, shape);
}

void Core::matrix_steps(TileOp& op, const MatmulShape& s, const int64_t* events) {
  const bool watched = !machine_.observers_.empty();
  const Operand &a = op.in(0), &b = op.in(1), &c = op.out();
  const int64_t unit = bytes_of(a.type()), align = std::max<int64_t>(32 / unit, 16);
  const View &va = a.view, &vb = b.view;
  const int64_t m_tile = s.transpose_a ? va.size[0] * va.size[3] : va.size[1] * va.size[2];
  const int64_t n_tile = s.transpose_b ? vb.size[1] * vb.size[2] : vb.size[0] * vb.size[3];
  const int64_t across = round_up(std::max(m_tile, n_tile), align);
  int64_t part = 32768 / unit / across / align * align;
  const bool two = part > 0;
  if (!two) part = std::max<int64_t>(65536 / unit / across / align * align, align);
  const int64_t loops = (s.k + part - 1) / part;
  auto back = [&](int half) { return int(events[5 + half] >= 0 ? events[5 + half] : kBackEvents[half]); };
  const int M = int(Pipe::M), MTE1 = int(Pipe::MTE1), MTE2 = int(Pipe::MTE2), at = op.instruction;
  for (int half = 0; half < 2; ++half) if (events[5 + half] < 0) set_event(at, M, MTE1, back(half));
  if (events[0] >= 0) wait_event(at, MTE2, MTE1, int(events[0]));
  for (int64_t i = 0; i < loops; ++i) {
    const int64_t k = std::min(part, s.k - i * part), from = i * part, to = from + k;
    const int half = !two ? 0 : events[4] >= 0 ? int((events[4] * loops + i) % 2) : int(i % 2);
    auto load = [&](const Operand& tile, bool is_a) {
      if (!watched) return;
      const bool turned = is_a ? s.transpose_a : s.transpose_b;
      const int64_t outer = is_a ? s.m : s.n;
      Step st = step(at, is_a ? TileOpCode::load_l0a : TileOpCode::load_l0b, StepKind::load_l0, Pipe::MTE1);
      const bool k_is_column = is_a != turned;  // A lies as [m, k], B as [k, n]
      Operand view = tile;
      if (!k_is_column) view.view.offset += from / tile.view.size[2] * tile.view.stride[1] + from % tile.view.size[2] * tile.view.stride[2];
      add_access(st, k_is_column ? blocked(view, outer, from, to) : blocked(view, k, 0, outer));
      const Space space = is_a ? Space::l0a : Space::l0b;
      add_access(st, level0(machine_.buffer_of(id_, space), space, half, outer * k * unit, true));
      st.m = int32_t(is_a ? s.m : k), st.k = int32_t(k), st.n = int32_t(s.n);
      st.rows = outer, st.row_bytes = k * unit, st.elements = outer * k, st.element_bytes = int32_t(unit);
      emit(st);
    };
    wait_event(at, M, MTE1, back(half));
    load(a, true);
    if (i == loops - 1 && events[2] >= 0) set_event(at, MTE1, MTE2, int(events[2]));
    if (i == 0 && events[1] >= 0) wait_event(at, MTE2, MTE1, int(events[1]));
    load(b, false);
    if (i == loops - 1 && events[3] >= 0) set_event(at, MTE1, MTE2, int(events[3]));
    set_event(at, MTE1, M, kReadyEvent);
    wait_event(at, MTE1, M, kReadyEvent);
    if (watched) {
      Step st = step(at, TileOpCode::mad, StepKind::mad, Pipe::M);
      add_access(st, level0(machine_.buffer_of(id_, Space::l0a), Space::l0a, half, s.m * k * unit, false));
      add_access(st, level0(machine_.buffer_of(id_, Space::l0b), Space::l0b, half, s.n * k * unit, false));
      if (!s.fresh || i) {
        Operand read = c;
        read.write = false;
        add_access(st, blocked(read, s.m, 0, s.n));
      }
      add_access(st, blocked(c, s.m, 0, s.n));
      st.m = int32_t(s.m), st.k = int32_t(k), st.n = int32_t(s.n), st.chained = i > 0;
      st.elements = s.m * s.n, st.element_bytes = int32_t(unit);
      emit(st);
    }
    set_event(at, M, MTE1, back(half));
  }
  for (int half = 0; half < 2; ++half) if (events[5 + half] < 0) wait_event(at, M, MTE1, back(half));
}

// The fixpipe reads the rows and columns that it writes, not its whole L0C tile.
void Core::fixpipe_access(TileOp& op, Step& s) {
  const View& v = op.out().view;
  const int64_t rows = v.rank == 4 ? v.size[1] * v.size[2] : v.size[v.rank - 2];
  const int64_t columns = v.rank == 4 ? v.size[0] * v.size[3] : v.size[v.rank - 1];
  s.access[0] = blocked(op.in(), rows, 0, columns);
}

}  // namespace anychip
