// View instructions: memrefs made, cut and reshaped; single elements read and written by the scalar unit.
#include "machine.h"

namespace anychip {

int Core::view_code(Code code, const int32_t* p) {
  switch (code) {
    case Code::pointer: pointer(p); return 6 + p[5];
    case Code::reinterpret: {
      View out = v(p[2]);
      const int rank = p[4];
      out.offset = x(p[3]).i, out.rank = rank;
      for (int d = 0; d < rank; ++d) out.size[d] = x(p[5 + d]).i, out.stride[d] = x(p[5 + rank + d]).i;
      v(p[1]) = out;
      return 5 + 2 * rank;
    }
    case Code::subview: subview(p); return 6 + 3 * p[4];
    case Code::byte_view: {
      View out = v(p[2]);
      out.base += out.offset * bytes_of(out.type) + x(p[3]).i, out.offset = 0;
      out.type = Type(p[4]), out.rank = p[5];
      for (int d = 0; d < out.rank; ++d) out.size[d] = x(p[6 + d]).i;
      out.make_contiguous();
      v(p[1]) = out;
      return 6 + out.rank;
    }
    case Code::retype: v(p[1]) = v(p[2]); v(p[1]).type = Type(p[3]); return 4;
    case Code::collapse: collapse(p); return 5 + p[4];
    case Code::expand: {
      expand(p);
      int sizes = 0;
      for (int g = 0; g < p[3]; ++g) sizes += p[4 + g];
      return 4 + p[3] + sizes;
    }
    case Code::transpose_view: {
      const View in = v(p[2]);
      View out = in;
      for (int d = 0; d < p[3]; ++d) out.size[d] = in.size[p[4 + d]], out.stride[d] = in.stride[p[4 + d]];
      v(p[1]) = out;
      return 4 + p[3];
    }
    case Code::metadata: {
      const View in = v(p[2]);
      const int rank = p[3];
      x(p[4]).i = in.offset;
      for (int d = 0; d < rank; ++d) x(p[5 + d]).i = in.size[d], x(p[5 + rank + d]).i = in.stride[d];
      View& out = v(p[1]);
      out = in, out.offset = 0, out.rank = 0;
      return 5 + 2 * rank;
    }
    case Code::size_of: {
      const View& in = v(p[2]);
      const int64_t d = x(p[3]).i;
      x(p[1]).i = d >= 0 && d < in.rank ? in.size[d] : 0;
      return 4;
    }
    default: throw MachineError(-1, "an instruction that does not exist");
  }
}

void Core::pointer(const int32_t* p) {
  View& out = v(p[1]);
  const Space space = Space(p[2]);
  out.type = Type(p[3]), out.base = x(p[4]).i, out.offset = 0, out.rank = p[5];
  for (int d = 0; d < out.rank; ++d) out.size[d] = x(p[6 + d]).i;
  out.make_contiguous();
  out.buffer = machine_.buffer_of(id_, space);
}

void Core::subview(const int32_t* p) {
  const View in = v(p[2]);
  const int rank = p[4], kept = p[5 + 3 * rank];
  View out = in;
  out.rank = 0;
  bool outside = false, empty = false;
  int64_t at = in.offset;
  for (int d = 0; d < rank; ++d) {
    const int64_t offset = x(p[5 + d]).i, step = x(p[5 + 2 * rank + d]).i;
    int64_t size = x(p[5 + rank + d]).i;
    if (size <= 0) empty = true, size = 0;
    outside = outside || offset < 0 || (size > 0 && offset + (size - 1) * step >= in.size[d]);
    at += offset * in.stride[d];
    if (kept >> d & 1) out.size[out.rank] = size, out.stride[out.rank++] = step * in.stride[d];
  }
  out.offset = at;
  v(p[1]) = out;
  if (outside && !empty && machine_.buffers_[size_t(in.buffer)].space != Space::gm) {
    const Access reach = describe(out, machine_.buffers_[size_t(in.buffer)].space, 0, false);
    Finding f{FindingKind::outside_view, p[3], -1, id_, int32_t(Pipe::S), -1, -1, in.buffer, -1, block_, reach.low(), reach.high(), 1};
    machine_.findings_.report(f);
  }
}

void Core::collapse(const int32_t* p) {
  const View in = v(p[2]);
  View out = in;
  out.rank = p[4];
  int d = 0;
  for (int g = 0; g < p[4]; ++g) {
    int64_t size = 1, stride = 1;
    bool first = true;
    for (int i = p[5 + g] - 1; i >= 0; --i) {
      const int e = d + i;
      size *= in.size[e];
      if (in.size[e] == 1) continue;
      if (!first && in.stride[e] != stride) throw MachineError(p[3], "memref.collapse_shape of a view that is not contiguous");
      if (first) out.stride[g] = in.stride[e], first = false;
      stride = in.stride[e] * in.size[e];
    }
    if (first) out.stride[g] = p[5 + g] ? in.stride[d + p[5 + g] - 1] : 1;
    out.size[g] = size;
    d += p[5 + g];
  }
  v(p[1]) = out;
}

void Core::expand(const int32_t* p) {
  const View in = v(p[2]);
  View out = in;
  int d = 0;
  const int32_t* sizes = p + 4 + p[3];
  for (int g = 0; g < p[3]; ++g) {
    int64_t stride = in.stride[g];
    for (int i = p[4 + g] - 1; i >= 0; --i) {
      out.size[d + i] = x(sizes[d + i]).i, out.stride[d + i] = stride;
      stride *= out.size[d + i];
    }
    d += p[4 + g];
  }
  out.rank = d;
  v(p[1]) = out;
}

void Core::element(Code code, const int32_t* p) {
  const bool load = code == Code::load_element;
  Operand e;
  e.view = v(p[2]);
  const int rank = p[4];
  for (int d = 0; d < rank; ++d) e.view.offset += x(p[5 + d]).i * e.view.stride[d];
  e.view.rank = 0, e.write = !load;
  op_.instruction = p[3];
  bind(e);
  Slot& s = x(p[1]);
  const Type type = e.type();
  const int bytes = bytes_of(type);
  if (load) {
    int64_t raw = 0;
    if (type == Type::bit) raw = e.data[e.bit >> 3] >> (e.bit & 7) & 1;
    else std::memcpy(&raw, e.data, size_t(bytes));
    if (is_float(type)) s.f = number_of_bits(type, raw);
    else s.i = is_unsigned(type) ? raw : wrap(raw, bits_of(type));
  } else {
    const int64_t raw = is_float(type) ? bits_of_number(type, s.f) : s.i;
    if (type == Type::bit) {
      uint8_t& byte = e.data[e.bit >> 3];
      byte = uint8_t((byte & ~(1u << (e.bit & 7))) | (unsigned(raw & 1) << (e.bit & 7)));
    } else if (!e.outside) {
      std::memcpy(e.data, &raw, size_t(bytes));
    }
  }
  if (!machine_.observers_.empty()) {
    Step s2 = step(p[3], load ? TileOpCode::load_element : TileOpCode::store_element, StepKind::scalar, Pipe::S);
    add_access(s2, e);
    s2.rows = s2.elements = 1, s2.row_bytes = s2.element_bytes = bytes ? bytes : 1;
    emit(s2);
  }
  staged_.clear();
}

}  // namespace anychip
