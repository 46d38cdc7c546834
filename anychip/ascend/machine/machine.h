// The virtual machine: one AI core (a cube core and two vector cores) that executes the blocks of a launch in turn.
#pragma once
#include <array>
#include <memory>
#include <vector>

#include "registers.h"
#include "tile.h"

namespace anychip {

union Slot {
  int64_t i;
  double f;
};

enum Argument : int32_t { kZero = -1, kLock = -2, kWorkspace = -3, kGridX = -4, kGridY = -5, kGridZ = -6 };

struct Function {
  bool cube;
  int32_t entry, slots, views, registers;
  std::vector<std::pair<int32_t, int64_t>> constants;  // register, bits
  struct Parameter { int32_t source, register_, type; };  // type: element type of a memref; -1 for a scalar
  std::vector<Parameter> parameters;
};

struct Program {
  std::vector<int32_t> code;
  std::vector<Function> functions;
  int64_t workspace_bytes = 0;  // of one block
};

// An argument of the kernel: memory (data != null or bytes == 0) or a scalar.
struct Value {
  uint8_t* data;
  int64_t bytes;
  Slot slot;
};

struct Chip {
  int64_t bytes[6];  // capacity of each Space
};

// Counts of set flags, of one core: [set pipe][wait pipe][event].
using Flags = std::array<std::array<std::array<int16_t, 16>, kPipes>, kPipes>;

class Machine;

// One core in the middle of its function: a coroutine with an explicit program counter.
class Core {
 public:
  Core(Machine& machine, int id) : machine_(machine), id_(id) {}
  void start(const Function& function, const std::vector<Value>& arguments, const int64_t grid[3], int64_t block);
  bool run();  // until it ends (true) or waits for another core (false)
  bool done() const { return done_; }
  int id() const { return id_; }
  int32_t waits_at() const { return waits_at_; }
  int waits_for() const { return waits_for_; }
  void check_flags_left();

 private:
  friend class Machine;
  Slot& x(int32_t r) { return slots_[r]; }
  View& v(int32_t r) { return views_[r]; }

  int view_code(Code code, const int32_t* p);  // number of ints of the instruction
  void pointer(const int32_t* p);
  void subview(const int32_t* p);
  void collapse(const int32_t* p);
  void expand(const int32_t* p);
  void element(Code code, const int32_t* p);

  void set_flag(const int32_t* p, bool wait);
  void set_event(int32_t instruction, int from, int to, int event);
  void wait_event(int32_t instruction, int from, int to, int event);
  void barrier(int32_t instruction, int pipe);
  bool sync(Code code, const int32_t* p);
  int tile(const int32_t* p);
  void matrix(TileOp& op);
  void matrix_steps(TileOp& op, const MatmulShape& shape, const int64_t* events);
  void fixpipe_access(TileOp& op, Step& step);
  void fixpipe_halves(TileOp& op);
  void run_bound(TileOp& op);

  int register_code(Code code, const int32_t* p);
  void register_op(const int32_t* p);
  void register_load(const int32_t* p);
  void register_store(const int32_t* p);
  int64_t mask_bits(const int32_t* p, int lane_bytes, bool write, uint8_t** data, Access& access);
  void mask_load(const int32_t* p, int lane_bytes);
  void mask_store(const int32_t* p, int lane_bytes);
  uint8_t* reach(const View& view, int32_t instruction, const int32_t* index, int rank, int64_t bytes, bool write, Access& access);
  void register_step(int32_t instruction, TileOpCode op, const Access* access);

  void bind(Operand& operand);      // finds the memory, checks its bounds
  void write_back(TileOp& op);      // of operands that reach outside their buffer
  Step step(int32_t instruction, TileOpCode op, StepKind kind, Pipe pipe);
  void add_access(Step& step, const Operand& operand);
  void add_access(Step& step, const Access& access);
  void emit(Step& step);
  void tile_step(TileOp& op);

  Machine& machine_;
  int id_;
  std::vector<Slot> slots_;
  std::vector<View> views_;
  std::vector<Register> registers_;
  TileOp op_;
  const int32_t* pc_ = nullptr;
  int64_t block_ = 0, scalar_ops_ = 0;
  Flags flags_{};
  bool done_ = true;
  int32_t waits_at_ = -1, waits_for_ = -1;
  std::vector<std::vector<uint8_t>> staged_;
};

class Machine {
 public:
  Machine(const Program& program, const Chip& chip, Findings& findings);
  void observe(Observer* observer) { observers_.push_back(observer); }
  void set(uint8_t poison, bool numerics) { poison_ = poison, numerics_ = numerics; }
  // Runs the blocks one after another; arguments' memory is read and written in place.
  void run(const std::vector<Value>& arguments, const int64_t grid[3], const std::vector<int64_t>& blocks);
  int64_t steps() const { return steps_; }
  int64_t blocks_done() const { return blocks_done_; }
  int64_t used(int core, Space space) const;

 private:
  friend class Core;
  void prepare(const std::vector<Value>& arguments);
  void run_block(int64_t block, const std::vector<Value>& arguments, const int64_t grid[3]);
  void poison();
  // The cube core's fixpipe writes to the first vector core's UB, and vector cores copy to the cube core's L1.
  int buffer_of(int core, Space space) const {
    const int owner = core == 0 && space == Space::ub ? 1 : core > 0 && space != Space::ub ? 0 : core;
    return on_chip_ + owner * 5 + int(space) - 1;
  }
  int buffer_of_argument(int i) const { return argument_buffer_[i]; }

  const Program& program_;
  Chip chip_;
  Findings& findings_;
  std::vector<Observer*> observers_;
  std::vector<Core> cores_;
  std::vector<Memory> memory_;       // by buffer id: arguments, lock, workspace, then on-chip
  std::vector<Buffer> buffers_;
  std::vector<std::vector<uint8_t>> owned_;
  std::vector<int> argument_buffer_;
  int lock_ = 0, workspace_ = 0, on_chip_ = 0;
  int64_t block_ = 0, steps_ = 0, blocks_done_ = 0;
  int64_t total_blocks_ = 0;
  uint8_t poison_ = 0xff;
  bool numerics_ = true;
  bool mixed_ = false;
  std::array<std::array<int32_t, 64>, 2> to_vector_{}, to_cube_{};  // cross-core flags, for and from each vector core
  std::array<int32_t, 64> last_set_{};
};

}  // namespace anychip
