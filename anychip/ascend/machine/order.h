// Happens-before within one AI core: one vector clock for each agent (a pipe of a core). Flags, barriers and cross-core
// flags are its edges; two instructions of one pipe are ordered only by a barrier or a round trip through flags.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "step.h"

namespace anychip {

constexpr int kAgents = kCores * kPipes;
using Stamp = uint32_t;  // instructions are numbered through the whole run, so that shadows need no clearing

inline int agent(int core, Pipe pipe) { return core * kPipes + int(pipe); }

// For each agent, the newest of its instructions that is known to be complete.
struct VectorClock {
  std::array<Stamp, 24> at{};  // kAgents, padded so that a join is three vector instructions
  void join(const VectorClock& other) {
    for (int i = 0; i < 24; ++i) at[i] = std::max(at[i], other.at[i]);
  }
};

class Order {
 public:
  // vector_in_order: the 950's compiler puts no barriers between the instructions of its vector pipe.
  explicit Order(bool vector_in_order) : vector_in_order_(vector_in_order) {}

  // Whatever ran before this block is complete.
  void begin_block() {
    base_ = next_;
    for (auto& clock : clock_) clock.at.fill(base_);
    latest_.fill(base_);
    waited_.fill(0);
    seen_.fill(0);
    flags_.clear();
    signals_.clear();
  }

  // Gives an instruction its number. The scalar unit dispatches in order: an instruction of another pipe starts after
  // whatever the scalar unit has waited for, but not after the scalar unit's own memory accesses.
  Stamp issue(const Step& step) {
    const int me = agent(step.core, step.pipe), scalar = agent(step.core, Pipe::S);
    if (step.pipe == Pipe::S) {
      clock_[me].at[me] = latest_[me];  // the scalar unit is in order
    } else {
      if (waited_[step.core] != seen_[me]) {
        const Stamp own = clock_[me].at[scalar];
        clock_[me].join(clock_[scalar]);
        clock_[me].at[scalar] = own;
        seen_[me] = waited_[step.core];
      }
      // The hardware orders a chain of products into one accumulator; on the 950, all work of the vector pipe.
      if (step.chained || step.fused || (vector_in_order_ && step.pipe == Pipe::V)) clock_[me].at[me] = latest_[me];
    }
    return latest_[me] = ++next_;
  }

  Stamp next() const { return next_; }
  Stamp base() const { return base_; }
  const VectorClock& clock(int me) const { return clock_[me]; }

  // The machine reports unmatched flags; here a second set changes nothing, and a wait for nothing does not come.
  void set_flag(const Step& step) {
    flags_.try_emplace(key(step), reached(step.core, step.pipe));
  }

  void wait_flag(const Step& step) {
    auto found = flags_.find(key(step));
    if (found == flags_.end()) return;
    arrive(step.core, step.peer, found->second);
    flags_.erase(found);
  }

  void barrier(const Step& step) {
    if (step.pipe != Pipe::ALL) {
      const int me = agent(step.core, step.pipe);
      clock_[me].at[me] = latest_[me];
      return;
    }
    VectorClock all;
    for (int p = 0; p < kPipes; ++p) all.join(reached(step.core, Pipe(p)));
    for (int p = 0; p < kPipes; ++p) clock_[agent(step.core, Pipe(p))] = all;
    ++waited_[step.core];
  }

  void sync_set(const Step& step) {
    signals_[step.core * 1024 + step.event].sent.push_back(reached(step.core, step.pipe));
  }

  // The cube core waits for both vector cores, a vector core for the cube core.
  void sync_wait(const Step& step) {
    const int first = step.core == 0 ? 1 : 0, last = step.core == 0 ? 2 : 0;
    for (int from = first; from <= last; ++from) {
      Signal& signal = signals_[from * 1024 + step.event];
      std::size_t& at = signal.taken[step.core];
      if (at < signal.sent.size()) arrive(step.core, step.peer, signal.sent[at++]);
    }
  }

 private:
  struct Signal {
    std::vector<VectorClock> sent;
    std::array<std::size_t, kCores> taken{};
  };

  static uint32_t key(const Step& step) {
    return uint32_t(step.core) << 22 | uint32_t(step.pipe) << 19 | uint32_t(step.peer) << 16 | uint16_t(step.event);
  }

  // What is complete once every instruction that this pipe has been given is complete.
  VectorClock reached(int core, Pipe pipe) const {
    const int me = agent(core, pipe), scalar = agent(core, Pipe::S);
    VectorClock clock = clock_[me];
    if (me != scalar && waited_[core] != seen_[me]) {  // dispatched by the scalar unit, as in `issue`
      const Stamp own = clock.at[scalar];
      clock.join(clock_[scalar]);
      clock.at[scalar] = own;
    }
    clock.at[me] = latest_[me];
    return clock;
  }

  void arrive(int core, Pipe pipe, const VectorClock& clock) {
    clock_[agent(core, pipe)].join(clock);
    if (pipe == Pipe::S) ++waited_[core];
  }

  bool vector_in_order_;
  Stamp next_ = 0, base_ = 0;
  std::array<VectorClock, kAgents> clock_{};
  std::array<Stamp, kAgents> latest_{};   // the newest instruction of each agent
  std::array<uint32_t, kCores> waited_{};  // how often the scalar unit of a core has waited
  std::array<uint32_t, kAgents> seen_{};   // ... when the agent last took over the scalar unit's clock
  std::unordered_map<uint32_t, VectorClock> flags_;  // those that are set
  std::unordered_map<int, Signal> signals_;
};

}  // namespace anychip
