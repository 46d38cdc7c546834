// The checker and the clock for Python: plain C functions on handles.
#include <cstring>

#include "cache.h"
#include "clock.h"
#include "races.h"
#include "record.h"

using namespace anychip;

namespace {

struct Checker {
  explicit Checker(bool vector_in_order) : races(findings, vector_in_order) {}
  Findings findings;
  Races races;
};

// Every step as it was, for proofs about small runs.
struct Log : Observer {
  std::vector<Step> steps;
  std::vector<int64_t> first;  // step with which each block begins
  void begin_block(int64_t) override { first.push_back(int64_t(steps.size())); }
  void step(const Step& step) override { steps.push_back(step); }
};

// The uses of global memory of one block, in the order of time.
struct Stream {
  const Recorded* block;
  std::vector<double> time;  // of each touch
  std::size_t next = 0;
};

struct Earlier {
  bool operator()(const Stream* a, const Stream* b) const { return a->time[a->next] > b->time[b->next]; }
};

// Lets the streams use the cache together. out: reads, read misses, writes, write misses.
void use_together(std::vector<Stream>& streams, Cache& cache, int64_t* out) {
  std::priority_queue<Stream*, std::vector<Stream*>, Earlier> queue;
  std::fill(out, out + 4, 0);
  for (Stream& stream : streams) {
    stream.next = 0;
    if (!stream.time.empty()) queue.push(&stream);
  }
  while (!queue.empty()) {
    Stream& stream = *queue.top();
    queue.pop();
    const Touch& touch = stream.block->touches[stream.next++];
    const bool hit = cache.use(touch.sector);
    out[touch.write ? 2 : 0] += 1;
    out[touch.write ? 3 : 1] += !hit;
    if (stream.next < stream.time.size()) queue.push(&stream);
  }
}

}  // namespace

extern "C" {

// Comma-separated names of `Rates::value`, in order.
const char* clock_rate_names() {
#define ANYCHIP_NAME(name) #name ","
  return ANYCHIP_RATES(ANYCHIP_NAME);
#undef ANYCHIP_NAME
}

int64_t clock_rates_bytes() { return sizeof(Rates); }
int64_t clock_event_bytes() { return sizeof(Timed); }
int64_t cache_sector_bytes() { return Recorder::kSector; }

// vector_in_order: 1 for the 950.
void* checker_new(int32_t vector_in_order) { return new Checker(vector_in_order != 0); }
void checker_lock(void* checker, const int32_t* instructions, int64_t count) {
  static_cast<Checker*>(checker)->races.lock(instructions, count);
}
void checker_free(void* checker) { delete static_cast<Checker*>(checker); }
Observer* checker_observer(void* checker) { return &static_cast<Checker*>(checker)->races; }

// Copies the findings (which = 0) or the suspects (1) to `out` where it is not null; returns how many there are.
int64_t checker_findings(void* checker, int32_t which, Finding* out) {
  auto* c = static_cast<Checker*>(checker);
  const auto& list = which == 0 ? c->findings.list() : c->races.suspects().list();
  if (out) std::copy(list.begin(), list.end(), out);
  return int64_t(list.size());
}

void* log_new() { return new Log; }
void log_free(void* log) { delete static_cast<Log*>(log); }
Observer* log_observer(void* log) { return static_cast<Log*>(log); }
int64_t log_step_bytes() { return sizeof(Step); }
int64_t log_blocks(void* log) { return int64_t(static_cast<Log*>(log)->first.size()); }

// The steps of one block: returns the first one, and how many there are in `count`.
const Step* log_block(void* log, int64_t index, int64_t* count) {
  const auto* l = static_cast<Log*>(log);
  const std::size_t i = std::size_t(index);
  const int64_t end = i + 1 < l->first.size() ? l->first[i + 1] : int64_t(l->steps.size());
  *count = end - l->first[i];
  return l->steps.data() + l->first[i];
}

void* recorder_new(int64_t sampled) { return new Recorder(sampled); }
void recorder_free(void* recorder) { delete static_cast<Recorder*>(recorder); }
Observer* recorder_observer(void* recorder) { return static_cast<Recorder*>(recorder); }
int64_t recorder_blocks(void* recorder) { return int64_t(static_cast<Recorder*>(recorder)->blocks().size()); }

// out: block, events, touches, bytes read from and written to global memory.
void recorder_block(void* recorder, int64_t index, int64_t* out) {
  const Recorded& block = static_cast<Recorder*>(recorder)->blocks()[std::size_t(index)];
  const int64_t values[] = {block.block, int64_t(block.events.size()), int64_t(block.touches.size()), block.read_bytes,
                            block.written_bytes};
  std::copy(values, values + 5, out);
}

const Timed* recorder_events(void* recorder, int64_t index) {
  return static_cast<Recorder*>(recorder)->blocks()[std::size_t(index)].events.data();
}

// Times one block. out: the timeline's numbers; spans: null, or two numbers for each instruction.
void clock_run(void* recorder, int64_t index, const Rates* rates, Timeline* out, double* spans) {
  *out = Clock(*rates).run(static_cast<Recorder*>(recorder)->blocks()[std::size_t(index)].events, spans);
}

// Times every recorded block; out: one timeline each.
void clock_run_all(void* recorder, const Rates* rates, Timeline* out) {
  Clock clock(*rates);
  for (const Recorded& block : static_cast<Recorder*>(recorder)->blocks()) *out++ = clock.run(block.events, nullptr);
}

// Runs the touches of `count` recorded blocks, block i from cycle start[i] on, through a cache of `sectors` sectors,
// `rounds` times over; out: reads, read misses, writes, write misses of the last round.
void cache_run(void* recorder, const Rates* rates, const int64_t* index, const double* start, int64_t count,
               int64_t sectors, int64_t rounds, int64_t* out) {
  const auto& blocks = static_cast<Recorder*>(recorder)->blocks();
  std::vector<Stream> streams(static_cast<std::size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    const Recorded& block = blocks[std::size_t(index[i])];
    std::vector<double> spans(block.events.size() * 2);
    Clock(*rates).run(block.events, spans.data());
    Stream& stream = streams[std::size_t(i)];
    stream.block = &block;
    stream.time.reserve(block.touches.size());
    double at = start[i];
    for (const Touch& touch : block.touches) {  // pipes overtake each other; a stream is kept in recorded order
      at = std::max(at, start[i] + spans[2 * touch.event]);
      stream.time.push_back(at);
    }
  }
  Cache cache(sectors);
  for (int64_t round = 0; round < rounds; ++round) use_together(streams, cache, out);
}

}  // extern "C"
