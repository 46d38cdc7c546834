// The chip's number formats: what an element is in memory, and exact conversions (round to nearest, ties to even).
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace anychip {

enum class Type : uint8_t { bit, i8, u8, i16, u16, i32, u32, i64, u64, f16, bf16, f32 };
struct Half { uint16_t bits; };
struct Brain { uint16_t bits; };

inline int bits_of(Type t) {
  constexpr int table[] = {1, 8, 8, 16, 16, 32, 32, 64, 64, 16, 16, 32};
  return table[int(t)];
}
inline int bytes_of(Type t) { return bits_of(t) / 8; }  // 0 for bits
inline bool is_float(Type t) { return t >= Type::f16; }
inline bool is_unsigned(Type t) { return t == Type::u8 || t == Type::u16 || t == Type::u32 || t == Type::u64; }
inline Type unsigned_of(Type t) {
  return t == Type::i8 ? Type::u8 : t == Type::i16 ? Type::u16 : t == Type::i32 ? Type::u32 : t == Type::i64 ? Type::u64 : t;
}

template <class To, class From> inline To as_bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}

inline float to_float(Brain x) { return as_bits<float>(uint32_t(x.bits) << 16); }
inline float to_float(Half x) {
  const uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13;
  const float scaled = as_bits<float>(magnitude) * 0x1p112f;  // exact, subnormals too
  const uint32_t special = (x.bits & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;
  return as_bits<float>(as_bits<uint32_t>(scaled) | special | (uint32_t(x.bits & 0x8000) << 16));
}
inline Brain to_brain(float x) {
  const uint32_t u = as_bits<uint32_t>(x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const uint32_t quiet = (u >> 16) | 0x40u;
  return {uint16_t((u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded)};
}
inline Half to_half(float x) {
  const uint32_t u = as_bits<uint32_t>(x), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
  const uint32_t normal = (a + 0xc8000fffu + ((a >> 13) & 1u)) >> 13;  // bias from 127 to 15, then round
  const uint32_t small = as_bits<uint32_t>(as_bits<float>(a) + 0.5f) - 0x3f000000u;  // below 2^-14: the adder rounds
  uint32_t h = a < 0x38800000u ? small : normal;
  h = a >= 0x477ff000u ? 0x7c00u : h;  // 65520 and above
  h = a > 0x7f800000u ? 0x7e00u : h;
  return {uint16_t(h | sign)};
}

// Element of memory -> number to compute with, and back. Integers wrap; floats round to nearest even. Integer types
// take the bit patterns of floats (selects and bitwise ops move them unchanged).
template <class T, class S> inline T widen(S x) { return T(x); }
template <> inline float widen<float, Half>(Half x) { return to_float(x); }
template <> inline float widen<float, Brain>(Brain x) { return to_float(x); }
template <> inline double widen<double, Half>(Half x) { return to_float(x); }
template <> inline double widen<double, Brain>(Brain x) { return to_float(x); }
template <> inline int32_t widen<int32_t, Half>(Half x) { return int32_t(x.bits); }
template <> inline int32_t widen<int32_t, Brain>(Brain x) { return int32_t(x.bits); }
template <> inline int64_t widen<int64_t, Half>(Half x) { return int64_t(x.bits); }
template <> inline int64_t widen<int64_t, Brain>(Brain x) { return int64_t(x.bits); }
template <> inline int32_t widen<int32_t, float>(float x) { return as_bits<int32_t>(x); }
template <> inline int64_t widen<int64_t, float>(float x) { return as_bits<int32_t>(x); }
template <class S, class T> inline S narrow(T x) { return S(x); }
template <> inline float narrow<float, int32_t>(int32_t x) { return as_bits<float>(x); }
template <> inline float narrow<float, int64_t>(int64_t x) { return as_bits<float>(int32_t(x)); }
template <> inline Half narrow<Half, float>(float x) { return to_half(x); }
template <> inline Brain narrow<Brain, float>(float x) { return to_brain(x); }
template <> inline Half narrow<Half, int32_t>(int32_t x) { return {uint16_t(x)}; }
template <> inline Brain narrow<Brain, int32_t>(int32_t x) { return {uint16_t(x)}; }
template <> inline Half narrow<Half, int64_t>(int64_t x) { return {uint16_t(x)}; }
template <> inline Brain narrow<Brain, int64_t>(int64_t x) { return {uint16_t(x)}; }

// The bit pattern of `x` in a float type.
inline int64_t bits_of_number(Type type, double x) {
  if (type == Type::f32) return as_bits<int32_t>(float(x));
  return type == Type::f16 ? to_half(float(x)).bits : to_brain(float(x)).bits;
}
inline double number_of_bits(Type type, int64_t bits) {
  if (type == Type::f32) return as_bits<float>(uint32_t(bits));
  return type == Type::f16 ? to_float(Half{uint16_t(bits)}) : to_float(Brain{uint16_t(bits)});
}

// A double rounded to what `type` can hold (scalar registers hold doubles).
inline double round_to(Type type, double x) {
  if (type == Type::f32) return double(float(x));
  if (type != Type::f16 && type != Type::bf16) return x;
  float f = float(x);
  if (double(f) != x && std::isfinite(f)) {  // round to odd first, so that the second rounding is right
    uint32_t u = as_bits<uint32_t>(f);
    if (std::fabs(double(f)) > std::fabs(x)) --u;
    f = as_bits<float>(u | 1u);
  }
  return type == Type::f16 ? to_float(to_half(f)) : to_float(to_brain(f));
}

// Integer result of arithmetic in `bits` bits, as a sign-extended register (0 or 1 for a single bit).
inline int64_t wrap(int64_t x, int bits) {
  if (bits >= 64) return x;
  if (bits == 1) return x & 1;
  const int shift = 64 - bits;
  return int64_t(uint64_t(x) << shift) >> shift;
}
inline uint64_t zero_extend(int64_t x, int bits) { return bits >= 64 ? uint64_t(x) : uint64_t(x) & ((1ull << bits) - 1); }

}  // namespace anychip
