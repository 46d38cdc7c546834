// Walks strided tiles in dense blocks of at most kBlock elements: fetch converts a block of an operand to the type that
// the op computes in, put converts back. One engine for every element-wise op, so that ops are plain loops.
#pragma once
#include <algorithm>

#include "tile.h"

namespace anychip {

constexpr int kBlock = 1024, kMaxTiles = 6;

// One operand of a walk: where its element 0 lies and its strides in the walk's dimensions.
struct Lane {
  const Operand* operand;
  int64_t stride[kMaxDims];
};

struct Block {
  int rows;       // rows of `n` elements each; dense blocks hold rows * n elements
  int64_t n;
  int64_t offset[kMaxTiles][kBlock];  // element offset of each row, for each lane
  int64_t inner[kMaxTiles];           // stride between elements of a row
  int total() const { return int(rows * n); }
};

struct Walk {
  int rank = 0, lanes = 0;
  int64_t size[kMaxDims];
  Lane lane[kMaxTiles];

  Walk(const View& shape) : rank(shape.rank) { std::copy(shape.size, shape.size + shape.rank, size); }

  // Adds a tile whose dimension d is the walk's dimension d; a size of 1 is broadcast. `order`: its dimensions permuted.
  void add(const TileOp& op, const Operand& operand, const int32_t* order = nullptr) {
    Lane& l = lane[lanes++];
    l.operand = &operand;
    const View& v = operand.view;
    if (operand.scalar) { std::fill(l.stride, l.stride + rank, 0); return; }
    if (v.rank != rank) op.fail("operands of ranks " + std::to_string(v.rank) + " and " + std::to_string(rank));
    for (int d = 0; d < rank; ++d) {
      const int s = order ? order[d] : d;
      if (v.size[s] != size[d] && v.size[s] != 1)
        op.fail("operand size " + std::to_string(v.size[s]) + " against " + std::to_string(size[d]));
      l.stride[d] = v.size[s] == 1 ? 0 : v.stride[s];
    }
  }

  // Drops dimensions of size 1 and joins those that every lane passes through in one stride.
  void simplify() {
    int n = 0;
    for (int d = 0; d < rank; ++d) {
      if (size[d] == 1) continue;
      bool joins = n > 0;
      for (int k = 0; joins && k < lanes; ++k) joins = lane[k].stride[n - 1] == lane[k].stride[d] * size[d];
      if (joins) {
        size[n - 1] *= size[d];
        for (int k = 0; k < lanes; ++k) lane[k].stride[n - 1] = lane[k].stride[d];
      } else {
        size[n] = size[d];
        for (int k = 0; k < lanes; ++k) lane[k].stride[n] = lane[k].stride[d];
        ++n;
      }
    }
    rank = n;
  }

