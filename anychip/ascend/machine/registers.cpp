// Arithmetic on vector registers. Inactive lanes become zero, but of a select.
#include "registers.h"

#include <algorithm>

#include "maths.h"

namespace anychip {
namespace {

// f(lane of a, lane of b) on every active lane.
template <class S, class F> void each(const RegOp& op, F f) {
  using T = Wide<S>;
  const S *a = op.a->as<S>(), *b = op.b ? op.b->as<S>() : a;
  S* out = op.out->as<S>();
  const T fixed = is_real<S> ? T(op.real) : T(op.whole);
  const uint8_t* mask = op.mask ? op.mask->byte : nullptr;
  T result[lanes<S>()];
  if (op.has_scalar) for (int i = 0; i < lanes<S>(); ++i) result[i] = f(widen<T>(a[i]), fixed);
  else for (int i = 0; i < lanes<S>(); ++i) result[i] = f(widen<T>(a[i]), widen<T>(b[i]));
  for (int i = 0; i < lanes<S>(); ++i) out[i] = narrow<S>(!mask || mask[i * sizeof(S)] ? result[i] : T(0));
}

template <class S> bool real_op(const RegOp& op) {
  switch (op.op) {
    case Reg::add: each<S>(op, [](float x, float y) { return x + y; }); return true;
    case Reg::sub: each<S>(op, [](float x, float y) { return x - y; }); return true;
    case Reg::mul: each<S>(op, [](float x, float y) { return x * y; }); return true;
    case Reg::div: each<S>(op, [](float x, float y) { return x / y; }); return true;
    case Reg::max: each<S>(op, [](float x, float y) { return x > y || x != x ? x : y; }); return true;
    case Reg::min: each<S>(op, [](float x, float y) { return x < y || x != x ? x : y; }); return true;
    case Reg::mod: each<S>(op, [](float x, float y) { return std::fmod(x, y); }); return true;
    case Reg::neg: each<S>(op, [](float x, float) { return -x; }); return true;
    case Reg::abs: each<S>(op, [](float x, float) { return std::fabs(x); }); return true;
    case Reg::exp: each<S>(op, [](float x, float) { return fast_exp(x); }); return true;
    case Reg::exp_difference: each<S>(op, [](float x, float y) { return fast_exp(x - y); }); return true;
    case Reg::ln: each<S>(op, [](float x, float) { return fast_log(x); }); return true;
    case Reg::sqrt: each<S>(op, [](float x, float) { return std::sqrt(x); }); return true;
    case Reg::rsqrt: each<S>(op, [](float x, float) { return 1.0f / std::sqrt(x); }); return true;
    case Reg::relu: each<S>(op, [](float x, float) { return x > 0 || x != x ? x : 0.0f; }); return true;
    case Reg::rounded: {
      const Round mode = Round(op.mode);
      each<S>(op, [mode](float x, float) {
        return mode == Round::floor ? std::floor(x) : mode == Round::ceil ? std::ceil(x) : mode == Round::round ? std::round(x)
             : mode == Round::rint ? std::nearbyint(x) : std::trunc(x);
      });
      return true;
    }
    default: return false;
  }
}

template <class S> bool whole_op(const RegOp& op) {
  using U = std::make_unsigned_t<S>;
  constexpr U width = sizeof(S) * 8;
  switch (op.op) {
    case Reg::add: each<S>(op, [](S x, S y) { return S(U(x) + U(y)); }); return true;
    case Reg::sub: each<S>(op, [](S x, S y) { return S(U(x) - U(y)); }); return true;
    case Reg::mul: each<S>(op, [](S x, S y) { return S(uint64_t(x) * uint64_t(y)); }); return true;
    case Reg::div: each<S>(op, [](S x, S y) { return y == 0 ? S(-1) : y == S(-1) && std::is_signed_v<S> ? S(U(0) - U(x)) : S(x / y); }); return true;
    case Reg::mod: each<S>(op, [](S x, S y) { return y == 0 ? x : y == S(-1) && std::is_signed_v<S> ? S(0) : S(x % y); }); return true;
    case Reg::max: each<S>(op, [](S x, S y) { return x > y ? x : y; }); return true;
    case Reg::min: each<S>(op, [](S x, S y) { return x < y ? x : y; }); return true;
    case Reg::neg: each<S>(op, [](S x, S) { return S(U(0) - U(x)); }); return true;
    case Reg::abs: each<S>(op, [](S x, S) { return x < S(0) ? S(U(0) - U(x)) : x; }); return true;
    case Reg::relu: each<S>(op, [](S x, S) { return x > S(0) ? x : S(0); }); return true;
    case Reg::shl: each<S>(op, [](S x, S y) { return U(y) < width ? S(uint64_t(U(x)) << U(y)) : S(0); }); return true;
    case Reg::shr: each<S>(op, [](S x, S y) { return S(x >> (U(y) < width ? U(y) : U(width - 1))); }); return true;
    default: return false;
  }
}

template <class S> void bits_op(const RegOp& op) {
  switch (op.op) {
    case Reg::bit_and: return each<S>(op, [](S x, S y) { return S(x & y); });
    case Reg::bit_or: return each<S>(op, [](S x, S y) { return S(x | y); });
    case Reg::bit_xor: return each<S>(op, [](S x, S y) { return S(x ^ y); });
    default: return each<S>(op, [](S x, S) { return S(~x); });
  }
}

template <class S> void compare(const RegOp& op) {
  using T = Wide<S>;
  const S *a = op.a->as<S>(), *b = op.b ? op.b->as<S>() : a;
  const T fixed = is_real<S> ? T(op.real) : T(op.whole);
  Register out{};
  for (int i = 0; i < lanes<S>(); ++i) {
    if (op.mask && !op.mask->byte[i * sizeof(S)]) continue;
    const T x = widen<T>(a[i]), y = op.has_scalar ? fixed : widen<T>(b[i]);
    bool holds = false;
    switch (Compare(op.mode)) {
      case Compare::eq: holds = x == y; break;
      case Compare::ne: holds = x != y; break;
      case Compare::lt: holds = x < y; break;
      case Compare::gt: holds = x > y; break;
      case Compare::ge: holds = x >= y; break;
      case Compare::le: holds = x <= y; break;
    }
    out.byte[i * sizeof(S)] = holds;
  }
  *op.out = out;
}

template <class S> void select(const RegOp& op) {
  const S *a = op.a->as<S>(), *b = op.b->as<S>();
  S result[lanes<S>()];
  for (int i = 0; i < lanes<S>(); ++i) result[i] = op.mask->byte[i * sizeof(S)] ? a[i] : b[i];
  std::copy(result, result + lanes<S>(), op.out->as<S>());
}

// Result in the first lane; a tree over the active lanes.
template <class S> bool reduce(const RegOp& op) {
  using T = Wide<S>;
  const Reduce kind = Reduce(op.mode);
  T x[lanes<S>()];
  int n = 0;
  for (int i = 0; i < lanes<S>(); ++i)
    if (!op.mask || op.mask->byte[i * sizeof(S)]) x[n++] = widen<T>(op.a->as<S>()[i]);
  if (n == 0) x[n++] = T(0);
  for (; n > 1; n = (n + 1) / 2)
    for (int i = 0; i < n / 2; ++i) {
      const T y = x[i + (n + 1) / 2];
      if (kind == Reduce::sum) x[i] = T(x[i] + y);
      else if (kind == Reduce::max) x[i] = x[i] > y || x[i] != x[i] ? x[i] : y;
      else if (kind == Reduce::min) x[i] = x[i] < y || x[i] != x[i] ? x[i] : y;
      else if constexpr (!is_real<S>) x[i] = T(x[i] ^ y);
      else return false;
    }
  std::memset(op.out->byte, 0, kRegister);
  op.out->as<S>()[0] = narrow<S>(x[0]);
  return true;
}

template <class S> void interleave(const RegOp& op) {
  constexpr int half = lanes<S>() / 2;
  const Register a = *op.a, b = *op.b;
  for (int i = 0; i < half; ++i) {
    op.out->as<S>()[2 * i] = a.as<S>()[i], op.out->as<S>()[2 * i + 1] = b.as<S>()[i];
    op.second->as<S>()[2 * i] = a.as<S>()[half + i], op.second->as<S>()[2 * i + 1] = b.as<S>()[half + i];
  }
}
template <class S> void deinterleave(const RegOp& op) {
  constexpr int half = lanes<S>() / 2;
  const Register a = *op.a, b = *op.b;
  for (int i = 0; i < half; ++i) {
    op.out->as<S>()[i] = a.as<S>()[2 * i], op.out->as<S>()[half + i] = b.as<S>()[2 * i];
    op.second->as<S>()[i] = a.as<S>()[2 * i + 1], op.second->as<S>()[half + i] = b.as<S>()[2 * i + 1];
  }
}

template <class S> void iota(const RegOp& op) {
  using T = Wide<S>;
  for (int i = 0; i < lanes<S>(); ++i) {
    const int64_t step = op.extra ? -i : i;
    op.out->as<S>()[i] = narrow<S>(is_real<S> ? T(op.real + double(step)) : T(op.whole + step));
  }
}

// Selects, shuffles and bitwise ops only look at the width of a lane.
template <class S> bool by_width(const RegOp& op) {
  switch (op.op) {
    case Reg::select: select<S>(op); return true;
    case Reg::interleave: interleave<S>(op); return true;
    case Reg::deinterleave: deinterleave<S>(op); return true;
    case Reg::bit_and: case Reg::bit_or: case Reg::bit_xor: case Reg::bit_not: bits_op<S>(op); return true;
    case Reg::first_lane:
      for (int i = lanes<S>() - 1; i >= 0; --i) op.out->as<S>()[i] = op.mask->byte[i * sizeof(S)] ? op.a->as<S>()[0] : S(0);
      return true;
    default: return false;
  }
}

template <class S> bool by_type(const RegOp& op) {
  switch (op.op) {
    case Reg::compare: compare<S>(op); return true;
    case Reg::reduce: return reduce<S>(op);
    case Reg::iota: iota<S>(op); return true;
    case Reg::multiply_add: {  // a * b + c
      using T = Wide<S>;
      RegOp product = op;
      Register held = *op.c;
      product.op = Reg::mul;
      each<S>(product, [](T x, T y) { return T(x * y); });
      RegOp sum = op;
      sum.a = op.out, sum.b = &held;
      each<S>(sum, [](T x, T y) { return T(x + y); });
      return true;
    }
    default:
      if constexpr (is_real<S>) return real_op<S>(op);
      else return whole_op<S>(op);
  }
}

// The operations on predicates themselves.
bool mask_op(const RegOp& op) {
  for (int i = 0; i < kRegister; ++i) {
    const uint8_t x = op.a->byte[i], y = op.b ? op.b->byte[i] : 0, on = op.mask ? op.mask->byte[i] : 1;
    switch (op.op) {
      case Reg::bit_and: op.out->byte[i] = x & y & on; break;
      case Reg::bit_or: op.out->byte[i] = (x | y) & on; break;
      case Reg::bit_xor: op.out->byte[i] = (x ^ y) & on; break;
      case Reg::bit_not: op.out->byte[i] = uint8_t((x ^ 1) & on); break;
      case Reg::select: op.out->byte[i] = on ? x : y; break;
      default: return false;
    }
  }
  return true;
}

}  // namespace

bool run_register_op(const RegOp& op) {
  if (op.op == Reg::convert) return convert_register(op);
  if (op.from == Type::bit) return mask_op(op);
  switch (bytes_of(op.from)) {
    case 1: if (by_width<uint8_t>(op)) return true; break;
    case 2: if (by_width<uint16_t>(op)) return true; break;
    case 4: if (by_width<uint32_t>(op)) return true; break;
    default: if (by_width<uint64_t>(op)) return true; break;
  }
  switch (op.from) {
    case Type::i8: return by_type<int8_t>(op);
    case Type::u8: return by_type<uint8_t>(op);
    case Type::i16: return by_type<int16_t>(op);
    case Type::u16: return by_type<uint16_t>(op);
    case Type::i32: return by_type<int32_t>(op);
    case Type::u32: return by_type<uint32_t>(op);
    case Type::i64: case Type::u64: return by_type<int64_t>(op);
    case Type::f16: return by_type<Half>(op);
    case Type::bf16: return by_type<Brain>(op);
    case Type::f32: return by_type<float>(op);
    default: return false;
  }
}

void fill_register(Register& out, Type type, double real, int64_t whole, const Register* mask) {
  if (type == Type::bit) { std::memset(out.byte, whole & 1, kRegister); return; }
  const int width = bytes_of(type);
  const int64_t raw = is_float(type) ? bits_of_number(type, real) : whole;
  for (int i = 0; i < kRegister; i += width) {
    const int64_t value = !mask || mask->byte[i] ? raw : 0;
    std::memcpy(out.byte + i, &value, size_t(width));
  }
}

void mask_register(Register& out, MaskPattern pattern, int64_t count, int lane_bytes) {
  std::memset(out.byte, 0, kRegister);
  const int n = kRegister / lane_bytes;
  for (int i = 0; i < n; ++i) {
    bool on = false;
    switch (pattern) {
      case MaskPattern::all: on = true; break;
      case MaskPattern::none: break;
      case MaskPattern::first: on = i < count; break;
      case MaskPattern::half: on = i < n / 2; break;
      case MaskPattern::quarter: on = i < n / 4; break;
      case MaskPattern::third: on = i % 3 == 0; break;
      case MaskPattern::fourth: on = i % 4 == 0; break;
    }
    out.byte[i * lane_bytes] = on;
  }
}

}  // namespace anychip
