"""Number formats of V4's weights and of the chips: FP8 and FP4 with power-of-two block scales, and fp32 rounding.

E4M3, E2M1 and E8M0 are the OCP Microscaling formats (MX v1.0); block sizes, scale rules and the order of the
nibbles are those of the publisher's inference/kernel.py and convert.py. A block of 128x128 (weights), 1x128 or
1x64 (activations) shares one FP8 scale; 32 neighbours of a row share one FP4 scale. All scales are powers of two,
so dequantising to fp32 or bf16 is exact. Everything is vectorised torch; tensors stay on their device.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError, nearest

E4M3, E8M0 = torch.float8_e4m3fn, torch.float8_e8m0fnu
E4M3_MAX, E2M1_MAX = 448.0, 6.0
FP8_AMAX_FLOOR = 1e-4  # kernel.py act_quant: a block of smaller values is scaled as if it held this one
FP4_MIN_EXPONENT = -126  # kernel.py fp4_act_quant: amax is at least 6 * 2^-126
FP8_WEIGHT_BLOCK, FP8_ACTIVATION_BLOCK, FP4_BLOCK = (128, 128), (1, 128), (1, 32)

# Mantissa bits kept of fp32's 23 by the matrix units' input formats (NVIDIA's TF32; Huawei's HF32).
_MANTISSA_BITS = {"tf32": 10, "hf32": 11}
_STORED = {"bf16": torch.bfloat16, "fp16": torch.float16}
ROUNDINGS = ("fp32", *_STORED, *_MANTISSA_BITS)


class Quantized(NamedTuple):
    """Codes (E4M3 [..., m, n], or packed E2M1 int8 [..., m, n/2]) and their E8M0 scales, one a block."""

    codes: Tensor
    scale: Tensor


# ---------------------------------------------------------------------------------------------- scales (E8M0)


def encode_e8m0(exponent: Tensor) -> Tensor:
    """Return 2^exponent as E8M0; int exponents are clamped to -127..127. Code 255 (NaN) is never made here."""
    return (exponent.clamp(-127, 127) + 127).to(torch.uint8).view(E8M0)


def decode_e8m0(scale: Tensor) -> Tensor:
    """Return E8M0 codes (float8_e8m0fnu, or their bytes) as fp32: 2^(code-127) exactly, NaN for code 255."""
    code = scale.view(torch.uint8).to(torch.int32)
    bits = torch.where(code == 0, 1 << 22, code << 23)  # 2^-127 is a denormal of fp32
    return bits.masked_fill(code == 255, 0x7FC00000).view(torch.float32)


def ceil_log2_ratio(amax: Tensor, limit: float) -> Tensor:
    """Return ceil(log2(amax / limit)) for positive finite fp32, int32, by exact exponent arithmetic.

    amax = m 2^e and limit = m' 2^e' with mantissas in [0.5, 1): the answer is e - e', plus 1 where m > m'.
    """
    mantissa, exponent = torch.frexp(amax)
    limit_mantissa, limit_exponent = torch.frexp(torch.tensor(limit, dtype=torch.float64))
    return exponent - int(limit_exponent) + (mantissa > float(limit_mantissa)).to(torch.int32)


def fp8_scale(x: Tensor, block: tuple[int, int]) -> Tensor:
    """Return each block's E8M0 scale 2^ceil(log2(max(amax, 1e-4) / 448)); NaN where the block is not finite."""
    amax = _block_amax(x, block)
    return _scale_or_nan(ceil_log2_ratio(amax.clamp_min(FP8_AMAX_FLOOR), E4M3_MAX), amax)


def fp8_fitted_scale(x: Tensor, block: tuple[int, int]) -> Tensor:
    """Return each block's fp32 scale amax / 448 (at least 2^-126): the largest value's code is 448.

    Source: DeepSeek-V3's inference/kernel.py; its published weights, Qwen3's and GLM's have such scales.
    """
    return (_block_amax(x, block) / E4M3_MAX).clamp_min(2.0**-126)


def fp4_scale(x: Tensor) -> Tensor:
    """Return the E8M0 scale 2^ceil(log2(amax / 6)), at least 2^-126, of each 32; NaN where they are not finite."""
    amax = _block_amax(x, FP4_BLOCK)
    exponent = ceil_log2_ratio(amax, E2M1_MAX).clamp_min(FP4_MIN_EXPONENT)
    return _scale_or_nan(exponent.masked_fill(amax == 0, FP4_MIN_EXPONENT), amax)


def _scale_or_nan(exponent: Tensor, amax: Tensor) -> Tensor:
    code = encode_e8m0(exponent).view(torch.uint8)
    return code.masked_fill(~amax.isfinite(), 255).view(E8M0)


