// Element-wise ops: arithmetic, maths, bits, comparison, selection. Halves and brains are computed in float and rounded
// once, which gives the same result as arithmetic in their own format for + - * / and square root.
#include "blocks.h"
#include "maths.h"

namespace anychip {
namespace {

#if defined(__clang__) || defined(__GNUC__)
#define RESTRICT __restrict__
#else
#define RESTRICT
#endif

template <class T> using Binary = void (*)(const T* RESTRICT, const T* RESTRICT, T* RESTRICT, int);
#define LOOP(T, expression) \
  [](const T* RESTRICT a, const T* RESTRICT b, T* RESTRICT out, int n) { \
    for (int i = 0; i < n; ++i) { const T x = a[i], y = b[i]; (void)x; (void)y; out[i] = T(expression); } }

// Both NaN-propagating, as the chip's reductions and the compiler's expansions expect.
template <class T> T larger(T x, T y) { return x > y || x != x ? x : y; }
template <class T> T smaller(T x, T y) { return x < y || x != x ? x : y; }

Binary<float> float_op(TileOpCode code) {
  switch (code) {
    case TileOpCode::vadd: return LOOP(float, x + y);
    case TileOpCode::vsub: return LOOP(float, x - y);
    case TileOpCode::vmul: return LOOP(float, x * y);
    case TileOpCode::vdiv: return LOOP(float, x / y);
    case TileOpCode::vmax: return LOOP(float, larger(x, y));
    case TileOpCode::vmin: return LOOP(float, smaller(x, y));
    case TileOpCode::vmod: return LOOP(float, std::fmod(x, y));
    case TileOpCode::vpow: return LOOP(float, std::pow(x, y));
    case TileOpCode::vldexp: return LOOP(float, x * std::exp2(y));
    case TileOpCode::vexp: return LOOP(float, fast_exp(x));
    case TileOpCode::vexp2: return LOOP(float, std::exp2(x));
    case TileOpCode::vexpm1: return LOOP(float, std::expm1(x));
    case TileOpCode::vln: return LOOP(float, fast_log(x));
    case TileOpCode::vlog2: return LOOP(float, std::log2(x));
    case TileOpCode::vlog10: return LOOP(float, std::log10(x));
    case TileOpCode::vlog1p: return LOOP(float, std::log1p(x));
    case TileOpCode::vsqrt: return LOOP(float, std::sqrt(x));
    case TileOpCode::vrsqrt: return LOOP(float, 1.0f / std::sqrt(x));
    case TileOpCode::vrec: return LOOP(float, 1.0f / x);
    case TileOpCode::vabs: return LOOP(float, std::fabs(x));
    case TileOpCode::vrelu: return LOOP(float, larger(x, 0.0f));
    case TileOpCode::vtanh: return LOOP(float, std::tanh(x));
    case TileOpCode::vsin: return LOOP(float, std::sin(x));
    case TileOpCode::vcos: return LOOP(float, std::cos(x));
    case TileOpCode::vtan: return LOOP(float, std::tan(x));
    case TileOpCode::vatan: return LOOP(float, std::atan(x));
    case TileOpCode::verf: return LOOP(float, std::erf(x));
    case TileOpCode::visinf: return LOOP(float, std::isinf(x) ? 1 : 0);
    case TileOpCode::visnan: return LOOP(float, std::isnan(x) ? 1 : 0);
    case TileOpCode::vilogb: return LOOP(float, std::logb(x));
    default: return nullptr;
  }
}

// Integers in T, wrapping. Division truncates; by zero gives -1 (all bits), as the chip's scalar unit does.
template <class T> Binary<T> int_op(TileOpCode code) {
  using U = std::make_unsigned_t<T>;
  switch (code) {
    case TileOpCode::vadd: return LOOP(T, U(x) + U(y));
    case TileOpCode::vsub: return LOOP(T, U(x) - U(y));
    case TileOpCode::vmul: return LOOP(T, U(x) * U(y));
    case TileOpCode::vdiv: return LOOP(T, y == 0 ? T(-1) : y == T(-1) ? T(U(0) - U(x)) : T(x / y));
    case TileOpCode::vmod: case TileOpCode::vmodui: return LOOP(T, y == 0 || y == T(-1) ? T(y ? 0 : x) : T(x % y));
    case TileOpCode::vmax: return LOOP(T, x > y ? x : y);
    case TileOpCode::vmin: return LOOP(T, x < y ? x : y);
    case TileOpCode::vand: return LOOP(T, x & y);
    case TileOpCode::vor: return LOOP(T, x | y);
    case TileOpCode::vxor: return LOOP(T, x ^ y);
    case TileOpCode::vnot: return LOOP(T, ~x);
    case TileOpCode::vabs: return LOOP(T, x < 0 ? U(0) - U(x) : U(x));
    case TileOpCode::vrelu: return LOOP(T, x > 0 ? x : T(0));
    case TileOpCode::vshl: return LOOP(T, U(y) < sizeof(T) * 8 ? U(x) << U(y) : U(0));
    case TileOpCode::vshr: return LOOP(T, x >> (U(y) < sizeof(T) * 8 ? U(y) : U(sizeof(T) * 8 - 1)));
    default: return nullptr;
  }
}

template <class T> void apply(TileOp& op, Binary<T> loop, const int32_t* order) {
  if (!loop) op.fail("this tile op has no form for its element type");
  Walk walk(op.out().view);
  for (int i = 0; i < op.inputs; ++i) walk.add(op, op.in(i), order);
  walk.add(op, op.out());
  const bool two = op.inputs > 1;
  T first[kBlock], second[kBlock], result[kBlock];
  walk.run([&](const Block& b) {
    const T* x = fetch(walk, b, 0, first);
    const T* y = two ? fetch(walk, b, 1, second) : x;
    T* out = place(walk, b, op.inputs, result);
    loop(x, y, out, b.total());
    put(walk, b, op.inputs, out);
  });
}

// Bits: byte-wise where all tiles are whole bytes in one run, else one integer for each bit.
bool as_bytes(TileOp& op) {
  for (const Operand& o : op.operand) {
    if (o.scratch) continue;
    if (o.scalar || o.type() != Type::bit || o.bit % 8 || o.view.rank != op.out().view.rank) return false;
    const Access a = describe(o.view, Space::ub, 0, false);
    if (a.dims || o.view.elements() != op.out().view.elements() || o.view.elements() % 8) return false;
  }
  for (Operand& o : op.operand) {
    if (o.scratch) continue;
    o.data += o.bit / 8;
    const int64_t n = o.view.elements() / 8;
    o.view = View{o.view.buffer, Type::u8, 1, 0, 0, {n}, {1}};
  }
  return true;
}

template <class T> bool holds(Compare mode, T x, T y) {
  switch (mode) {
    case Compare::eq: return x == y;
    case Compare::ne: return x != y;
    case Compare::lt: return x < y;
    case Compare::gt: return x > y;
    case Compare::ge: return x >= y;
    default: return x <= y;
  }
}
template <class T, Compare mode> void compare_block(const T* RESTRICT x, const T* RESTRICT y, uint8_t* RESTRICT out, int n) {
  for (int i = 0; i < n; ++i) out[i] = uint8_t(holds(mode, x[i], y[i]));
}
template <class T> auto compare_loop(Compare mode) {
  switch (mode) {
    case Compare::eq: return compare_block<T, Compare::eq>;
    case Compare::ne: return compare_block<T, Compare::ne>;
    case Compare::lt: return compare_block<T, Compare::lt>;
    case Compare::gt: return compare_block<T, Compare::gt>;
    case Compare::ge: return compare_block<T, Compare::ge>;
    default: return compare_block<T, Compare::le>;
  }
}

template <class T> void compare(TileOp& op, Compare mode, const int32_t* order) {
  Walk walk(op.out().view);
  walk.add(op, op.in(0), order), walk.add(op, op.in(1), order), walk.add(op, op.out());
  auto loop = compare_loop<T>(mode);
  T first[kBlock], second[kBlock];
  uint8_t mask[kBlock];
  walk.run([&](const Block& b) {
    loop(fetch(walk, b, 0, first), fetch(walk, b, 1, second), mask, b.total());
    put_mask(walk, b, 2, mask);
  });
}

template <class T> void choose(TileOp& op, const int32_t* order) {
  Walk walk(op.out().view);
  for (int i = 0; i < 3; ++i) walk.add(op, op.in(i), order);
  walk.add(op, op.out());
  T first[kBlock], second[kBlock], result[kBlock];
  uint8_t mask[kBlock];
  walk.run([&](const Block& b) {
    fetch_mask(walk, b, 0, mask);
    const T *x = fetch(walk, b, 1, first), *y = fetch(walk, b, 2, second);
    T* out = place(walk, b, 3, result);
    const int n = b.total();
    for (int i = 0; i < n; ++i) out[i] = mask[i] ? x[i] : y[i];
    put(walk, b, 3, out);
  });
}

// The widest view of the values: u32 needs 64 bits to divide, compare and convert as unsigned.
bool needs_64(const TileOp& op) {
  for (const Operand& o : op.operand)
    if (!o.scratch && (bits_of(o.type()) == 64 || o.type() == Type::u32)) return true;
  return false;
}

void make_unsigned(TileOp& op) {
  for (Operand& o : op.operand) {
    if (o.scalar && !is_float(o.type())) o.value.i = int64_t(zero_extend(o.value.i, bits_of(o.type())));
    o.view.type = unsigned_of(o.type());
  }
}

// vmulext: the high half of the product of 32-bit integers.
void multiply_high(TileOp& op) {
  const int bits = bits_of(op.out().type());
  if (bits > 32) op.fail("the high half of a 64-bit product is not known to this machine");
  Walk walk(op.out().view);
  walk.add(op, op.in(0)), walk.add(op, op.in(1)), walk.add(op, op.out());
  int64_t first[kBlock], second[kBlock], result[kBlock];
  walk.run([&](const Block& b) {
    const int64_t *x = fetch(walk, b, 0, first), *y = fetch(walk, b, 1, second);
    for (int i = 0; i < b.total(); ++i) result[i] = int64_t(uint64_t(x[i]) * uint64_t(y[i])) >> bits;
    put(walk, b, 2, result);
  });
}

}  // namespace

// Attributes: [signed, comparison mode (vcmp), then the permutation of the inputs if they are transposed].
void run_elementwise(TileOp& op) {
  const bool is_signed = op.attributes < 1 || op.attribute[0] != 0;
  const auto mode = Compare(op.attributes > 1 ? op.attribute[1] : 0);
  const int32_t* order = op.attributes > 2 ? op.attribute + 2 : nullptr;
  if (op.out().view.rank && op.attributes > 2 && op.attributes - 2 != op.out().view.rank) op.fail("transpose of another rank");
  if (!is_signed) make_unsigned(op);
  const Type type = op.in(op.code == TileOpCode::vsel ? 1 : 0).type();
  if (op.code == TileOpCode::vcmp) {
    if (is_float(type)) return compare<float>(op, mode, order);
    return needs_64(op) ? compare<int64_t>(op, mode, order) : compare<int32_t>(op, mode, order);
  }
  if (op.code == TileOpCode::vsel) return bits_of(op.out().type()) == 64 ? choose<int64_t>(op, order) : choose<int32_t>(op, order);
  if (op.code == TileOpCode::vmulext || op.code == TileOpCode::vmulextui) return multiply_high(op);
  const bool bitwise = op.code >= TileOpCode::vand && op.code <= TileOpCode::vnot;
  if (bitwise && type == Type::bit && !order) as_bytes(op);
  if (is_float(type) && !bitwise) return apply<float>(op, float_op(op.code), order);
  if (needs_64(op)) return apply<int64_t>(op, int_op<int64_t>(op.code), order);
  if (op.code == TileOpCode::vnot && op.out().type() == Type::bit)
    return apply<int32_t>(op, LOOP(int32_t, x ^ 1), order);
  apply<int32_t>(op, int_op<int32_t>(op.code), order);
}

}  // namespace anychip
