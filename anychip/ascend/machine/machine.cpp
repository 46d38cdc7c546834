// Blocks in turn, and within a block its cores in turn: each runs until it ends or waits for another.
#include "machine.h"

namespace anychip {

constexpr int64_t kLockBytes = 1024;

Machine::Machine(const Program& program, const Chip& chip, Findings& findings)
    : program_(program), chip_(chip), findings_(findings), mixed_(program.functions.size() > 1) {}

// Buffers: the memory arguments, the lock, the workspace, then UB, L1, L0A, L0B, L0C of each core.
void Machine::prepare(const std::vector<Value>& arguments) {
  buffers_.clear(), memory_.clear(), owned_.clear(), argument_buffer_.clear();
  auto add = [&](Space space, int core, int argument, uint8_t* data, int64_t bytes) {
    buffers_.push_back({space, int8_t(core), argument, bytes});
    memory_.push_back({data, bytes, 0, 0});
    return int(memory_.size()) - 1;
  };
  for (size_t i = 0; i < arguments.size(); ++i)
    argument_buffer_.push_back(arguments[i].bytes >= 0 ? add(Space::gm, -1, int(i), arguments[i].data, arguments[i].bytes) : -1);
  auto own = [&](int64_t bytes) {
    owned_.emplace_back(size_t(bytes), uint8_t(0));
    return owned_.back().data();
  };
  lock_ = add(Space::gm, -1, kLock, own(kLockBytes), kLockBytes);
  const int64_t workspace = std::max<int64_t>(program_.workspace_bytes, 32);
  workspace_ = add(Space::gm, -1, kWorkspace, own(workspace), workspace);
  on_chip_ = int(memory_.size());
  bool has[kCores] = {};
  for (const Function& f : program_.functions) {
    if (f.cube) has[0] = true;
    else has[1] = true, has[2] = mixed_;
  }
  for (int core = 0; core < kCores; ++core)
    for (int space = 1; space < 6; ++space) {
      const bool own_space = (Space(space) == Space::ub) == (core > 0);  // UB is a vector core's, the rest the cube core's
      const int64_t bytes = has[core] && own_space ? chip_.bytes[space] : 0;
      add(Space(space), core, -1, bytes ? own(bytes) : nullptr, bytes);
    }
  cores_.clear();
  for (int core = 0; core < kCores; ++core) if (has[core]) cores_.emplace_back(*this, core);
  for (size_t b = size_t(on_chip_); b < memory_.size(); ++b) memory_[b].used = memory_[b].bytes;
  Launch launch{buffers_, {has[0], has[1], has[2]}, total_blocks_};
  for (Observer* o : observers_) o->begin(launch);
}

// On-chip memory and workspace hold nothing that a kernel may rely on: all ones by default, which floats read as NaN.
void Machine::poison() {
  for (size_t b = size_t(workspace_); b < memory_.size(); ++b) {
    Memory& m = memory_[b];
    const int64_t n = int(b) == workspace_ ? m.bytes : m.used;
    if (n) std::memset(m.data, poison_, size_t(n));
  }
}

int64_t Machine::used(int core, Space space) const { return memory_[size_t(buffer_of(core, space))].used; }

void Machine::run(const std::vector<Value>& arguments, const int64_t grid[3], const std::vector<int64_t>& blocks) {
  total_blocks_ = grid[0] * grid[1] * grid[2];
  prepare(arguments);
  poison();
  for (size_t b = size_t(on_chip_); b < memory_.size(); ++b) memory_[b].used = 0;
  for (int64_t block : blocks) run_block(block, arguments, grid);
  for (Observer* o : observers_) o->end();
}

void Machine::run_block(int64_t block, const std::vector<Value>& arguments, const int64_t grid[3]) {
  block_ = block;
  poison();
  to_vector_ = {}, to_cube_ = {};
  memory_[size_t(workspace_)].shift = block * memory_[size_t(workspace_)].bytes;
  for (Observer* o : observers_) o->begin_block(block);
  for (Core& core : cores_)
    for (const Function& f : program_.functions)
      if (f.cube == (core.id() == 0)) core.start(f, arguments, grid, block);
  for (bool moved = true, live = true; live;) {
    live = moved = false;
    for (Core& core : cores_) {
      if (core.done()) continue;
      const int32_t* before = core.pc_;
      const int64_t steps = steps_;
      const bool ended = core.run();
      moved = moved || ended || core.pc_ != before || steps_ != steps;
      live = live || !ended;
    }
    if (live && !moved) {
      for (Core& core : cores_)
        if (!core.done())
          findings_.report({FindingKind::deadlock, core.waits_at(), -1, core.id(), -1, -1, -1, -1,
                            core.waits_for(), block, 0, 0, 1});
      break;
    }
  }
  for (Core& core : cores_) if (core.done()) core.check_flags_left();
  for (size_t f = 0; f < 64; ++f) {
    const int left = to_vector_[0][f] + to_vector_[1][f] + to_cube_[0][f] + to_cube_[1][f];
    const bool cube = to_cube_[0][f] + to_cube_[1][f] > 0;
    if (left && mixed_) findings_.report({FindingKind::sync_left, last_set_[f], -1, cube ? 1 : 0, -1, -1, -1, -1, int32_t(f), block, 0, 0, 1});
  }
  for (Observer* o : observers_) o->end_block(block);
  ++blocks_done_;
}

}  // namespace anychip
