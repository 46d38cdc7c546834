// The clock: records what a block executes, and works out when each instruction runs. Pipes of a core run at the same
// time; each takes its instructions in order. The scalar unit dispatches; flags, barriers and cross-core flags hold
// pipes back. Of every moment the clock knows what it waited for, back to the start: that is the bound of a kernel.
#pragma once
#include <array>
#include <deque>
#include <unordered_map>
#include <vector>

#include "costs.h"
#include "step.h"

namespace anychip {

enum class Cause : uint8_t { cube, vector, memory, move, scalar, sync };
constexpr int kCauses = 6;

inline Cause cause_of(const Timed& t) {
  switch (t.pipe) {
    case Pipe::M: return Cause::cube;
    case Pipe::V: return Cause::vector;
    case Pipe::S: return Cause::scalar;
    default: return reads_global(t.path) || writes_global(t.path) ? Cause::memory : Cause::move;
  }
}

// A time, in cycles, and how many of its cycles each cause took on the way there.
struct Moment {
  double at = 0;
  std::array<double, kCauses> by{};
  void add(double cycles, Cause cause) {
    at += cycles;
    by[int(cause)] += cycles;
  }
};
inline const Moment& later(const Moment& a, const Moment& b) { return b.at > a.at ? b : a; }

struct Timeline {
  double end = 0;
  std::array<double, kCauses> by{};
  double busy[kCores][kPipes] = {};
  double core_end[kCores] = {};
};

class Clock {
 public:
  explicit Clock(const Rates& rates) : r_(rates) {}

  // Times one block. `spans`, where not null, gets start and end of each instruction (two numbers each).
  Timeline run(const std::vector<Timed>& block, double* spans) {
    for (auto& core : cores_) core = Core();
    flags_.clear();
    signals_.clear();
    Timeline out;
    for (const Timed& t : block) {
      Core& core = cores_[t.core];
      core.free[int(Pipe::S)].add(t.scalar_ops * r_[Rate::scalar_op], Cause::scalar);
      const Span span = advance(core, t, out);
      if (spans) *spans++ = span.start, *spans++ = span.end;
    }
    Moment last;
    for (int c = 0; c < kCores; ++c) {
      Moment end;
      for (int p = 0; p < kPipes; ++p) end = later(end, later(cores_[c].free[p], cores_[c].done[p]));
      out.core_end[c] = end.at;
      last = later(last, end);
    }
    out.end = last.at;
    out.by = last.by;
    return out;
  }

 private:
  struct Core {
    Moment free[kPipes], done[kPipes];  // when the pipe can start its next instruction; when its results are there
    Moment& scalar() { return free[int(Pipe::S)]; }
  };
  struct Span {
    double start, end;
  };
  struct Signal {
    std::vector<Moment> sent;
    std::array<std::size_t, kCores> taken{};
  };

  Span advance(Core& core, const Timed& t, Timeline& out) {
    const double before = core.free[int(waits(t) ? t.peer : t.pipe == Pipe::ALL ? Pipe::S : t.pipe)].at;
    switch (t.kind) {
      case StepKind::set_flag: {
        flags_[key(t)].push_back(reached(core, t.pipe, r_[Rate::flag_latency]));
        core.scalar().add(r_[Rate::flag], Cause::scalar);
        return {before, before};
      }
      case StepKind::wait_flag: {
        auto& queue = flags_[key(t)];
        if (!queue.empty()) {
          hold(core, t.peer, queue.front());
          queue.pop_front();
        }
        if (t.peer != Pipe::S) core.scalar().add(r_[Rate::flag], Cause::scalar);
        return {before, core.free[int(t.peer)].at};
      }
      case StepKind::barrier: return {before, drain(core, t)};
      case StepKind::sync_set:
        signals_[t.core * 1024 + t.event].sent.push_back(reached(core, t.pipe, r_[Rate::sync_latency]));
        core.scalar().add(r_[Rate::flag], Cause::scalar);
        return {before, before};
      case StepKind::sync_wait: return {before, meet(core, t)};
      default: return execute(core, t, out);
    }
  }

  static bool waits(const Timed& t) { return t.kind == StepKind::wait_flag || t.kind == StepKind::sync_wait; }
  static uint32_t key(const Timed& t) {
    return uint32_t(t.core) << 22 | uint32_t(t.pipe) << 19 | uint32_t(t.peer) << 16 | uint16_t(t.event);
  }

  Span execute(Core& core, const Timed& t, Timeline& out) {
    Moment& free = core.free[int(t.pipe)];
    const bool idle = t.pipe != Pipe::S && core.scalar().at > free.at;
    Moment now = later(free, core.scalar());
    const double start = now.at;
    const Cost cost = cost_of(t, r_, idle);
    now.add(cost.busy, cause_of(t));
    out.busy[t.core][int(t.pipe)] += cost.busy;
    free = now;
    now.add(cost.latency, cause_of(t));
    core.done[int(t.pipe)] = later(core.done[int(t.pipe)], now);
    if (t.pipe != Pipe::S) core.scalar().add(r_[Rate::issue], Cause::scalar);
    return {start, free.at};
  }

  // When everything that the pipe has been given is complete.
  Moment reached(Core& core, Pipe pipe, double latency) {
    Moment moment = later(later(core.free[int(pipe)], core.done[int(pipe)]), core.scalar());
    moment.add(latency, Cause::sync);
    return moment;
  }

  void hold(Core& core, Pipe pipe, const Moment& moment) { core.free[int(pipe)] = later(core.free[int(pipe)], moment); }

  double drain(Core& core, const Timed& t) {
    if (t.pipe != Pipe::ALL) {
      Moment& free = core.free[int(t.pipe)];
      free = later(free, core.done[int(t.pipe)]);
      free.add(r_[Rate::barrier], Cause::sync);
      core.scalar().add(r_[Rate::flag], Cause::scalar);
      return free.at;
    }
    Moment all;
    for (int p = 0; p < kPipes; ++p) all = later(all, later(core.free[p], core.done[p]));
    all.add(r_[Rate::barrier], Cause::sync);
    for (Moment& free : core.free) free = all;
    return all.at;
  }

  double meet(Core& core, const Timed& t) {
    const int first = t.core == 0 ? 1 : 0, last = t.core == 0 ? 2 : 0;
    for (int from = first; from <= last; ++from) {
      Signal& signal = signals_[from * 1024 + t.event];
      std::size_t& at = signal.taken[t.core];
      if (at < signal.sent.size()) hold(core, t.peer, signal.sent[at++]);
    }
    return core.free[int(t.peer)].at;
  }

  const Rates& r_;
  Core cores_[kCores];
  std::unordered_map<uint32_t, std::deque<Moment>> flags_;
  std::unordered_map<int, Signal> signals_;
};

}  // namespace anychip