# ------------------------------------------------------------------------------------------------- FP8 (E4M3)


def encode_e4m3(x: Tensor) -> Tensor:
    """Round fp32 to float8_e4m3fn: nearest, ties to even, saturating at +-448 (Inf too); NaN stays NaN."""
    return x.float().clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)


def decode_e4m3(codes: Tensor) -> Tensor:
    """Return float8_e4m3fn as fp32, exactly."""
    return codes.float()


def quantize_fp8(
    x: Tensor, block: tuple[int, int] = FP8_WEIGHT_BLOCK, scale: Tensor | None = None, *, fitted: bool = False
) -> Quantized:
    """Quantise x [..., m, n] to E4M3 by blocks; scale [..., ceil(m/rows), ceil(n/columns)], E8M0 (`fitted`: fp32).

    A given `scale` (then also in its dtype) is used where it reproduces the whole block exactly (a block once read
    with that scale), so reading and writing a checkpoint keeps its bytes; the rule alone may halve a scale whose
    largest code is 224.
    """
    computed = fp8_fitted_scale(x, block) if fitted else fp8_scale(x, block)
    if scale is not None:
        computed = _keep_exact(x, scale, computed, block)
    return Quantized(encode_e4m3(x.float() / expand_scale(computed, block, x.shape)), computed)


def dequantize_fp8(codes: Tensor, scale: Tensor, block: tuple[int, int] = FP8_WEIGHT_BLOCK) -> Tensor:
    """Return codes times their block's scale, fp32. The scale may be E8M0 or fp32."""
    return decode_e4m3(codes) * expand_scale(scale, block, codes.shape)


# ------------------------------------------------------------------------------------------------- FP4 (E2M1)


def encode_e2m1(x: Tensor) -> Tensor:
    """Round fp32 to E2M1 codes 0..15 (uint8; bit 3 the sign): nearest, ties to even, saturating at +-6.

    E2M1 has no NaN: a NaN must be caught by its block's scale.
    """
    # The code is the number of mid-points below |x|; a tie that must go up has its mid-point lowered by one ulp.
    points = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    points[1::2] = torch.nextafter(points[1::2], torch.zeros(3))
    code = torch.bucketize(x.float().abs(), points.to(x.device), out_int32=True).to(torch.uint8)
    return code | (x.signbit().to(torch.uint8) << 3)


def decode_e2m1(codes: Tensor) -> Tensor:
    """Return E2M1 codes 0..15 as fp32."""
    values = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], device=codes.device)
    return torch.cat([values, -values])[codes.to(torch.int32)]


def pack_e2m1(codes: Tensor) -> Tensor:
    """Pack codes [..., n] two a byte, int8 [..., n/2]: the low nibble is the even index."""
    return (codes[..., 0::2] | (codes[..., 1::2] << 4)).view(torch.int8)


def unpack_e2m1(packed: Tensor) -> Tensor:
    """Unpack int8 [..., n/2] to codes 0..15, uint8 [..., n]."""
    byte = packed.view(torch.uint8)
    return torch.stack([byte & 15, byte >> 4], dim=-1).flatten(-2)


def quantize_fp4(x: Tensor, scale: Tensor | None = None) -> Quantized:
    """Quantise x [..., n] to packed E2M1 [..., n/2], scale [..., n/32]. `scale` as in `quantize_fp8`.

    Raises InputError where n is not a multiple of 32.
    """
    if x.shape[-1] % FP4_BLOCK[1]:
        raise InputError(
            f"FP4 needs rows of a multiple of {FP4_BLOCK[1]} values; these have {x.shape[-1]}: use fp8"
        )
    computed = fp4_scale(x)
    if scale is not None:
        computed = _keep_exact(x, scale, computed, FP4_BLOCK)
    return Quantized(pack_e2m1(encode_e2m1(x.float() / expand_scale(computed, FP4_BLOCK, x.shape))), computed)


def dequantize_fp4(packed: Tensor, scale: Tensor) -> Tensor:
    """Return the packed codes [..., n/2] times their scale [..., n/32], fp32 [..., n]."""
    values = decode_e2m1(unpack_e2m1(packed))
    return values * expand_scale(scale, FP4_BLOCK, values.shape)


# ------------------------------------------------------------------- rounding in place of storing, for training


def fake_quantize_fp8(x: Tensor, block: tuple[int, int] = FP8_ACTIVATION_BLOCK) -> Tensor:
    """Return x as it reads back from FP8, in x's dtype; the gradient passes straight through."""
    return _straight_through(x, "fp8", block)


