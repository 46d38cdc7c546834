// Views of memory (what a memref is), the operands of a tile op, and the machine's error.
#pragma once
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "number.h"
#include "opcodes.h"
#include "step.h"

namespace anychip {

// A program that cannot be run further: what is wrong, and the instruction that says where.
struct MachineError : std::runtime_error {
  int32_t instruction;
  MachineError(int32_t at, const std::string& what) : std::runtime_error(what), instruction(at) {}
};

// A memref: `offset` and strides count elements (bits for i1) from byte `base` of the buffer.
struct View {
  int32_t buffer = -1;
  Type type = Type::i8;
  int32_t rank = 0;
  int64_t base = 0, offset = 0;
  int64_t size[kMaxDims] = {}, stride[kMaxDims] = {};

  bool empty() const {
    for (int d = 0; d < rank; ++d)
      if (size[d] <= 0) return true;
    return false;
  }
  int64_t elements() const {
    int64_t n = 1;
    for (int d = 0; d < rank; ++d) n *= size[d] > 0 ? size[d] : 0;
    return n;
  }
  void make_contiguous() {
    int64_t step = 1;
    for (int d = rank - 1; d >= 0; --d) stride[d] = step, step *= size[d];
  }
};

// A buffer's bytes on the host. `shift`: byte 0 of the view's address space lies `shift` bytes before `data`.
struct Memory {
  uint8_t* data = nullptr;
  int64_t bytes = 0, shift = 0;
  int64_t used = 0;  // on-chip: highest byte that a pointer reached
};

// An operand of a tile op: a scalar, or a tile of memory at `data` (for i1: bit `bit` of `data`).
struct Operand {
  bool scalar = false, write = false, scratch = false, outside = false;
  View view;             // scalar: only `type` is set
  uint8_t* data = nullptr;
  int64_t bit = 0;
  union { int64_t i; double f; } value = {0};  // scalar
  Access access{};                             // what it covers
  View home;                                   // outside: the view in its buffer, while `view` is a staged copy's
  Type type() const { return view.type; }
};

struct TileOp {
  TileOpCode code;
  int32_t instruction = -1;
  int inputs = 0, outputs = 0, scratch = 0;
  std::vector<Operand> operand;  // inputs, outputs, scratch
  const int32_t* attribute = nullptr;
  int attributes = 0;
  Operand& in(int i = 0) { return operand[i]; }
  Operand& out(int i = 0) { return operand[inputs + i]; }
  [[noreturn]] void fail(const std::string& what) const { throw MachineError(instruction, what); }
};

// The bytes that a view covers, for observers and for the bounds check.
inline Access describe(const View& v, Space space, int64_t shift, bool write, bool scratch = false) {
  Access a{};
  a.buffer = v.buffer, a.space = space, a.write = write, a.scratch = scratch;
  const bool bit = v.type == Type::bit;
  const int64_t unit = bit ? 1 : bytes_of(v.type);  // for bits everything counts bits until the end
  int64_t first = (bit ? (v.base - shift) * 8 : v.base - shift) + v.offset * unit, run = unit;
  int64_t count[kMaxDims], stride[kMaxDims];
  int n = 0;
  for (int d = v.rank - 1; d >= 0; --d) {
    const int64_t step = v.stride[d] * unit;
    if (v.size[d] == 1 || step == 0) continue;
    if (n == 0 && step == run) run *= v.size[d];
    else if (n && step == stride[n - 1] * count[n - 1]) count[n - 1] *= v.size[d];
    else count[n] = v.size[d], stride[n++] = step;
  }
  if (bit) {
    bool whole = true;
    for (int d = 0; d < n; ++d) whole = whole && stride[d] % 8 == 0;
    if (!whole) {
      for (int d = 0; d < n; ++d) run += (count[d] - 1) * stride[d];
      n = 0;
    }
    for (int d = 0; d < n; ++d) stride[d] /= 8;
    const int64_t last = first + run - 1;
    auto byte = [](int64_t b) { return b >= 0 ? b / 8 : -((-b + 7) / 8); };
    first = byte(first), run = byte(last) - first + 1;
  }
  a.first = first, a.run = run, a.dims = n;
  for (int d = 0; d < n; ++d) a.count[d] = count[n - 1 - d], a.stride[d] = stride[n - 1 - d];
  return a;
}

void run_tile_op(TileOp& op);  // numerics of every tile op but the cube's

// Cube ops (cube.cpp).
struct MatmulShape { int64_t m, k, n; bool transpose_a, transpose_b, fresh, round_hf32; };
void matmul(TileOp& op, const MatmulShape& shape);
void run_fixpipe(TileOp& op);

}  // namespace anychip
