// The checker: races within a core and between blocks, and reads of on-chip memory that nothing has written. It reports
// what is certain, and keeps as `suspects` the reads that matter only if their garbage reaches an output (lanes beyond
// a mask are computed on garbage and thrown away, which is right). Flags and bounds the machine checks itself.
#pragma once
#include <algorithm>
#include <memory>
#include <unordered_set>
#include <vector>

#include "order.h"
#include "shadow.h"
#include "step.h"

namespace anychip {

class Races : public Observer {
 public:
  Races(Findings& findings, bool vector_in_order) : findings_(findings), order_(vector_in_order) {}

  void begin(const Launch& launch) override {
    buffers_ = launch.buffers;
    many_blocks_ = launch.grid > 1;
    for (const Buffer& buffer : buffers_) {
      const bool global = buffer.space == Space::gm;
      shadows_.emplace_back(buffer.bytes, global ? 512 : 32, !global);
      written_.emplace_back(global ? nullptr : new Written(buffer.bytes));
    }
    between_.resize(buffers_.size());
  }

  void begin_block(int64_t block) override {
    block_ = block;
    order_.begin_block();
    for (auto& written : written_)
      if (written) written->clear();
  }

  void step(const Step& step) override {
    switch (step.kind) {
      case StepKind::set_flag: return order_.set_flag(step);
      case StepKind::wait_flag: return order_.wait_flag(step);
      case StepKind::barrier: return order_.barrier(step);
      case StepKind::sync_set: return order_.sync_set(step);
      case StepKind::sync_wait: return order_.sync_wait(step);
      default: return memory(step);
    }
  }

  // Instructions that one block at a time executes, under a lock: they do not race with each other.
  void lock(const int32_t* instructions, int64_t count) { locked_.insert(instructions, instructions + count); }

  // Reads of bytes that nothing has written, by instructions whose result may not depend on them.
  const Findings& suspects() const { return suspects_; }

 private:
  struct Issued {
    int32_t instruction;
    int8_t core;
    Pipe pipe;
    bool atomic;
  };

  void memory(const Step& step) {
    const Stamp stamp = order_.issue(step);
    const int me = agent(step.core, step.pipe);
    issued_.resize(stamp + 1);
    issued_[stamp] = {step.instruction, step.core, step.pipe, step.atomic || locked_.count(step.instruction) > 0};
    for (int i = 0; i < step.accesses; ++i) check(step, step.access[i], me);
    for (int i = 0; i < step.accesses; ++i) record(step, step.access[i], me, stamp);
  }

  void check(const Step& step, const Access& access, int me) {
    Shadow& shadow = shadows_[access.buffer];
    shadow.fit(access);
    const Shadow::Conflict conflict = shadow.conflict(access, order_.clock(me), me);
    if (conflict.agent >= 0 && conflict.stamp > order_.base()) {
      const FindingKind kind = !access.write   ? FindingKind::read_after_write
                               : conflict.write ? FindingKind::write_after_write
                                                : FindingKind::write_after_read;
      report(kind, step, access, conflict.stamp, conflict.unit * shadow.unit());
    }
    if (access.write || access.scratch || !written_[access.buffer]) return;
    const int64_t hole = written_[access.buffer]->missing(access);
    if (hole < 0) return;
    // The scalar unit branches and addresses with what it reads, and a store brings it to global memory.
    Finding found = finding(FindingKind::uninitialised, step, block_);
    found.buffer = access.buffer;
    found.low = hole;
    found.high = hole + 1;
    (step.kind == StepKind::scalar || to_argument(step) ? findings_ : suspects_).report(found);
  }

  void record(const Step& step, const Access& access, int me, Stamp stamp) {
    shadows_[access.buffer].record(access, me, stamp);
    if (written_[access.buffer]) {
      if (access.write) written_[access.buffer]->record(access);
    } else if (many_blocks_ && buffers_[access.buffer].argument >= 0) {  // each block has a workspace of its own
      const Stamp other = between_[access.buffer].visit(access, shadows_[access.buffer], stamp, order_.base(),
                                                        issued_[stamp].atomic, [&](Stamp s) { return issued_[s].atomic; });
      if (other) report(FindingKind::block_race, step, access, other, std::max<int64_t>(access.low(), 0));
    }
  }

  void report(FindingKind kind, const Step& step, const Access& access, Stamp other, int64_t low) {
    const Issued& earlier = issued_[other];
    findings_.report({kind, step.instruction, earlier.instruction, step.core, int32_t(step.pipe), earlier.core,
                      int32_t(earlier.pipe), access.buffer, -1, block_, low, access.high(), 1});
  }

  // Whether it writes an argument of the kernel (a workspace holds garbage that may never be used).
  bool to_argument(const Step& step) const {
    return std::any_of(step.access, step.access + step.accesses, [&](const Access& access) {
      return access.write && access.space == Space::gm && buffers_[access.buffer].argument >= 0;
    });
  }

  Findings& findings_;
  Findings suspects_;
  Order order_;
  std::vector<Buffer> buffers_;
  std::vector<Shadow> shadows_;
  std::vector<BlockShadow> between_;
  std::vector<std::unique_ptr<Written>> written_;
  std::vector<Issued> issued_{1};  // what the instruction of each number was
  std::unordered_set<int32_t> locked_;
  bool many_blocks_ = false;
  int64_t block_ = 0;
};

}  // namespace anychip
