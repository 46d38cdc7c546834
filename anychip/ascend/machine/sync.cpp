// Flags between pipes, barriers, and flags between the cores of a block.
#include "machine.h"

namespace anychip {

void Core::set_flag(const int32_t* p, bool wait) {
  const int event = p[4] >= 0 ? p[4] : int(x(p[5]).i);
  if (event < 0 || event > 15) throw MachineError(p[1], "event " + std::to_string(event) + " does not exist (0 to 15)");
  if (wait) wait_event(p[1], p[2], p[3], event);
  else set_event(p[1], p[2], p[3], event);
}

void Core::set_event(int32_t instruction, int from, int to, int event) {
  int16_t& count = flags_[size_t(from)][size_t(to)][size_t(event)];
  Step s = step(instruction, TileOpCode::set_flag, StepKind::set_flag, Pipe(from));
  s.peer = Pipe(to), s.event = int16_t(event);
  if (count > 0) {
    Finding f = finding(FindingKind::flag_overrun, s, block_);
    f.other_pipe = to;
    machine_.findings_.report(f);
  } else {
    ++count;
  }
  if (!machine_.observers_.empty()) emit(s);
}

// A wait that nothing has set would hang the core: it is reported, and passes.
void Core::wait_event(int32_t instruction, int from, int to, int event) {
  int16_t& count = flags_[size_t(from)][size_t(to)][size_t(event)];
  Step s = step(instruction, TileOpCode::wait_flag, StepKind::wait_flag, Pipe(from));
  s.peer = Pipe(to), s.event = int16_t(event);
  if (count == 0) {
    Finding f = finding(FindingKind::wait_without_set, s, block_);
    f.other_pipe = to;
    machine_.findings_.report(f);
    return;
  }
  --count;
  if (!machine_.observers_.empty()) emit(s);
}

void Core::barrier(int32_t instruction, int pipe) {
  if (machine_.observers_.empty()) return;
  Step s = step(instruction, TileOpCode::pipe_barrier, StepKind::barrier, Pipe(pipe));
  emit(s);
}

// Flags across cores: AIC -> both vector cores; vector cores -> AIC, which waits for both.
bool Core::sync(Code code, const int32_t* p) {
  const int flag = p[3] >= 0 ? p[3] : int(x(p[4]).i);
  if (flag < 0 || flag > 63) throw MachineError(p[1], "cross-core flag " + std::to_string(flag) + " does not exist");
  const size_t f = size_t(flag);
  if (code == Code::sync_set) {
    machine_.last_set_[f] = p[1];
    if (id_ == 0) ++machine_.to_vector_[0][f], ++machine_.to_vector_[1][f];
    else ++machine_.to_cube_[size_t(id_ - 1)][f];
  } else if (id_ == 0) {
    auto& set = machine_.to_cube_;
    if (!set[0][f] || !set[1][f]) { waits_at_ = p[1], waits_for_ = flag; return false; }
    --set[0][f], --set[1][f];
  } else {
    auto& set = machine_.to_vector_[size_t(id_ - 1)];
    if (!set[f]) { waits_at_ = p[1], waits_for_ = flag; return false; }
    --set[f];
  }
  if (!machine_.observers_.empty()) {
    const bool set = code == Code::sync_set;
    Step s = step(p[1], set ? TileOpCode::sync_block_set : TileOpCode::sync_block_wait, set ? StepKind::sync_set : StepKind::sync_wait, Pipe(p[2]));
    s.event = int16_t(flag);
    emit(s);
  }
  return true;
}

void Core::check_flags_left() {
  for (int from = 0; from < kPipes; ++from)
    for (int to = 0; to < kPipes; ++to)
      for (int event = 0; event < 16; ++event)
        if (flags_[size_t(from)][size_t(to)][size_t(event)])
          machine_.findings_.report({FindingKind::flag_left, -1, -1, id_, from, -1, to, -1, event, block_, 0, 0, 1});
}

}  // namespace anychip
