// Scalar arithmetic of the machine's cores.
#pragma once
#include <cmath>

#include "number.h"
#include "opcodes.h"

namespace anychip {

inline int64_t floor_div(int64_t a, int64_t b) {
  if (b == 0) return -1;
  const int64_t q = a / b;
  return q - ((a % b != 0) && ((a < 0) != (b < 0)));
}

inline int64_t integer_op(Code code, int64_t a, int64_t b, int bits) {
  const uint64_t ua = zero_extend(a, bits), ub = zero_extend(b, bits);
  switch (code) {
    case Code::add: return wrap(int64_t(uint64_t(a) + uint64_t(b)), bits);
    case Code::sub: return wrap(int64_t(uint64_t(a) - uint64_t(b)), bits);
    case Code::mul: return wrap(int64_t(uint64_t(a) * uint64_t(b)), bits);
    case Code::bit_and: return a & b;
    case Code::bit_or: return a | b;
    case Code::bit_xor: return a ^ b;
    case Code::shl: return ub >= uint64_t(bits) ? 0 : wrap(int64_t(ua << ub), bits);
    case Code::shr_s: return a >> (ub >= uint64_t(bits) ? bits - 1 : int(ub));
    case Code::shr_u: return ub >= uint64_t(bits) ? 0 : wrap(int64_t(ua >> ub), bits);
    case Code::div_s: return b == 0 ? -1 : b == -1 ? wrap(int64_t(0 - uint64_t(a)), bits) : a / b;
    case Code::rem_s: return b == 0 ? a : b == -1 ? 0 : a % b;
    case Code::div_u: return ub == 0 ? -1 : wrap(int64_t(ua / ub), bits);
    case Code::rem_u: return ub == 0 ? a : wrap(int64_t(ua % ub), bits);
    case Code::floor_div: return floor_div(a, b);
    case Code::ceil_div: return b == 0 ? -1 : -floor_div(-a, b);
    case Code::floor_mod: return b == 0 ? a : a - floor_div(a, b) * b;
    case Code::max_s: return a > b ? a : b;
    case Code::min_s: return a < b ? a : b;
    case Code::max_u: return ua > ub ? a : b;
    case Code::min_u: return ua < ub ? a : b;
    default: return 0;
  }
}

// Predicates in MLIR's order: eq ne slt sle sgt sge ult ule ugt uge.
inline bool integer_compare(int64_t a, int64_t b, int predicate, int bits) {
  const uint64_t ua = zero_extend(a, bits), ub = zero_extend(b, bits);
  switch (predicate) {
    case 0: return a == b;
    case 1: return a != b;
    case 2: return a < b;
    case 3: return a <= b;
    case 4: return a > b;
    case 5: return a >= b;
    case 6: return ua < ub;
    case 7: return ua <= ub;
    case 8: return ua > ub;
    default: return ua >= ub;
  }
}

// Predicates in MLIR's order: false, oeq ogt oge olt ole one ord, ueq ugt uge ult ule une uno, true.
inline bool float_compare(double a, double b, int predicate) {
  const bool nan = a != a || b != b;
  if (predicate == 0) return false;
  if (predicate == 15) return true;
  if (predicate == 7) return !nan;
  if (predicate == 14) return nan;
  const bool unordered = predicate >= 8;
  if (nan) return unordered;
  switch (unordered ? predicate - 7 : predicate) {
    case 1: return a == b;
    case 2: return a > b;
    case 3: return a >= b;
    case 4: return a < b;
    case 5: return a <= b;
    default: return a != b;
  }
}

inline double float_op(Code code, double a, double b) {
  switch (code) {
    case Code::fadd: return a + b;
    case Code::fsub: return a - b;
    case Code::fmul: return a * b;
    case Code::fdiv: return a / b;
    case Code::fmax: return a > b || a != a ? a : b;
    case Code::fmin: return a < b || a != a ? a : b;
    case Code::frem: return std::fmod(a, b);
    case Code::fpow: return std::pow(a, b);
    default: return 0;
  }
}

inline double math_op(Math function, double x) {
  switch (function) {
    case Math::neg: return -x;
    case Math::abs: return std::fabs(x);
    case Math::sqrt: return std::sqrt(x);
    case Math::rsqrt: return 1 / std::sqrt(x);
    case Math::exp: return std::exp(x);
    case Math::exp2: return std::exp2(x);
    case Math::log: return std::log(x);
    case Math::log2: return std::log2(x);
    case Math::sin: return std::sin(x);
    case Math::cos: return std::cos(x);
    case Math::tanh: return std::tanh(x);
    case Math::erf: return std::erf(x);
    case Math::floor: return std::floor(x);
    case Math::ceil: return std::ceil(x);
    case Math::round_even: return std::nearbyint(x);
    case Math::trunc: return std::trunc(x);
    case Math::log1p: return std::log1p(x);
    case Math::expm1: return std::expm1(x);
  }
  return x;
}

}  // namespace anychip
