// The C interface that Python binds.
#include <cstdlib>
#include <string>

#include "machine.h"

using namespace anychip;

namespace {

#define ANYCHIP_NAME(name) #name "\n"
constexpr const char* kCodes = ANYCHIP_CODES(ANYCHIP_NAME);
constexpr const char* kTileOps = ANYCHIP_TILE_OPS(ANYCHIP_NAME);

}  // namespace

extern "C" {

// Everything that a run takes; all pointers belong to the caller.
struct RunRequest {
  const int32_t* code;
  int64_t code_length;
  // Functions as a flat list: for each [cube, entry, slots, views, registers, constants, parameters,
  // (register, low, high).., (source, register, type)..], `constants` and `parameters` being counts.
  const int32_t* functions;
  int64_t num_functions;
  int64_t workspace_bytes;
  int64_t chip_bytes[6];
  int64_t num_arguments;
  void* const* data;        // per argument: memory, or null
  const int64_t* bytes;     // per argument: bytes of memory; -1 for a scalar
  const int64_t* scalars;   // per argument: the bits of a scalar register
  int64_t grid[3];
  int64_t num_blocks;
  const int64_t* blocks;
  int64_t num_observers;
  Observer* const* observers;
  int32_t poison;    // what fills memory that nothing has written: 0 to 255
  int32_t numerics;  // 0: only loads move data; for time, where no branch depends on what is computed
};

struct RunResult {
  Findings findings;
  std::string error;
  int32_t error_instruction = -1;
  int64_t steps = 0, blocks_done = 0;
  int64_t used[kCores][6] = {};
};

const char* machine_codes() { return kCodes; }
const char* machine_op_names() { return kTileOps; }

static Program read_program(const RunRequest& r) {
  Program program;
  program.code.assign(r.code, r.code + r.code_length);
  program.workspace_bytes = r.workspace_bytes;
  const int32_t* p = r.functions;
  for (int64_t i = 0; i < r.num_functions; ++i) {
    Function f{p[0] != 0, p[1], p[2], p[3], p[4], {}, {}};
    const int constants = p[5], parameters = p[6];
    p += 7;
    for (int k = 0; k < constants; ++k, p += 3)
      f.constants.push_back({p[0], int64_t(uint64_t(uint32_t(p[1])) | uint64_t(uint32_t(p[2])) << 32)});
    for (int k = 0; k < parameters; ++k, p += 3) f.parameters.push_back({p[0], p[1], p[2]});
    program.functions.push_back(std::move(f));
  }
  return program;
}

RunResult* machine_run(const RunRequest* request) {
  const RunRequest& r = *request;
  auto result = std::make_unique<RunResult>();
  try {
    const Program program = read_program(r);
    Chip chip;
    std::copy(r.chip_bytes, r.chip_bytes + 6, chip.bytes);
    std::vector<Value> arguments;
    for (int64_t i = 0; i < r.num_arguments; ++i) {
      Slot slot;
      slot.i = r.scalars[i];
      arguments.push_back({static_cast<uint8_t*>(r.data[i]), r.bytes[i], slot});
    }
    Machine machine(program, chip, result->findings);
    machine.set(uint8_t(r.poison), r.numerics != 0);
    for (int64_t i = 0; i < r.num_observers; ++i) machine.observe(r.observers[i]);
    try {
      machine.run(arguments, r.grid, std::vector<int64_t>(r.blocks, r.blocks + r.num_blocks));
    } catch (const MachineError& e) {
      result->error = e.what(), result->error_instruction = e.instruction;
    }
    result->steps = machine.steps(), result->blocks_done = machine.blocks_done();
    for (int core = 0; core < kCores; ++core)
      for (int space = 1; space < 6; ++space) result->used[core][space] = machine.used(core, Space(space));
  } catch (const std::exception& e) {
    result->error = e.what();
  }
  return result.release();
}

void machine_free(RunResult* result) { delete result; }
const char* machine_error(const RunResult* r) { return r->error.c_str(); }
int32_t machine_error_instruction(const RunResult* r) { return r->error_instruction; }
int64_t machine_steps(const RunResult* r) { return r->steps; }
int64_t machine_blocks_done(const RunResult* r) { return r->blocks_done; }
int64_t machine_used(const RunResult* r, int32_t core, int32_t space) { return r->used[core][space]; }
int64_t machine_num_findings(const RunResult* r) { return int64_t(r->findings.list().size()); }

// A finding as 13 numbers: kind, instruction, other instruction, core, pipe, other core, other pipe, buffer, event,
// block, low, high, count.
void machine_finding(const RunResult* r, int64_t index, int64_t* out) {
  const Finding& f = r->findings.list()[size_t(index)];
  const int64_t values[] = {int64_t(f.kind), f.instruction, f.other_instruction, f.core, f.pipe, f.other_core, f.other_pipe,
                            f.buffer, f.event, f.block, f.low, f.high, f.count};
  std::copy(values, values + 13, out);
}

}  // extern "C"
