// The machine's instructions. Python reads the names from the library (`machine_names`), so this file alone fixes numbers.
#pragma once
#include <cstdint>

namespace anychip {

// Scalar instructions: x = scalar registers, v = view registers, # = a number in the code. Dst comes first.
#define ANYCHIP_CODES(X)                                                                                               \
  X(halt)                                                                                                              \
  X(jump)            /* #target */                                                                                     \
  X(jump_if_not)     /* x #target */                                                                                   \
  X(jump_if)         /* x #target */                                                                                   \
  X(loop_test)       /* x:counter x:limit #exit: leaves when counter >= limit */                                       \
  X(move) X(move_view)                                                                                                 \
  X(add) X(sub) X(mul) X(bit_and) X(bit_or) X(bit_xor) X(shl) X(shr_s) X(shr_u)       /* x x x #bits */                \
  X(div_s) X(rem_s) X(div_u) X(rem_u) X(floor_div) X(ceil_div) X(floor_mod)           /* x x x #bits */                \
  X(max_s) X(min_s) X(max_u) X(min_u)                                                 /* x x x #bits */                \
  X(compare)         /* x x x #predicate #bits */                                                                      \
  X(select) X(select_view)                                                            /* d x:cond d d */               \
  X(sign_wrap) X(zero_wrap)                                                           /* x x #bits */                  \
  X(fadd) X(fsub) X(fmul) X(fdiv) X(fmax) X(fmin) X(frem) X(fpow)                     /* x x x #type */                \
  X(fcompare)        /* x x x #predicate */                                                                            \
  X(fmath)           /* x x #function #type */                                                                         \
  X(int_to_float) X(uint_to_float)                                                    /* x x #type #bits */            \
  X(float_to_int)    /* x x #bits */                                                                                   \
  X(float_round)     /* x x #type */                                                                                   \
  X(float_bits) X(bits_float)                                                         /* x x #type */                  \
  X(pointer)         /* v #space #type x:byte #rank x:size.. */                                                        \
  X(reinterpret)     /* v v x:offset #rank x:size.. x:stride.. */                                                      \
  X(subview)         /* v v #instruction #rank x:offset.. x:size.. x:stride.. #kept */                                 \
  X(byte_view)       /* v v x:shift #type #rank x:size.. */                                                            \
  X(retype)          /* v v #type */                                                                                   \
  X(collapse)        /* v v #instruction #groups #length.. */                                                          \
  X(expand)          /* v v #groups #length.. x:size.. */                                                              \
  X(transpose_view)  /* v v #rank #dim.. */                                                                            \
  X(metadata)        /* v v #rank x:offset x:size.. x:stride.. */                                                      \
  X(size_of)         /* x v x:dim */                                                                                   \
  X(load_element)    /* x v #instruction #rank x:index.. */                                                            \
  X(store_element)   /* x v #instruction #rank x:index.. */                                                            \
  X(block_index) X(sub_block_index) X(num_blocks)                                     /* x */                          \
  X(set_flag) X(wait_flag)  /* #instruction #set_pipe #wait_pipe #event x:event (event -1: take the register) */       \
  X(barrier)         /* #instruction #pipe */                                                                          \
  X(sync_set) X(sync_wait)  /* #instruction #pipe #flag x:flag (flag -1: take the register) */                         \
  X(tile)            /* #op #instruction #inputs #outputs #scratch (#type or -1, register).. #attributes .. */         \
  X(fail)            /* #instruction: an assertion that may not be reached */                                          \
  X(move_register)   /* r r: vector registers of the 950 */                                                            \
  X(reg_op)          /* #instruction #op #name r r:second r:third r:mask x:scalar #from #to #mode #extra */             \
  X(reg_fill)        /* #instruction r x #type r:mask */                                                               \
  X(reg_lane)        /* x r #type: the first lane as a scalar */                                                       \
  X(reg_load)        /* #instruction r r:second v #pattern #type #rank x:index.. */                                    \
  X(reg_store)       /* #instruction r r:mask v #pattern #type #rank x:index.. */                                      \
  X(reg_mask)        /* r #pattern #lane_bytes */                                                                      \
  X(reg_count)       /* r x:left x:number #lane_bytes: the first lanes, as many as the number */

// Tile ops. Attributes follow in the order that lower_tile.py gives.
#define ANYCHIP_TILE_OPS(X)                                                                                            \
  X(vadd) X(vsub) X(vmul) X(vdiv) X(vmax) X(vmin) X(vmod) X(vmodui) X(vpow) X(vldexp)                                  \
  X(vand) X(vor) X(vxor) X(vnot) X(vshl) X(vshr) X(vmulext) X(vmulextui)                                               \
  X(vexp) X(vexp2) X(vexpm1) X(vln) X(vlog2) X(vlog10) X(vlog1p) X(vsqrt) X(vrsqrt) X(vrec) X(vabs) X(vrelu)           \
  X(vtanh) X(vsin) X(vcos) X(vtan) X(vatan) X(verf) X(vilogb) X(visinf) X(visnan)                                      \
  X(vcmp) X(vsel) X(vcast) X(vbrc) X(vreduce) X(varange) X(vsort) X(vgather) X(vgathermask)                            \
  X(vcumsum) X(vcumprod) X(vcummax) X(vcummin) X(vinterleave) X(vdeinterleave) X(vtranspose) X(vflip) X(vpad)          \
  X(vconcat) X(copy) X(load) X(store) X(nd2nz) X(nz2nd) X(mmadL1) X(load_l0a) X(load_l0b) X(mad) X(fixpipe)            \
  X(atomic_cas) X(atomic_xchg) X(atomic_rmw) X(load_element) X(store_element)                                          \
  X(set_flag) X(wait_flag) X(pipe_barrier) X(sync_block_set) X(sync_block_wait)                                        \
  X(vload) X(masked_store) X(broadcast) X(register_op)

#define ANYCHIP_ENUM(name) name,
enum class Code : int32_t { ANYCHIP_CODES(ANYCHIP_ENUM) count };
enum class TileOpCode : int16_t { ANYCHIP_TILE_OPS(ANYCHIP_ENUM) count };
#undef ANYCHIP_ENUM

// Functions of `fmath`, in the order that lower_scalar.py gives.
enum class Math : int32_t { neg, abs, sqrt, rsqrt, exp, exp2, log, log2, sin, cos, tanh, erf, floor, ceil, round_even, trunc, log1p, expm1 };

enum class Round : int32_t { rint, round, floor, ceil, trunc, odd, trunc_overflow };
enum class Compare : int32_t { eq, ne, lt, gt, ge, le };
enum class Reduce : int32_t { sum, prod, max, min, max_left, max_right, min_left, min_right, any, all, xori, ori, andi };
enum class Reg : int32_t {
  add, sub, mul, div, max, min, mod, bit_and, bit_or, bit_xor, bit_not, shl, shr, neg, abs, exp, exp_difference, ln,
  sqrt, rsqrt, relu, multiply_add, compare, select, convert, rounded, reduce, iota, interleave, deinterleave, first_lane
};
enum class LoadPattern : int32_t { norm, brc, unpack2, unpack4, deinterleave, upsample, downsample, mask };
enum class StorePattern : int32_t { norm, one, pack2, pack4, mask };
enum class MaskPattern : int32_t { all, none, first, half, quarter, third, fourth };
enum class Atomic : int32_t { none, add, max, min, bit_and, bit_or, bit_xor, cas, xchg, umax, umin };

}  // namespace anychip
