// Conversions between element types in vector registers.
#include <algorithm>

#include "convert.h"
#include "registers.h"

namespace anychip {
namespace {

// Lanes of another width: the wider register's lane i meets lane ratio * i + part of the narrower one.
template <class S, class D> void convert(const RegOp& op) {
  constexpr int wide = sizeof(S) > sizeof(D) ? int(sizeof(S)) : int(sizeof(D)), n = kRegister / wide;
  const int from = wide / int(sizeof(S)), to = wide / int(sizeof(D)), part = op.extra >> 1;
  const bool saturates = op.extra & 1;
  const Round mode = Round(op.mode);
  Register out{};
  for (int i = 0; i < n; ++i) {
    if (op.mask && !op.mask->byte[i * wide]) continue;
    const S x = op.a->as<S>()[i * from + (from > 1 ? part : 0)];
    D& y = out.as<D>()[i * to + (to > 1 ? part : 0)];
    if constexpr (is_real<S> && is_real<D>) {
      float f = widen<float>(x);
      if (sizeof(D) < sizeof(S) && mode != Round::rint) f = round_narrow(f, op.to, mode);
      y = narrow<D>(f);
      if (saturates && std::isinf(widen<float>(y)) && !std::isinf(f)) y = narrow<D>(op.to == Type::f16 ? std::copysign(65504.0f, f) : std::copysign(3.3895314e38f, f));
    } else if constexpr (is_real<S>) {
      const double f = widen<float>(x);
      double whole = mode == Round::floor ? std::floor(f) : mode == Round::ceil ? std::ceil(f) : mode == Round::round ? std::round(f)
                   : mode == Round::rint ? std::nearbyint(f) : std::trunc(f);
      const double low = double(std::numeric_limits<D>::lowest()), high = double(std::numeric_limits<D>::max());
      whole = whole != whole ? 0 : whole < low ? low : whole > high ? high : whole;
      y = whole >= 9.2233720368547758e18 ? D(std::numeric_limits<int64_t>::max()) : D(int64_t(whole));
    } else if constexpr (is_real<D>) {
      y = narrow<D>(sizeof(D) == 4 ? float(x) : odd_float(int64_t(x)));
    } else {
      const int64_t v = int64_t(x), low = int64_t(std::numeric_limits<D>::lowest()), high = int64_t(std::numeric_limits<D>::max());
      y = D(saturates && sizeof(D) < sizeof(S) ? std::min(std::max(v, low), high) : v);
    }
  }
  *op.out = out;
}

template <class S> bool convert_from(const RegOp& op) {
  switch (op.to) {
    case Type::i8: convert<S, int8_t>(op); return true;
    case Type::u8: convert<S, uint8_t>(op); return true;
    case Type::i16: convert<S, int16_t>(op); return true;
    case Type::i32: convert<S, int32_t>(op); return true;
    case Type::u32: convert<S, uint32_t>(op); return true;
    case Type::i64: case Type::u64: convert<S, int64_t>(op); return true;
    case Type::f16: convert<S, Half>(op); return true;
    case Type::bf16: convert<S, Brain>(op); return true;
    case Type::f32: convert<S, float>(op); return true;
    default: return false;
  }
}

}  // namespace

bool convert_register(const RegOp& op) {
  switch (op.from) {
    case Type::i8: return convert_from<int8_t>(op);
    case Type::u8: return convert_from<uint8_t>(op);
    case Type::i16: return convert_from<int16_t>(op);
    case Type::u16: return convert_from<uint16_t>(op);
    case Type::i32: return convert_from<int32_t>(op);
    case Type::u32: return convert_from<uint32_t>(op);
    case Type::i64: case Type::u64: return convert_from<int64_t>(op);
    case Type::f16: return convert_from<Half>(op);
    case Type::bf16: return convert_from<Brain>(op);
    case Type::f32: return convert_from<float>(op);
    default: return false;
  }
}

}  // namespace anychip
