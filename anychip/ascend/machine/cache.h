// The die's shared L2 cache: least recently used, sectors of `Recorder::kSector` bytes. The blocks that run at the
// same time use it together, in the order of their transfers.
#pragma once
#include <algorithm>
#include <cstdint>
#include <queue>
#include <unordered_map>
#include <vector>

namespace anychip {

class Cache {
 public:
  explicit Cache(int64_t sectors) : capacity_(std::max<int64_t>(sectors, 1)) {}

  // Returns whether the sector was in the cache; it is the newest afterwards.
  bool use(uint32_t sector) {
    auto [at, fresh] = place_.try_emplace(sector, 0);
    if (!fresh) {
      unlink(at->second);
      link(at->second);
      return true;
    }
    int32_t slot;
    if (int64_t(entries_.size()) < capacity_) {
      slot = int32_t(entries_.size());
      entries_.push_back({sector, -1, -1});
    } else {
      slot = oldest_;
      unlink(slot);
      place_.erase(entries_[slot].sector);
      entries_[slot].sector = sector;
    }
    place_[sector] = slot;
    link(slot);
    return false;
  }

 private:
  struct Entry {
    uint32_t sector;
    int32_t older, newer;
  };
  void unlink(int32_t slot) {
    Entry& e = entries_[slot];
    (e.older >= 0 ? entries_[e.older].newer : oldest_) = e.newer;
    (e.newer >= 0 ? entries_[e.newer].older : newest_) = e.older;
  }
  void link(int32_t slot) {
    entries_[slot].older = newest_;
    entries_[slot].newer = -1;
    (newest_ >= 0 ? entries_[newest_].newer : oldest_) = slot;
    newest_ = slot;
  }

  int64_t capacity_;
  int32_t oldest_ = -1, newest_ = -1;
  std::vector<Entry> entries_;
  std::unordered_map<uint32_t, int32_t> place_;
};

}  // namespace anychip
