// What the machine tells its observers: one Step for each executed instruction that uses a pipe, touches memory or
// synchronises. Race checker, bounds checker and clock are observers; the machine runs without any of them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <tuple>
#include <vector>

namespace anychip {

enum class Space : uint8_t { gm, ub, l1, l0a, l0b, l0c };
enum class Pipe : uint8_t { S, V, M, MTE1, MTE2, MTE3, FIX, ALL };  // ALL: only as the pipe of a barrier
constexpr int kPipes = 7;
constexpr int kCores = 3;  // 0: AIC, 1: AIV 0, 2: AIV 1, of one AI core ("block"); a vector-only kernel has core 1 alone
constexpr int kMaxDims = 6;
constexpr int kMaxAccesses = 8;

// One buffer of the run: `Launch::buffers` lists them all, in the order of their ids.
struct Buffer {
  Space space;
  int8_t core;     // owner; -1 for global memory
  int32_t argument;  // global memory: index in the kernel's HIVM argument list; else -1
  int64_t bytes;
};

// A set of bytes: `run` contiguous bytes from byte `first` of `buffer`, repeated over `dims` dimensions with byte
// strides (contiguous dimensions are merged already; the last dimension varies fastest). Global memory may lie outside
// [0, bytes): that is what out-of-bounds means. Bit-packed i1 tiles come as the whole bytes that they touch.
struct Access {
  int32_t buffer;
  Space space;
  bool write;
  bool scratch;  // a temporary buffer that the instruction may write and read
  bool outside;  // some bytes lie outside the buffer (already reported by the machine)
  int32_t dims;
  int64_t first, run;
  int64_t count[kMaxDims], stride[kMaxDims];
  // The lowest byte, and the highest byte + 1.
  int64_t low() const {
    int64_t at = first;
    for (int d = 0; d < dims; ++d) at += stride[d] < 0 ? stride[d] * (count[d] - 1) : 0;
    return at;
  }
  int64_t high() const {
    int64_t at = first + run;
    for (int d = 0; d < dims; ++d) at += stride[d] > 0 ? stride[d] * (count[d] - 1) : 0;
    return at;
  }
  // Number of separate runs.
  int64_t runs() const {
    int64_t n = 1;
    for (int d = 0; d < dims; ++d) n *= count[d];
    return n;
  }
};

enum class StepKind : uint8_t {
  vector,     // a vector tile op: pipe V
  dma,        // global memory <-> UB / L1 (pipe MTE2, MTE3), or UB -> UB / L1 copies
  load_l0,    // L1 -> L0A or L0B (pipe MTE1), part of a matrix product
  mad,        // the cube: L0A x L0B -> L0C (pipe M)
  fixpipe,    // L0C -> global memory, L1 or UB (pipe FIX)
  scalar,     // a load or store of one element by the scalar unit (pipe S)
  set_flag,   // `pipe` sets event `event` for `peer`
  wait_flag,  // `peer` waits for event `event` that `pipe` sets
  barrier,    // `pipe` (or ALL) drains
  sync_set,   // cross-core: `pipe` of this core sets flag `event`: AIC -> both AIV, AIV -> AIC (`mode` 2)
  sync_wait,  // cross-core: `peer` of this core waits for flag `event`; emitted when the wait is satisfied
};

// The pipe that executes a wait is `peer`; the pipe that executes everything else is `pipe`.
struct Step {
  int32_t instruction;  // index in the program: name, source line
  int16_t op;           // tile op: index in the machine's table of names (`machine_op_names`)
  StepKind kind;
  int8_t core;
  Pipe pipe, peer;
  int16_t event;
  // What the clock needs. scalar_ops: scalar instructions that this core executed since its last step.
  int32_t scalar_ops;
  int32_t accesses;             // number of valid entries in `access`
  Access access[kMaxAccesses];  // reads first, then writes, then scratch
  int32_t element_bytes;        // of the widest tile operand (1 for bits)
  bool scalar_operand;          // a vector op with a scalar operand
  bool atomic;                  // a store that combines with what lies in global memory
  // Vector ops: the widest operand as `rows` contiguous rows of `row_bytes`. DMA and fixpipe: the global-memory side.
  int64_t rows, row_bytes;
  int64_t elements;       // of the output (of the input for reductions)
  int32_t m, k, n;        // mad, load_l0: the real sizes (m x k, k x n)
  bool chained;           // mad: accumulates onto the previous mad of the same macro (ordered by the hardware)
  bool fused;             // 950: a register op inside a vector function (the hardware orders those among themselves)
};

// What is known before the first step.
struct Launch {
  std::vector<Buffer> buffers;  // index = Access::buffer
  bool has_core[kCores];
  int64_t grid;                 // number of blocks of the whole launch
};

// Blocks run one after another; within a block the cores interleave at cross-core waits.
struct Observer {
  virtual ~Observer() = default;
  virtual void begin(const Launch&) {}
  virtual void begin_block(int64_t /*block*/) {}
  virtual void step(const Step&) = 0;
  virtual void end_block(int64_t /*block*/) {}
  virtual void end() {}
};

// Order known to findings.py by these numbers.
enum class FindingKind : int32_t {
  outside_read = 0,    // reads outside a global-memory argument (or outside an on-chip memory)
  outside_write = 1,
  outside_view = 2,    // a subview that reaches outside the view it is cut from
  wait_without_set = 3,  // a wait for an event that nothing has set: the core hangs
  flag_overrun = 4,    // an event set again before anything waited for it
  flag_left = 5,       // an event still set at the end of the kernel
  deadlock = 6,        // cores wait for each other's flags for ever
  uninitialised = 7,   // reads on-chip memory that nothing wrote
  read_after_write = 8,  // races: the order of two accesses is not fixed
  write_after_read = 9,
  write_after_write = 10,
  block_race = 11,     // two blocks write the same bytes, or one reads what another writes
  sync_left = 12,      // a cross-core flag still set at the end of the kernel
};

// One finding; further ones of the same kind, instructions and buffer only count.
struct Finding {
  FindingKind kind;
  int32_t instruction, other_instruction;  // other: -1 where there is none
  int32_t core, pipe, other_core, other_pipe;
  int32_t buffer, event;                   // -1 where there is none
  int64_t block, low, high;                // bytes [low, high) of the buffer
  int64_t count;
};

inline Finding finding(FindingKind kind, const Step& step, int64_t block) {
  return {kind, step.instruction, -1, step.core, int32_t(step.pipe), -1, -1, -1, step.event, block, 0, 0, 1};
}

class Findings {
 public:
  void report(const Finding& found) {
    auto key = std::make_tuple(int(found.kind), found.instruction, found.other_instruction, found.buffer);
    auto [place, fresh] = index_.try_emplace(key, list_.size());
    if (fresh) list_.push_back(found);
    else list_[place->second].count += found.count;
  }
  const std::vector<Finding>& list() const { return list_; }

 private:
  std::vector<Finding> list_;
  std::map<std::tuple<int, int, int, int>, std::size_t> index_;
};

}  // namespace anychip