def fake_quantize_fp4(x: Tensor) -> Tensor:
    """Return x as it reads back from FP4, in x's dtype; the gradient passes straight through."""
    return _straight_through(x, "fp4", FP4_BLOCK)


def round_to(x: Tensor, name: str) -> Tensor:
    """Round fp32 to what `name` (fp32, bf16, fp16, tf32, hf32) can hold, ties to even, and keep fp32 storage.

    Overflow gives Inf (of the format's range), NaN stays NaN, the gradient passes straight through.
    Raises InputError for another name.
    """
    if name not in ROUNDINGS:
        raise InputError(
            f"no rounding to {name!r}; there are {', '.join(ROUNDINGS)}.{nearest(name, ROUNDINGS)}"
        )
    return x if name == "fp32" else _straight_through(x, name, FP4_BLOCK)


def _straight_through(x: Tensor, name: str, block: tuple[int, int]) -> Tensor:
    if torch.is_grad_enabled() and x.requires_grad:
        return _StraightThrough.apply(x, name, block)
    return _rounded(x, name, block)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str, block: tuple[int, int]) -> Tensor:
        return _rounded(x, name, block)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0], None, None


def _rounded(x: Tensor, name: str, block: tuple[int, int]) -> Tensor:
    if name == "fp8":
        return dequantize_fp8(*quantize_fp8(x, block), block).to(x.dtype)
    if name == "fp4":
        return dequantize_fp4(*quantize_fp4(x)).to(x.dtype)
    if name in _STORED:
        return x.to(_STORED[name]).float()
    return _keep_mantissa(x, _MANTISSA_BITS[name])


def _keep_mantissa(x: Tensor, bits: int) -> Tensor:
    """Round fp32 to `bits` mantissa bits, ties to even: add just under half a step, or half where the bit is odd."""
    drop = 23 - bits
    word = x.contiguous().view(torch.int32)
    rounded = (word >> drop).bitwise_and_(1).add_(word).add_((1 << (drop - 1)) - 1).bitwise_and_(-(1 << drop))
    return rounded.view(torch.float32).masked_fill_(x.isnan(), torch.nan)


# ------------------------------------------------------------------------------------------------------ blocks


def expand_scale(scale: Tensor, block: tuple[int, int], shape: torch.Size) -> Tensor:
    """Repeat each block's scale (E8M0 or fp32) over its block: fp32 of `shape`, whose edge blocks may be cut."""
    value = decode_e8m0(scale) if scale.dtype is E8M0 else scale.float()
    if block[0] > 1:
        value = value.repeat_interleave(block[0], dim=-2)[..., : shape[-2], :]
    return value.repeat_interleave(block[1], dim=-1)[..., : shape[-1]]


def _block_amax(x: Tensor, block: tuple[int, int]) -> Tensor:
    """Largest magnitude of each block of x [..., m, n] (of x [..., n] where blocks are one row), fp32."""
    rows, columns = block
    x = x.detach().float()
    if x.shape[-1] % columns or (rows > 1 and x.shape[-2] % rows):
        x = F.pad(x, (0, -x.shape[-1] % columns) + ((0, -x.shape[-2] % rows) if rows > 1 else ()))
    grid = x.unflatten(-1, (-1, columns))
    if rows == 1:
        return grid.abs().amax(-1)
    return grid.unflatten(-3, (-1, rows)).abs().amax((-3, -1))


def _keep_exact(x: Tensor, given: Tensor, computed: Tensor, block: tuple[int, int]) -> Tensor:
    """Return the given scale where it holds its whole block exactly, the computed one elsewhere; in `given`'s dtype."""
    if given.shape != computed.shape:
        raise InputError(
            f"the scale has shape {tuple(given.shape)}; blocks of {block} of {tuple(x.shape)} "
            f"need {tuple(computed.shape)}"
        )
    if given.dtype is not E8M0:
        computed = (decode_e8m0(computed) if computed.dtype is E8M0 else computed).to(given.dtype)
    if torch.equal(_bits(given), _bits(computed)):
        return computed
    spread = expand_scale(given, block, x.shape)
    scaled = x.float() / spread
    held = decode_e2m1(encode_e2m1(scaled)) if block == FP4_BLOCK else decode_e4m3(encode_e4m3(scaled))
    wrong = _block_amax(held.mul_(spread) != x, block) > 0
    return torch.where(wrong, _bits(computed), _bits(given)).view(given.dtype)


def _bits(scale: Tensor) -> Tensor:
    return scale.view(torch.uint8) if scale.dtype is E8M0 else scale
