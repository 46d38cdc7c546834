// The scalar unit of a core: the interpreter's loop.
#include "machine.h"
#include "scalar.h"

namespace anychip {
namespace {
constexpr int64_t kLimit = 4'000'000'000;  // scalar instructions of one core in one block: then it hangs
}

void Core::start(const Function& f, const std::vector<Value>& arguments, const int64_t grid[3], int64_t block) {
  slots_.assign(size_t(f.slots), Slot{0});
  views_.assign(size_t(f.views), View{});
  registers_.resize(size_t(f.registers));
  for (auto [r, bits] : f.constants) slots_[size_t(r)].i = bits;
  for (const auto& p : f.parameters) {
    if (p.type < 0) {
      Slot& s = slots_[size_t(p.register_)];
      if (p.source >= 0) s = arguments[size_t(p.source)].slot;
      else s.i = p.source == kGridX ? grid[0] : p.source == kGridY ? grid[1] : p.source == kGridZ ? grid[2] : 0;
      continue;
    }
    View& v = views_[size_t(p.register_)];
    v.buffer = p.source >= 0 ? machine_.buffer_of_argument(p.source) : p.source == kLock ? machine_.lock_ : machine_.workspace_;
    v.type = Type(p.type), v.rank = 1, v.stride[0] = 1;
    const Memory& memory = machine_.memory_[size_t(v.buffer)];
    v.size[0] = (memory.bytes + memory.shift) * 8 / bits_of(v.type);
  }
  pc_ = machine_.program_.code.data() + f.entry;
  block_ = block, scalar_ops_ = 0, done_ = false, flags_ = Flags{};
}

bool Core::run() {
  const int32_t* const base = machine_.program_.code.data();
  const int32_t* p = pc_;
  int64_t budget = kLimit;
  for (;;) {
    if (--budget < 0) throw MachineError(waits_at_, "a core executed 4e9 scalar instructions in one block: its loop does not end");
    const Code code = Code(p[0]);
    switch (code) {
      case Code::halt: done_ = true, pc_ = p; return true;
      case Code::jump: p = base + p[1]; continue;
      case Code::jump_if_not: ++scalar_ops_; p = x(p[1]).i ? p + 3 : base + p[2]; continue;
      case Code::jump_if: ++scalar_ops_; p = x(p[1]).i ? base + p[2] : p + 3; continue;
      case Code::loop_test: ++scalar_ops_; p = x(p[1]).i >= x(p[2]).i ? base + p[3] : p + 4; continue;
      case Code::move: x(p[1]) = x(p[2]); p += 3; continue;
      case Code::move_view: v(p[1]) = v(p[2]); p += 3; continue;
      case Code::add: case Code::sub: case Code::mul: case Code::bit_and: case Code::bit_or: case Code::bit_xor:
      case Code::shl: case Code::shr_s: case Code::shr_u: case Code::div_s: case Code::rem_s: case Code::div_u:
      case Code::rem_u: case Code::floor_div: case Code::ceil_div: case Code::floor_mod: case Code::max_s:
      case Code::min_s: case Code::max_u: case Code::min_u:
        ++scalar_ops_, x(p[1]).i = integer_op(code, x(p[2]).i, x(p[3]).i, p[4]); p += 5; continue;
      case Code::compare: ++scalar_ops_, x(p[1]).i = integer_compare(x(p[2]).i, x(p[3]).i, p[4], p[5]); p += 6; continue;
      case Code::select: ++scalar_ops_, x(p[1]) = x(x(p[2]).i ? p[3] : p[4]); p += 5; continue;
      case Code::select_view: ++scalar_ops_, v(p[1]) = v(x(p[2]).i ? p[3] : p[4]); p += 5; continue;
      case Code::sign_wrap: ++scalar_ops_, x(p[1]).i = wrap(x(p[2]).i, p[3]); p += 4; continue;
      case Code::zero_wrap: ++scalar_ops_, x(p[1]).i = int64_t(zero_extend(x(p[2]).i, p[3])); p += 4; continue;
      case Code::fadd: case Code::fsub: case Code::fmul: case Code::fdiv: case Code::fmax: case Code::fmin:
      case Code::frem: case Code::fpow:
        ++scalar_ops_, x(p[1]).f = round_to(Type(p[4]), float_op(code, x(p[2]).f, x(p[3]).f)); p += 5; continue;
      case Code::fcompare: ++scalar_ops_, x(p[1]).i = float_compare(x(p[2]).f, x(p[3]).f, p[4]); p += 5; continue;
      case Code::fmath: ++scalar_ops_, x(p[1]).f = round_to(Type(p[4]), math_op(Math(p[3]), x(p[2]).f)); p += 5; continue;
      case Code::int_to_float: ++scalar_ops_, x(p[1]).f = round_to(Type(p[3]), double(wrap(x(p[2]).i, p[4]))); p += 5; continue;
      case Code::uint_to_float: ++scalar_ops_, x(p[1]).f = round_to(Type(p[3]), double(zero_extend(x(p[2]).i, p[4]))); p += 5; continue;
      case Code::float_to_int: {
        const double d = x(p[2]).f;
        ++scalar_ops_, x(p[1]).i = d != d ? 0 : d >= 9.2e18 ? INT64_MAX : d <= -9.2e18 ? INT64_MIN : wrap(int64_t(d), p[3]);
        p += 4;
        continue;
      }
      case Code::float_round: ++scalar_ops_, x(p[1]).f = round_to(Type(p[3]), x(p[2]).f); p += 4; continue;
      case Code::float_bits: ++scalar_ops_, x(p[1]).i = wrap(bits_of_number(Type(p[3]), x(p[2]).f), bits_of(Type(p[3]))); p += 4; continue;
      case Code::bits_float: ++scalar_ops_, x(p[1]).f = number_of_bits(Type(p[3]), x(p[2]).i); p += 4; continue;
      case Code::block_index: x(p[1]).i = block_; p += 2; continue;
      case Code::sub_block_index: x(p[1]).i = id_ == 2 ? 1 : 0; p += 2; continue;
      case Code::num_blocks: x(p[1]).i = machine_.total_blocks_; p += 2; continue;
      case Code::load_element: case Code::store_element: element(code, p); p += 5 + p[4]; continue;
      case Code::set_flag: set_flag(p, false); p += 6; continue;
      case Code::wait_flag: set_flag(p, true); p += 6; continue;
      case Code::barrier: barrier(p[1], p[2]); p += 3; continue;
      case Code::sync_set: case Code::sync_wait:
        if (!sync(code, p)) { pc_ = p; return false; }
        p += 5;
        continue;
      case Code::tile: p += tile(p); continue;
      case Code::fail: throw MachineError(p[1], "an assertion of the kernel failed");
      case Code::count: throw MachineError(-1, "an instruction that does not exist");
      case Code::move_register: registers_[size_t(p[1])] = registers_[size_t(p[2])]; p += 3; continue;
      case Code::reg_op: case Code::reg_fill: case Code::reg_lane: case Code::reg_load: case Code::reg_store:
      case Code::reg_mask: case Code::reg_count: p += register_code(code, p); continue;
      default: p += view_code(code, p); continue;
    }
  }
}

}  // namespace anychip
