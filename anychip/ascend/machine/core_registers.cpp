// The 950's vector functions: loads, stores and operations on vector registers.
#include "machine.h"

namespace anychip {

int Core::register_code(Code code, const int32_t* p) {
  switch (code) {
    case Code::reg_op: register_op(p); return 14;
    case Code::reg_fill:
      fill_register(registers_[size_t(p[2])], Type(p[4]), x(p[3]).f, x(p[3]).i, p[5] < 0 ? nullptr : &registers_[size_t(p[5])]);
      register_step(p[1], TileOpCode::broadcast, nullptr);
      return 6;
    case Code::reg_lane: {
      const Register& r = registers_[size_t(p[2])];
      const Type type = Type(p[3]);
      int64_t raw = 0;
      std::memcpy(&raw, r.byte, size_t(type == Type::bit ? 1 : bytes_of(type)));
      if (is_float(type)) x(p[1]).f = number_of_bits(type, raw);
      else x(p[1]).i = is_unsigned(type) ? raw : wrap(raw, bits_of(type));
      return 4;
    }
    case Code::reg_load: register_load(p); return 8 + p[7];
    case Code::reg_store: register_store(p); return 8 + p[7];
    case Code::reg_mask: mask_register(registers_[size_t(p[1])], MaskPattern(p[2] & 15), p[2] >> 4, p[3]); return 4;
    default: {
      const int64_t n = x(p[3]).i, lanes = kRegister / p[4];
      mask_register(registers_[size_t(p[1])], MaskPattern::first, n, p[4]);
      x(p[2]).i = n > lanes ? n - lanes : 0;
      return 5;
    }
  }
}

void Core::register_op(const int32_t* p) {
  auto reg = [&](int32_t r) { return r < 0 ? nullptr : &registers_[size_t(r)]; };
  const Slot scalar = p[9] < 0 ? Slot{0} : x(p[9]);
  RegOp op{Reg(p[2]), Type(p[10]), Type(p[11]), p[12], p[13], reg(p[5]), reg(p[6]), reg(p[7]), reg(p[8]), p[9] >= 0,
           scalar.f, scalar.i, reg(p[3]), reg(p[4])};
  if (!run_register_op(op)) throw MachineError(p[1], "the vector registers have no such operation on this element type");
  ++machine_.steps_;
  register_step(p[1], TileOpCode::register_op, nullptr);
}

// The host address of `bytes` bytes from an element of a view on; what is accessed is described for the observers.
uint8_t* Core::reach(const View& view, int32_t instruction, const int32_t* index, int rank, int64_t bytes, bool write, Access& access) {
  View at = view;
  for (int d = 0; d < rank; ++d) at.offset += x(index[d]).i * view.stride[d];
  const Memory& m = machine_.memory_[size_t(at.buffer)];
  const Space space = machine_.buffers_[size_t(at.buffer)].space;
  at.rank = 0;
  access = describe(at, space, m.shift, write);
  access.run = bytes;
  if (access.first < 0 || access.first + bytes > m.bytes) {
    access.outside = true;
    machine_.findings_.report({write ? FindingKind::outside_write : FindingKind::outside_read, instruction, -1, id_, int32_t(Pipe::V), -1, -1,
                               at.buffer, -1, block_, access.first, access.first + bytes, 1});
    return nullptr;
  }
  Memory& used = machine_.memory_[size_t(at.buffer)];
  used.used = std::max(used.used, access.first + bytes);
  return m.data + access.first;
}

// Loads take a whole register's worth, also beyond the view: what lies there goes to lanes that masks switch off.
void Core::register_load(const int32_t* p) {
  const View& view = v(p[4]);
  const auto pattern = LoadPattern(p[5] & 15);
  const Type type = Type(p[6]);
  const int unit = type == Type::bit ? 1 : bytes_of(type), rank = p[7];
  if (pattern == LoadPattern::mask) return mask_load(p, p[5] >> 4);
  const int64_t span = pattern == LoadPattern::brc ? unit : pattern == LoadPattern::unpack2 ? kRegister / 2
                     : pattern == LoadPattern::unpack4 ? kRegister / 4
                     : pattern == LoadPattern::deinterleave ? 2 * kRegister : pattern == LoadPattern::upsample ? kRegister / 2
                     : pattern == LoadPattern::downsample ? 2 * kRegister : kRegister;
  int64_t wanted = span;  // the view's part of it
  if (rank && view.rank) {
    const int64_t left = (view.size[view.rank - 1] - x(p[7 + rank]).i) * unit;
    wanted = std::max<int64_t>(std::min(span, left), unit);
  }
  Access access;
  const uint8_t* from = reach(view, p[1], p + 8, rank, wanted, false, access);
  uint8_t line[2 * kRegister];
  std::memset(line, 0xff, sizeof line);
  if (from) {
    const Memory& m = machine_.memory_[size_t(view.buffer)];
    std::memcpy(line, from, size_t(std::min<int64_t>(span, m.bytes - access.first)));
  }
  Register& out = registers_[size_t(p[2])];
  switch (pattern) {
    case LoadPattern::norm: std::memcpy(out.byte, line, kRegister); break;
    case LoadPattern::brc: for (int i = 0; i < kRegister; i += unit) std::memcpy(out.byte + i, line, size_t(unit)); break;
    case LoadPattern::unpack2: case LoadPattern::unpack4: {
      const int wide = unit * (pattern == LoadPattern::unpack2 ? 2 : 4);
      std::memset(out.byte, 0, kRegister);
      for (int i = 0; i * wide < kRegister; ++i) std::memcpy(out.byte + i * wide, line + i * unit, size_t(unit));
      break;
    }
    case LoadPattern::mask: break;
    case LoadPattern::deinterleave: {
      Register& odd = registers_[size_t(p[3])];
      for (int i = 0; i * unit < kRegister; ++i) {
        std::memcpy(out.byte + i * unit, line + 2 * i * unit, size_t(unit));
        std::memcpy(odd.byte + i * unit, line + (2 * i + 1) * unit, size_t(unit));
      }
      break;
    }
    case LoadPattern::upsample: for (int i = 0; i * unit < kRegister; ++i) std::memcpy(out.byte + i * unit, line + i / 2 * unit, size_t(unit)); break;
    case LoadPattern::downsample: for (int i = 0; i * unit < kRegister; ++i) std::memcpy(out.byte + i * unit, line + 2 * i * unit, size_t(unit)); break;
  }
  ++machine_.steps_;
  register_step(p[1], TileOpCode::vload, &access);
}

void Core::register_store(const int32_t* p) {
  const Register &from = registers_[size_t(p[2])], *mask = p[3] < 0 ? nullptr : &registers_[size_t(p[3])];
  const View& view = v(p[4]);
  const auto pattern = StorePattern(p[5] & 15);
  const Type type = Type(p[6]);
  if (pattern == StorePattern::mask) return mask_store(p, p[5] >> 4);
  const int unit = type == Type::bit ? 1 : bytes_of(type);
  const int wide = unit * (pattern == StorePattern::pack2 ? 2 : pattern == StorePattern::pack4 ? 4 : 1);
  const int lanes = pattern == StorePattern::one ? 1 : kRegister / wide;
  int first = lanes, last = -1;
  for (int i = 0; i < lanes; ++i)
    if (!mask || mask->byte[i * wide]) first = std::min(first, i), last = i;
  if (last < 0) return;
  View part = view;
  part.offset += first;
  Access access;
  if (uint8_t* to = reach(part, p[1], p + 8, p[7], (last - first + 1) * unit, true, access))
    for (int i = first; i <= last; ++i)
      if (!mask || mask->byte[i * wide]) std::memcpy(to + (i - first) * unit, from.byte + i * wide, size_t(unit));
  ++machine_.steps_;
  register_step(p[1], TileOpCode::masked_store, &access);
}

// Masks lie in memory as one bit for each lane, whatever the lanes' width.
int64_t Core::mask_bits(const int32_t* p, int lane_bytes, bool write, uint8_t** data, Access& access) {
  const View& view = v(p[4]);
  View at = view;
  const int rank = p[7];
  for (int d = 0; d < rank; ++d) at.offset += x(p[8 + d]).i * view.stride[d];
  const int64_t left = rank && view.rank ? view.size[view.rank - 1] - x(p[7 + rank]).i : view.elements();
  at.rank = 1, at.size[0] = std::max<int64_t>(std::min<int64_t>(left, kRegister / lane_bytes), 1), at.stride[0] = 1;
  const Memory& m = machine_.memory_[size_t(at.buffer)];
  access = describe(at, machine_.buffers_[size_t(at.buffer)].space, m.shift, write);
  if (access.first < 0 || access.first + access.run > m.bytes) throw MachineError(p[1], "a mask lies outside its memory");
  *data = m.data + (at.base - m.shift) + at.offset / 8;
  return at.size[0] << 3 | (at.offset & 7);
}

void Core::mask_load(const int32_t* p, int lane_bytes) {
  Access access;
  uint8_t* data;
  const int64_t found = mask_bits(p, lane_bytes, false, &data, access), n = found >> 3, first = found & 7;
  Register& out = registers_[size_t(p[2])];
  std::memset(out.byte, 0, kRegister);
  for (int64_t i = 0; i < n; ++i) out.byte[i * lane_bytes] = data[(first + i) >> 3] >> ((first + i) & 7) & 1;
  ++machine_.steps_;
  register_step(p[1], TileOpCode::vload, &access);
}

void Core::mask_store(const int32_t* p, int lane_bytes) {
  Access access;
  uint8_t* data;
  const int64_t found = mask_bits(p, lane_bytes, true, &data, access), n = found >> 3, first = found & 7;
  const Register& from = registers_[size_t(p[2])];
  for (int64_t i = 0; i < n; ++i) {
    uint8_t& byte = data[(first + i) >> 3];
    const int bit = int((first + i) & 7);
    byte = uint8_t((byte & ~(1u << bit)) | unsigned(from.byte[i * lane_bytes] & 1) << bit);
  }
  ++machine_.steps_;
  register_step(p[1], TileOpCode::masked_store, &access);
}

void Core::register_step(int32_t instruction, TileOpCode op, const Access* access) {
  if (machine_.observers_.empty()) return;
  Step s = step(instruction, op, StepKind::vector, Pipe::V);
  if (access) add_access(s, *access);
  s.fused = true, s.rows = 1, s.row_bytes = kRegister, s.element_bytes = 4, s.elements = kRegister / 4;
  emit(s);
}

}  // namespace anychip
