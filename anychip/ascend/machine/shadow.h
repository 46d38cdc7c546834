// What happened to the bytes of one buffer: who read and wrote each unit of it last, in this block and in other blocks.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <vector>

#include "order.h"

namespace anychip {

// Calls `visit(first unit, last unit + 1)` for the runs of an access that lie inside the buffer.
template <class Visit>
void for_units(const Access& access, int64_t bytes, int64_t unit, Visit visit) {
  int64_t run = access.run;
  int dims = access.dims;
  // Rows whose gaps are smaller than a unit touch every unit between them.
  while (dims > 0 && access.stride[dims - 1] >= 0 && access.stride[dims - 1] < run + unit) {
    run += (access.count[dims - 1] - 1) * access.stride[dims - 1];
    --dims;
  }
  const auto clip = [&](int64_t at) {
    const int64_t low = std::max<int64_t>(at, 0), high = std::min(at + run, bytes);
    if (low < high) visit(low / unit, (high - 1) / unit + 1);
  };
  if (dims == 0) return clip(access.first);
  const int inner = dims - 1;
  int64_t index[kMaxDims] = {};
  for (;;) {
    int64_t at = access.first;
    for (int d = 0; d < inner; ++d) at += index[d] * access.stride[d];
    for (int64_t i = 0; i < access.count[inner]; ++i) clip(at + i * access.stride[inner]);
    int d = inner - 1;
    while (d >= 0 && ++index[d] == access.count[d]) index[d--] = 0;
    if (d < 0) return;
  }
}

// Zeroed memory whose pages cost nothing before they are touched.
struct Free {
  void operator()(void* at) const { std::free(at); }
};
using Stamps = std::unique_ptr<Stamp[], Free>;
inline Stamps zeroed(int64_t count) {
  void* at = std::calloc(std::size_t(count), sizeof(Stamp));
  if (!at) throw std::bad_alloc();
  return Stamps(static_cast<Stamp*>(at));
}
// The same history in units `factor` times finer.
inline Stamps finer(const Stamps& coarse, int64_t factor, int64_t units) {
  Stamps fine = zeroed(units);
  for (int64_t u = 0; u < units; ++u) fine[u] = coarse[u / factor];
  return fine;
}

// The newest instruction of each agent that touched each unit. Arrays exist only for agents that touch the buffer.
class Shadow {
 public:
  Shadow(int64_t bytes, int64_t unit, bool fixed) : bytes_(bytes), unit_(unit), fixed_(fixed) {}

  int64_t unit() const { return unit_; }
  int64_t bytes() const { return bytes_; }

  // Global memory is watched at the granularity of the accesses: neighbouring elements are no conflict.
  void fit(const Access& access) {
    if (fixed_) return;
    int64_t step = std::gcd(access.first, access.run);
    for (int d = 0; d < access.dims; ++d) step = std::gcd(step, access.stride[d]);
    const int64_t unit = started_ ? std::gcd(unit_, step) : std::min<int64_t>(std::max<int64_t>(step & -step, 1), 512);
    started_ = true;
    if (unit != unit_) refine(unit);
  }

  struct Conflict {
    int agent;
    Stamp stamp;
    int64_t unit;
    bool write;
  };

  // The first earlier access that conflicts with this one and is not known to be complete; agent -1: none.
  Conflict conflict(const Access& access, const VectorClock& clock, int me) const {
    Conflict found{-1, 0, 0, false};
    for (uint32_t left = users_; left; left &= left - 1) {
      const int other = __builtin_ctz(left);
      look(access, written_[other], clock.at[other], other, true, found);
      // In-order issue: an earlier read of the same pipe has taken its data before this write lands.
      if (access.write && other != me) look(access, read_[other], clock.at[other], other, false, found);
    }
    return found;
  }

  void record(const Access& access, int me, Stamp stamp) {
    Track& track = access.write ? written_[me] : read_[me];
    if (!track.at) track.at = zeroed(units());
    users_ |= 1u << me;
    track.latest = stamp;
    for_units(access, bytes_, unit_, [&](int64_t low, int64_t high) {
      std::fill(track.at.get() + low, track.at.get() + high, stamp);
    });
  }

 private:
  struct Track {
    Stamps at;
    Stamp latest = 0;
  };

  int64_t units() const { return (bytes_ + unit_ - 1) / unit_; }

