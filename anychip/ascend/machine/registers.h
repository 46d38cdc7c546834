// Vector registers of the 950: 256 bytes, taken as lanes of 8 to 64 bits. A mask register holds a flag for each byte;
// a lane is active where the flag of its first byte is set, so masks made for wide lanes serve narrow lanes too.
#pragma once
#include <type_traits>

#include "number.h"
#include "opcodes.h"

namespace anychip {

constexpr int kRegister = 256;

struct alignas(32) Register {
  uint8_t byte[kRegister];
  template <class T> T* as() { return reinterpret_cast<T*>(byte); }
  template <class T> const T* as() const { return reinterpret_cast<const T*>(byte); }
};

// One register instruction, decoded. `scalar` takes the place of the second source where `has_scalar`.
struct RegOp {
  Reg op;
  Type from, to;
  int mode, extra;  // comparison, rounding, reduction or part of a wider lane; saturating, signed or descending
  const Register *a, *b, *c, *mask;
  bool has_scalar;
  double real;
  int64_t whole;
  Register *out, *second;
};

// What a lane is computed in.
template <class S> using Wide = std::conditional_t<std::is_same_v<S, Half> || std::is_same_v<S, Brain>, float, S>;
template <class S> constexpr int lanes() { return kRegister / int(sizeof(S)); }
template <class S> constexpr bool is_real = std::is_same_v<Wide<S>, float>;

// Runs one; false where the machine has no such operation on these types.
bool run_register_op(const RegOp& op);
bool convert_register(const RegOp& op);

void fill_register(Register& out, Type type, double real, int64_t whole, const Register* mask);
void mask_register(Register& out, MaskPattern pattern, int64_t count, int lane_bytes);

}  // namespace anychip
