// Narrowing of single floats in the rounding modes other than round to nearest even.
#pragma once
#include "number.h"
#include "opcodes.h"

namespace anychip {

// `x` rounded to f16 or bf16 in `mode`, as a float that the format holds exactly.
inline float round_narrow(float x, Type to, Round mode) {
  auto nearest = [to](float v) { return to == Type::f16 ? to_float(to_half(v)) : to_float(to_brain(v)); };
  if (x != x || std::isinf(x)) return x;
  const float near = nearest(x);
  if (near == x || mode == Round::rint) return near;
  // The neighbours of x in the format: one step of its bit pattern from `near`.
  auto step = [to](float v, int by) {
    return to == Type::f16 ? to_float(Half{uint16_t(to_half(v).bits + by)}) : to_float(Brain{uint16_t(to_brain(v).bits + by)});
  };
  const bool negative = std::signbit(x);
  const float inner = std::fabs(near) > std::fabs(x) ? step(near, -1) : near;  // towards zero
  const float outer = std::fabs(near) > std::fabs(x) ? near : step(near, 1);
  switch (mode) {
    case Round::floor: return negative ? outer : inner;
    case Round::ceil: return negative ? inner : outer;
    case Round::round: {  // ties away from zero
      const double low = std::fabs(double(inner)), high = std::fabs(double(outer)), a = std::fabs(double(x));
      return a - low >= high - a ? outer : inner;
    }
    case Round::odd: {
      const int bits = to == Type::f16 ? to_half(inner).bits : to_brain(inner).bits;
      return bits & 1 ? inner : outer;
    }
    default: return inner;
  }
}

// An integer as a float rounded to odd, so that a second rounding to 16 bits is exact.
inline float odd_float(int64_t x) {
  float f = float(x);
  const bool exact = f < 9.2e18f && f > -9.2e18f && int64_t(f) == x;
  if (exact) return f;
  uint32_t u = as_bits<uint32_t>(f);
  if (std::fabs(double(f)) > std::fabs(double(x))) --u;
  return as_bits<float>(u | 1u);
}

}  // namespace anychip
