// Records what the clock and the cache model need of each executed instruction, block by block.
#pragma once
#include <cstdint>
#include <vector>

#include "costs.h"
#include "step.h"

namespace anychip {

// A use of one sector of global memory, for the cache model.
struct Touch {
  uint32_t event;   // index among the block's recorded instructions
  uint32_t sector;  // number of the sector, unique through all buffers of the run
  bool write;
};

struct Recorded {
  int64_t block = 0;
  std::vector<Timed> events;
  std::vector<Touch> touches;
  int64_t read_bytes = 0, written_bytes = 0;  // of global memory
};

class Recorder : public Observer {
 public:
  static constexpr int64_t kSector = 512;  // the preferred granule of a transfer on 910B
  static constexpr int64_t kLine = 64, kLines = 256;

  // Of the sectors, one in `sampled` (a power of two) is followed.
  explicit Recorder(int64_t sampled) : mask_(uint32_t(sampled - 1)) {}

  void begin(const Launch& launch) override {
    first_sector_.assign(1, 0);
    for (const Buffer& buffer : launch.buffers)
      first_sector_.push_back(first_sector_.back() + (buffer.space == Space::gm ? buffer.bytes / kSector + 2 : 0));
    bytes_.assign(launch.buffers.size(), 0);
    for (std::size_t i = 0; i < launch.buffers.size(); ++i)
      if (launch.buffers[i].space == Space::gm) bytes_[i] = launch.buffers[i].bytes;
  }

  void begin_block(int64_t block) override {
    blocks_.emplace_back();
    blocks_.back().block = block;
    for (auto& lines : lines_) lines.assign(kLines, -1);
  }

  void step(const Step& step) override {
    Recorded& block = blocks_.back();
    Timed t{};
    t.instruction = step.instruction;
    t.scalar_ops = step.scalar_ops;
    t.op = step.op;
    t.event = step.event;
    t.kind = step.kind;
    t.pipe = step.pipe;
    t.peer = step.peer;
    t.core = step.core;
    t.element_bytes = uint8_t(std::min<int32_t>(step.element_bytes, 255));
    t.scalar_operand = step.scalar_operand;
    t.fused = step.fused;
    t.atomic = step.atomic;
    t.rows = int32_t(step.rows);
    t.row_bytes = int32_t(step.row_bytes);
    t.m = step.m;
    t.k = step.k;
    t.n = step.n;
    sides(step, t);
    for (int i = 0; i < step.accesses; ++i)
      if (step.access[i].space == Space::gm) global(step, step.access[i], block, t);
    block.events.push_back(t);
  }

  const std::vector<Recorded>& blocks() const { return blocks_; }

 private:
  // Where the data comes from and goes to.
  static void sides(const Step& step, Timed& t) {
    const Access *in = nullptr, *out = nullptr;
    for (int i = 0; i < step.accesses; ++i) {
      if (step.access[i].scratch) continue;
      const Access*& side = step.access[i].write ? out : in;
      if (!side) side = &step.access[i];
    }
    if (step.kind == StepKind::load_l0) {
      t.path = TileOpCode(step.op) == TileOpCode::load_l0a ? Path::l1_l0a : Path::l1_l0b;
    } else if (out) {
      t.path = path(in ? in->space : out->space, out->space, in != nullptr);
    }
    if (out && t.element_bytes) {
      t.outputs = int32_t(out->runs() * out->run / t.element_bytes);
      t.along_rows = out->dims > 0 || t.outputs <= 1;
    }
  }

  static Path path(Space from, Space to, bool reads) {
    if (from == Space::gm) return to == Space::ub ? Path::gm_ub : to == Space::l1 ? Path::gm_l1 : Path::none;
    if (from == Space::l0c) return to == Space::gm ? Path::l0c_gm : to == Space::l1 ? Path::l0c_l1 : to == Space::ub ? Path::l0c_ub : Path::none;
    if (to == Space::gm) return from == Space::ub ? Path::ub_gm : Path::l1_gm;
    if (to == Space::l1) return reads && from == Space::ub ? Path::ub_l1 : Path::l1_fill;
    return from == Space::ub ? Path::ub_ub : Path::none;
  }

  void global(const Step& step, const Access& access, Recorded& block, Timed& t) {
    (access.write ? block.written_bytes : block.read_bytes) += access.runs() * access.run;
    const int64_t bytes = bytes_[access.buffer], base = first_sector_[access.buffer];
    if (step.kind == StepKind::scalar && !access.write) t.miss |= fetches(step.core, access);
    int64_t index[kMaxDims] = {};
    for (;;) {
      int64_t at = access.first;
      for (int d = 0; d < access.dims; ++d) at += index[d] * access.stride[d];
      const int64_t low = std::max<int64_t>(at, 0), high = std::min(at + access.run, bytes);
      for (int64_t s = low / kSector; low < high && s <= (high - 1) / kSector; ++s) {
        const uint32_t sector = uint32_t(base + s);
        if (((sector * 2654435761u) >> 16 & mask_) == 0) block.touches.push_back({uint32_t(block.events.size()), sector, access.write});
      }
      int d = access.dims - 1;
      while (d >= 0 && ++index[d] == access.count[d]) index[d--] = 0;
      if (d < 0) return;
    }
  }

  // Whether a scalar load misses the scalar unit's small cache (direct-mapped here).
  bool fetches(int core, const Access& access) {
    const int64_t line = first_sector_[access.buffer] * (kSector / kLine) + access.first / kLine;
    int64_t& held = lines_[core][std::size_t(line % kLines)];
    const bool miss = held != line;
    held = line;
    return miss;
  }

  uint32_t mask_;
  std::vector<int64_t> first_sector_, bytes_;
  std::vector<int64_t> lines_[kCores];
  std::vector<Recorded> blocks_;
};

}  // namespace anychip
