// What an instruction costs, from the rates of a chip (ascend/rates/*.toml): cycles on its pipe, and cycles until its
// result can be used. Everything is a plain function of one recorded instruction, so that a run is timed again at
// other rates without running it again.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "opcodes.h"
#include "step.h"

namespace anychip {

// The numbers of a chip, in this order; Python reads the names from the library. Cycles, bytes, bytes a cycle.
#define ANYCHIP_RATES(X)                                                                                              \
  X(scalar_op) X(scalar_memory) X(scalar_miss) X(issue) X(flag) X(flag_latency) X(barrier) X(sync_latency)            \
  X(block_start) X(dma_issue) X(row) X(gm_read_latency) X(gm_write_latency) X(move_latency)                     \
  X(gm_ub) X(gm_l1) X(ub_gm) X(l1_gm) X(l0c_gm) X(ub_ub) X(ub_l1) X(l0c_l1) X(l0c_ub) X(l1_l0a) X(l1_l0b) X(l1_fill)  \
  X(atomic_factor) X(l0_latency) X(mad_head) X(mad_latency) X(mad_fp32) X(fixpipe_latency)                            \
  X(repeat_bytes) X(repeat_limit) X(count_mode) X(reduce_level) X(reduce_row) X(fused_op) X(fused_start)              \
  X(read_slowdown) X(write_slowdown)
#define ANYCHIP_ENUM(name) name,
enum class Rate : int32_t { ANYCHIP_RATES(ANYCHIP_ENUM) count };
#undef ANYCHIP_ENUM

// A vector op: cycles before the first repeat when the pipe was idle, cycles for each repeat (with tensor operands
// only, and with a scalar operand), cycles from the last repeat to the result.
struct OpRate {
  double head, repeat, scalar_repeat, tail;
};

struct Rates {
  double value[int(Rate::count)];
  OpRate op[int(TileOpCode::count)];
  double operator[](Rate rate) const { return value[int(rate)]; }
};

enum class Path : uint8_t { none, gm_ub, gm_l1, ub_gm, l1_gm, l0c_gm, ub_ub, ub_l1, l0c_l1, l0c_ub, l1_l0a, l1_l0b, l1_fill };

// One recorded instruction.
struct Timed {
  int32_t instruction, scalar_ops;
  int16_t op, event;
  StepKind kind;
  Pipe pipe, peer;
  Path path;
  int8_t core;
  uint8_t element_bytes;
  bool scalar_operand, fused, atomic, miss, along_rows;  // along_rows: a reduction of the last dimension
  int32_t rows, row_bytes, outputs;  // outputs: elements that a reduction leaves
  int32_t m, k, n;
};

inline Rate rate_of(Path path) { return Rate(int(Rate::gm_ub) + int(path) - 1); }

inline bool reads_global(Path path) { return path == Path::gm_ub || path == Path::gm_l1; }
inline bool writes_global(Path path) { return path == Path::ub_gm || path == Path::l1_gm || path == Path::l0c_gm; }

struct Cost {
  double busy, latency;
};

// A transfer of `rows` rows: each costs `row` cycles more than its bytes do.
inline Cost transfer_cost(const Timed& t, const Rates& r) {
  const bool in = reads_global(t.path), out = writes_global(t.path);
  double cycles = double(t.rows) * ((in || out ? r[Rate::row] : 0) + t.row_bytes / r[rate_of(t.path)]);
  if (in) cycles *= r[Rate::read_slowdown];
  if (out) cycles *= r[Rate::write_slowdown] * (t.atomic ? r[Rate::atomic_factor] : 1);
  const double latency = t.path == Path::l0c_gm || t.path == Path::l0c_l1 || t.path == Path::l0c_ub ? r[Rate::fixpipe_latency]
                         : in                                                                      ? r[Rate::gm_read_latency]
                         : out                                                                     ? r[Rate::gm_write_latency]
                                                                                                   : r[Rate::move_latency];
  return {r[Rate::dma_issue] + cycles, latency};
}

inline Cost vector_cost(const Timed& t, const Rates& r, bool idle) {
  if (t.fused) return {r[Rate::fused_op], r[Rate::fused_start]};
  const OpRate& op = r.op[t.op];
  const double bytes = double(t.rows) * t.row_bytes, unit = r[Rate::repeat_bytes];
  if (bytes == 0) return {1, 0};
  // Rows that do not fill 32-byte blocks take an instruction each.
  const bool by_row = t.rows > 1 && t.row_bytes % 32 != 0;
  const double repeats = by_row ? t.rows * std::ceil(t.row_bytes / unit) : std::ceil(bytes / unit);
  const double instructions = by_row ? t.rows : std::ceil(repeats / r[Rate::repeat_limit]);
  double busy = repeats * (t.scalar_operand ? op.scalar_repeat : op.repeat);
  busy += (instructions - 1) * r[Rate::issue] + (std::fmod(bytes, unit) != 0 ? r[Rate::count_mode] : 0);
  if (TileOpCode(t.op) == TileOpCode::vreduce) {
    // A tree of halvings down to one repeat for each result, then one instruction that adds within the repeat.
    const double row = bytes / std::max(1, t.outputs), levels = std::log2(std::max(1.0, row / unit));
    if (t.along_rows || t.outputs == 1) busy += levels * r[Rate::reduce_level] + t.outputs * r[Rate::reduce_row];
  }
  return {busy + (idle ? op.head : 0), op.tail};
}

// Cycles of the cube for an m x k by k x n product: 16 x (32 bytes of k) x 16 a cycle.
inline Cost mad_cost(const Timed& t, const Rates& r) {
  const auto up = [](double n, double unit) { return std::ceil(n / unit); };
  const double bytes = std::max<int>(1, t.element_bytes);
  const double cycles = up(t.m, 16) * up(t.k * bytes, 32) * up(t.n, 16) * (t.element_bytes == 4 ? r[Rate::mad_fp32] : 1);
  return {r[Rate::mad_head] + cycles, r[Rate::mad_latency]};
}

// `idle`: whether the pipe had nothing to do when this instruction came.
inline Cost cost_of(const Timed& t, const Rates& r, bool idle) {
  switch (t.kind) {
    case StepKind::vector: return t.path == Path::l1_fill ? transfer_cost(t, r) : vector_cost(t, r, idle);
    case StepKind::dma:
    case StepKind::fixpipe: return transfer_cost(t, r);
    case StepKind::load_l0: return {double(t.rows) * t.row_bytes / r[rate_of(t.path)], r[Rate::l0_latency]};
    case StepKind::mad: return mad_cost(t, r);
    case StepKind::scalar: return {t.miss ? r[Rate::scalar_miss] : r[Rate::scalar_memory], 0};
    default: return {0, 0};
  }
}

}  // namespace anychip