  // Calls f(block) for consecutive blocks in row-major order.
  template <class F> void run(F f) {
    for (int d = 0; d < rank; ++d)
      if (size[d] <= 0) return;
    simplify();
    Block block;
    const int64_t inner = rank ? size[rank - 1] : 1;
    int64_t rows = 1, at[kMaxDims] = {}, start[kMaxTiles] = {};
    for (int d = 0; d + 1 < rank; ++d) rows *= size[d];
    for (int k = 0; k < lanes; ++k) block.inner[k] = rank ? lane[k].stride[rank - 1] : 0;
    const int64_t group = inner >= 128 ? 1 : std::max<int64_t>(1, kBlock / inner);
    for (int64_t r = 0; r < rows;) {
      block.rows = int(std::min(group, rows - r));
      for (int i = 0; i < block.rows; ++i) {
        for (int k = 0; k < lanes; ++k) block.offset[k][i] = start[k];
        for (int d = rank - 2; d >= 0; --d) {
          for (int k = 0; k < lanes; ++k) start[k] += lane[k].stride[d];
          if (++at[d] < size[d]) break;
          at[d] = 0;
          for (int k = 0; k < lanes; ++k) start[k] -= lane[k].stride[d] * size[d];
        }
      }
      r += block.rows;
      if (inner <= kBlock) { block.n = inner; f(block); continue; }
      for (int64_t c = 0; c < inner; c += kBlock) {
        block.n = std::min<int64_t>(kBlock, inner - c);
        f(block);
        for (int k = 0; k < lanes; ++k) block.offset[k][0] += kBlock * block.inner[k];
      }
    }
  }
};

namespace detail {
template <class T, class S> void fetch_rows(const S* data, const Block& b, int k, T* out) {
  const int64_t step = b.inner[k];
  for (int r = 0; r < b.rows; ++r, out += b.n) {
    const S* from = data + b.offset[k][r];
    if (step == 1) for (int64_t i = 0; i < b.n; ++i) out[i] = widen<T>(from[i]);
    else for (int64_t i = 0; i < b.n; ++i) out[i] = widen<T>(from[i * step]);
  }
}
template <class S, class T> void put_rows(S* data, const Block& b, int k, const T* in) {
  const int64_t step = b.inner[k];
  for (int r = 0; r < b.rows; ++r, in += b.n) {
    S* to = data + b.offset[k][r];
    if (step == 1) for (int64_t i = 0; i < b.n; ++i) to[i] = narrow<S>(in[i]);
    else for (int64_t i = 0; i < b.n; ++i) to[i * step] = narrow<S>(in[i]);
  }
}
template <class T> void fetch_bits(const uint8_t* data, int64_t first, const Block& b, int k, T* out) {
  for (int r = 0; r < b.rows; ++r)
    for (int64_t i = 0, at = first + b.offset[k][r]; i < b.n; ++i, at += b.inner[k]) *out++ = T((data[at >> 3] >> (at & 7)) & 1);
}
template <class T> void put_bits(uint8_t* data, int64_t first, const Block& b, int k, const T* in) {
  for (int r = 0; r < b.rows; ++r) {
    int64_t i = 0, at = first + b.offset[k][r];
    if (b.inner[k] == 1 && (at & 7) == 0)
      for (; i + 8 <= b.n; i += 8, at += 8, in += 8) {
        uint8_t byte = 0;
        for (int j = 0; j < 8; ++j) byte |= uint8_t(in[j] != T(0)) << j;
        data[at >> 3] = byte;
      }
    for (; i < b.n; ++i, at += b.inner[k], ++in) {
      const uint8_t mask = uint8_t(1u << (at & 7));
      if (*in != T(0)) data[at >> 3] |= mask;
      else data[at >> 3] &= uint8_t(~mask);
    }
  }
}
template <class T> constexpr Type native() {
  return sizeof(T) == 8 ? Type::i64 : T(0.5) != T(0) ? Type::f32 : Type::i32;
}
}  // namespace detail

// Dense block of an operand in T. Returns the operand's own memory where it is dense and of that type.
// Integer types read floats as their bit patterns; a float type reads integers as numbers.
template <class T> const T* fetch(const Walk& w, const Block& b, int k, T* buffer) {
  const Operand& o = *w.lane[k].operand;
  if (o.scalar) {
    constexpr bool number = detail::native<T>() == Type::f32;
    const T x = !is_float(o.type()) ? T(o.value.i) : number ? T(o.value.f) : T(bits_of_number(o.type(), o.value.f));
    std::fill(buffer, buffer + b.total(), x);
    return buffer;
  }
  if (o.type() == detail::native<T>() && b.rows == 1 && b.inner[k] == 1)
    return reinterpret_cast<const T*>(o.data) + b.offset[k][0];
  switch (o.type()) {
    case Type::bit: detail::fetch_bits(o.data, o.bit, b, k, buffer); break;
    case Type::i8: detail::fetch_rows(reinterpret_cast<const int8_t*>(o.data), b, k, buffer); break;
    case Type::u8: detail::fetch_rows(reinterpret_cast<const uint8_t*>(o.data), b, k, buffer); break;
    case Type::i16: detail::fetch_rows(reinterpret_cast<const int16_t*>(o.data), b, k, buffer); break;
    case Type::u16: detail::fetch_rows(reinterpret_cast<const uint16_t*>(o.data), b, k, buffer); break;
    case Type::i32: detail::fetch_rows(reinterpret_cast<const int32_t*>(o.data), b, k, buffer); break;
    case Type::u32: detail::fetch_rows(reinterpret_cast<const uint32_t*>(o.data), b, k, buffer); break;
    case Type::i64: case Type::u64: detail::fetch_rows(reinterpret_cast<const int64_t*>(o.data), b, k, buffer); break;
    case Type::f16: detail::fetch_rows(reinterpret_cast<const Half*>(o.data), b, k, buffer); break;
    case Type::bf16: detail::fetch_rows(reinterpret_cast<const Brain*>(o.data), b, k, buffer); break;
    case Type::f32: detail::fetch_rows(reinterpret_cast<const float*>(o.data), b, k, buffer); break;
  }
  return buffer;
}

// Where to compute an output block: its own memory if dense and of type T, else `buffer` (then call `put`).
template <class T> T* place(const Walk& w, const Block& b, int k, T* buffer) {
  const Operand& o = *w.lane[k].operand;
  if (o.type() == detail::native<T>() && b.rows == 1 && b.inner[k] == 1) return reinterpret_cast<T*>(o.data) + b.offset[k][0];
  return buffer;
}

template <class T> void put(const Walk& w, const Block& b, int k, const T* in) {
  const Operand& o = *w.lane[k].operand;
  if (o.type() == detail::native<T>() && b.rows == 1 && b.inner[k] == 1) {
    T* to = reinterpret_cast<T*>(o.data) + b.offset[k][0];
    if (to != in) std::memcpy(to, in, b.n * sizeof(T));
    return;
  }
  switch (o.type()) {
    case Type::bit: detail::put_bits(o.data, o.bit, b, k, in); break;
    case Type::i8: case Type::u8: detail::put_rows(reinterpret_cast<int8_t*>(o.data), b, k, in); break;
    case Type::i16: case Type::u16: detail::put_rows(reinterpret_cast<int16_t*>(o.data), b, k, in); break;
    case Type::i32: case Type::u32: detail::put_rows(reinterpret_cast<int32_t*>(o.data), b, k, in); break;
    case Type::i64: case Type::u64: detail::put_rows(reinterpret_cast<int64_t*>(o.data), b, k, in); break;
    case Type::f16: detail::put_rows(reinterpret_cast<Half*>(o.data), b, k, in); break;
    case Type::bf16: detail::put_rows(reinterpret_cast<Brain*>(o.data), b, k, in); break;
    case Type::f32: detail::put_rows(reinterpret_cast<float*>(o.data), b, k, in); break;
  }
}

// Masks (i1 in bits, or any integer: not zero) as bytes 0 and 1, and back.
inline void fetch_mask(const Walk& w, const Block& b, int k, uint8_t* mask) {
  const Operand& o = *w.lane[k].operand;
  if (!o.scalar && o.type() == Type::bit) {
    if (b.rows == 1 && b.inner[k] == 1 && (o.bit + b.offset[k][0]) % 8 == 0) {
      const uint8_t* from = o.data + ((o.bit + b.offset[k][0]) >> 3);
      for (int i = 0; i < b.total(); ++i) mask[i] = (from[i >> 3] >> (i & 7)) & 1;
      return;
    }
    return detail::fetch_bits(o.data, o.bit, b, k, mask);
  }
  int32_t wide[kBlock];
  const int32_t* from = fetch(w, b, k, wide);
  for (int i = 0; i < b.total(); ++i) mask[i] = from[i] != 0;
}
inline void put_mask(const Walk& w, const Block& b, int k, const uint8_t* mask) {
  const Operand& o = *w.lane[k].operand;
  if (o.type() == Type::bit) return detail::put_bits(o.data, o.bit, b, k, mask);
  int32_t wide[kBlock];
  for (int i = 0; i < b.total(); ++i) wide[i] = mask[i];
  put(w, b, k, wide);
}

}  // namespace anychip