  void look(const Access& access, const Track& track, Stamp known, int other, bool write, Conflict& found) const {
    if (track.latest <= known) return;
    for_units(access, bytes_, unit_, [&](int64_t low, int64_t high) {
      const Stamp* at = track.at.get();
      Stamp newest = 0;
      for (int64_t i = low; i < high; ++i) newest = std::max(newest, at[i]);
      if (newest <= known || newest <= found.stamp) return;
      found = {other, newest, std::find(at + low, at + high, newest) - at, write};
    });
  }

  void refine(int64_t unit) {
    const int64_t factor = unit_ / unit;
    unit_ = unit;
    for (auto* tracks : {written_, read_})
      for (int i = 0; i < kAgents; ++i)
        if (tracks[i].at) tracks[i].at = finer(tracks[i].at, factor, units());
  }

  int64_t bytes_, unit_;
  bool fixed_, started_ = false;
  uint32_t users_ = 0;
  Track written_[kAgents], read_[kAgents];
};

// Which blocks read and wrote each unit of a global-memory buffer. Blocks have no order among themselves; the machine
// runs them one after another, so the first reader and the last writer of a unit tell all.
class BlockShadow {
 public:
  // Returns the number of an instruction of an earlier block (stamp <= base) that conflicts, or 0. `combines` says
  // whether the instruction of that number combines with what lies in memory (those do not conflict with each other).
  template <class Combines>
  Stamp visit(const Access& access, const Shadow& shadow, Stamp stamp, Stamp base, bool atomic, Combines combines) {
    fit(shadow);
    Stamps& mine = access.write ? writer_ : reader_;
    if (!mine) mine = zeroed(units_);
    Stamp found = 0;
    for_units(access, shadow.bytes(), unit_, [&](int64_t low, int64_t high) {
      if (writer_ && !found) found = earlier(writer_.get(), low, high, base, [&](Stamp w) { return atomic && combines(w); });
      if (!access.write) {
        for (int64_t u = low; u < high; ++u) reader_[u] = reader_[u] ? reader_[u] : stamp;
        return;
      }
      if (reader_ && !found) found = earlier(reader_.get(), low, high, base, [&](Stamp r) { return atomic && combines(r); });
      std::fill(writer_.get() + low, writer_.get() + high, stamp);
    });
    return found;
  }

 private:
  template <class Harmless>
  static Stamp earlier(const Stamp* at, int64_t low, int64_t high, Stamp base, Harmless harmless) {
    bool any = false;
    for (int64_t u = low; u < high; ++u) any |= at[u] - 1 < base;  // 1 <= at[u] <= base
    if (!any) return 0;
    for (int64_t u = low; u < high; ++u)
      if (at[u] - 1 < base && !harmless(at[u])) return at[u];
    return 0;
  }

  void fit(const Shadow& shadow) {
    if (unit_ == shadow.unit()) return;
    const int64_t factor = unit_ / shadow.unit();
    unit_ = shadow.unit();
    units_ = (shadow.bytes() + unit_ - 1) / unit_;
    if (writer_) writer_ = finer(writer_, factor, units_);
    if (reader_) reader_ = finer(reader_, factor, units_);
  }

  int64_t unit_ = 0, units_ = 0;
  Stamps writer_, reader_;
};

// Which bytes of an on-chip memory something has written in this block.
class Written {
 public:
  explicit Written(int64_t bytes) : at_(bytes) {}

  void clear() {
    std::memset(at_.data(), 0, std::size_t(high_));
    high_ = 0;
  }
  void record(const Access& access) {
    for_units(access, int64_t(at_.size()), 1, [&](int64_t low, int64_t high) {
      std::memset(at_.data() + low, 1, std::size_t(high - low));
      high_ = std::max(high_, high);
    });
  }
  // The first byte of the access that nothing has written, or -1.
  int64_t missing(const Access& access) const {
    int64_t found = -1;
    for_units(access, int64_t(at_.size()), 1, [&](int64_t low, int64_t high) {
      if (found >= 0) return;
      const void* hole = std::memchr(at_.data() + low, 0, std::size_t(high - low));
      if (hole) found = static_cast<const uint8_t*>(hole) - at_.data();
    });
    return found;
  }

 private:
  std::vector<uint8_t> at_;
  int64_t high_ = 0;
};

}  // namespace anychip
