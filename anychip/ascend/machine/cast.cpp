// vcast: every pair of element types, in every rounding mode.
#include "blocks.h"
#include "convert.h"

namespace anychip {
namespace {

template <Round mode> void integral(const float* in, float* out, int n) {
  for (int i = 0; i < n; ++i) {
    const float x = in[i];
    out[i] = mode == Round::floor ? std::floor(x) : mode == Round::ceil ? std::ceil(x)
           : mode == Round::round ? std::round(x) : mode == Round::rint ? std::nearbyint(x) : std::trunc(x);
  }
}
void to_integral(const float* in, float* out, int n, Round mode) {
  switch (mode) {
    case Round::floor: return integral<Round::floor>(in, out, n);
    case Round::ceil: return integral<Round::ceil>(in, out, n);
    case Round::round: return integral<Round::round>(in, out, n);
    case Round::rint: return integral<Round::rint>(in, out, n);
    default: return integral<Round::trunc>(in, out, n);
  }
}

// Float to integer: rounds, then saturates (or wraps in the mode trunc_overflow); NaN gives 0.
void float_to_int(const float* in, int64_t* out, int n, Round mode, Type to) {
  float whole[kBlock];
  to_integral(in, whole, n, mode);
  const bool wraps = mode == Round::trunc_overflow;
  const int bits = bits_of(to);
  const double low = is_unsigned(to) ? 0 : -std::ldexp(1.0, bits - 1);
  const double high = is_unsigned(to) ? std::ldexp(1.0, bits) - 1 : std::ldexp(1.0, bits - 1) - 1;
  for (int i = 0; i < n; ++i) {
    const double x = whole[i];
    if (x != x) { out[i] = 0; continue; }
    if (wraps && std::fabs(x) < 9.2e18) { out[i] = wrap(int64_t(x), bits); continue; }
    const double held = x < low ? low : x > high ? high : x;
    out[i] = held >= 9.2233720368547758e18 ? std::numeric_limits<int64_t>::max() : int64_t(held);
  }
}

void float_to_float(TileOp& op, Walk& walk, Round mode) {
  const Type from = op.in().type(), to = op.out().type();
  float first[kBlock], result[kBlock];
  walk.run([&](const Block& b) {
    const float* x = fetch(walk, b, 0, first);
    const int n = b.total();
    if (from == to) {  // same format: rounds to an integral number
      to_integral(x, result, n, mode);
      return put(walk, b, 1, result);
    }
    if (bits_of(from) > bits_of(to) && mode != Round::rint) {
      for (int i = 0; i < n; ++i) result[i] = round_narrow(x[i], to, mode);
      return put(walk, b, 1, result);
    }
    put(walk, b, 1, x);
  });
}

void from_float(TileOp& op, Walk& walk, Round mode) {
  const Type to = op.out().type();
  float first[kBlock];
  int64_t result[kBlock];
  walk.run([&](const Block& b) {
    const float* x = fetch(walk, b, 0, first);
    const int n = b.total();
    if (to == Type::bit) for (int i = 0; i < n; ++i) result[i] = x[i] != 0;
    else float_to_int(x, result, n, mode, to);
    put(walk, b, 1, result);
  });
}

void to_float(TileOp& op, Walk& walk) {
  float result[kBlock];
  int64_t buffer[kBlock];
  walk.run([&](const Block& b) {
    const int64_t* x = fetch(walk, b, 0, buffer);
    const int n = b.total();
    if (op.out().type() == Type::f32) for (int i = 0; i < n; ++i) result[i] = float(x[i]);
    else for (int i = 0; i < n; ++i) result[i] = odd_float(x[i]);
    put(walk, b, 1, result);
  });
}

void int_to_int(TileOp& op, Walk& walk) {
  const bool mask = op.out().type() == Type::bit;
  int64_t buffer[kBlock], result[kBlock];
  walk.run([&](const Block& b) {
    const int64_t* x = fetch(walk, b, 0, buffer);
    if (!mask) return put(walk, b, 1, x);
    for (int i = 0; i < b.total(); ++i) result[i] = x[i] != 0;
    put(walk, b, 1, result);
  });
}

}  // namespace

// Attributes: [signed, rounding mode, permutation of the input if transposed].
void run_cast(TileOp& op) {
  const auto mode = Round(op.attribute[1]);
  if (!op.attribute[0]) {
    op.in().view.type = unsigned_of(op.in().type());
    op.out().view.type = unsigned_of(op.out().type());
  }
  Walk walk(op.out().view);
  walk.add(op, op.in(), op.attributes > 2 ? op.attribute + 2 : nullptr);
  walk.add(op, op.out());
  const bool from = is_float(op.in().type()), to = is_float(op.out().type());
  if (from && to) float_to_float(op, walk, mode);
  else if (from) from_float(op, walk, mode);
  else if (to) to_float(op, walk);
  else int_to_int(op, walk);
}

}  // namespace anychip
