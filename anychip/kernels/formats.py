"""FP8 (E4M3) block quantisation and dequantisation, and MXFP4 dequantisation, by integer arithmetic on bytes.

triton_ascend 3.2.0 knows no fp8 type and the 910B no fp8 arithmetic, so codes and E8M0 scales are int8 bytes. No
step makes a denormal fp32 number (which a vector unit may flush), except scales of 2^-127 and products so small.
The rules and layouts are those of `ops.formats`. A block is 1 x 128 (activations) or 128 x 128 (weights).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import InputError
from ..ops import formats as definition
from .example import Launch, example
from .grid import Args, power_of_2, programs
from .launch import Launcher

_WIDTH = 128  # columns of an FP8 block
_ROWS = 32  # rows of a tile: 32 x 128 numbers are 16 KB in fp32
_GROUPS = 128  # FP4 blocks of a tile: 128 x 32 numbers

# ------------------------------------------------------------------------------------------------ examples


def _matrix(seed: int, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Blocks from tiny to huge, a block of zeros, one with an infinity, and codes at every rounding tie."""
    g = torch.Generator().manual_seed(seed)
    size = torch.logspace(-6, 6, columns)[torch.randperm(columns, generator=g)]
    x = torch.randn(rows, columns, generator=g) * torch.logspace(-3, 3, rows)[:, None] * size
    x[0], x[1, 5] = 0.0, float("inf")
    ties = torch.arange(-64, 64) / 64 * 448
    x[2, : min(128, columns)] = ties[: min(128, columns)]
    return x.to(dtype)


def _quantize_launch(seed: int, shape: tuple[int, int], block_rows: int, dtype: torch.dtype) -> Launch:
    x = _matrix(seed, *shape, dtype)
    scale = torch.zeros(-(-shape[0] // block_rows), -(-shape[1] // _WIDTH), dtype=torch.int8)
    args: Args = {"x": x, "codes": torch.zeros(shape, dtype=torch.int8), "scale": scale, "rows": shape[0],
                  "columns": shape[1]}
    return Launch(args, (3,), {"BLOCK_ROWS": block_rows, "ROWS": 8 if block_rows == 1 else 32}, ("codes", "scale"))


def _activations(seed: int) -> Launch:
    return _quantize_launch(seed, (19, 300), 1, torch.bfloat16)


def _weights(seed: int) -> Launch:
    return _quantize_launch(seed, (200, 260), 128, torch.float32)


def _quantize_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    codes, scale = definition.quantize_fp8(a["x"].float(), (a["BLOCK_ROWS"], _WIDTH))
    return {"codes": codes.view(torch.int8), "scale": scale.view(torch.int8)}


def _dequantize_launch(seed: int, shape: tuple[int, int], block_rows: int, dtype: torch.dtype) -> Launch:
    g = torch.Generator().manual_seed(seed)
    codes = torch.arange(shape[0] * shape[1]).view(shape).to(torch.int8)
    scale = torch.randint(100, 140, (-(-shape[0] // block_rows), -(-shape[1] // _WIDTH)), generator=g).to(torch.int8)
    args: Args = {"codes": codes, "scale": scale, "out": torch.zeros(shape, dtype=dtype), "rows": shape[0],
                  "columns": shape[1]}
    return Launch(args, (3,), {"BLOCK_ROWS": block_rows, "ROWS": 8 if block_rows == 1 else 32}, ("out",))


def _activations_back(seed: int) -> Launch:
    return _dequantize_launch(seed, (19, 300), 1, torch.bfloat16)


def _weights_back(seed: int) -> Launch:
    return _dequantize_launch(seed, (200, 260), 128, torch.float32)


def _dequantize_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    scale = a["scale"].view(definition.E8M0)
    return {"out": definition.dequantize_fp8(a["codes"].view(definition.E4M3), scale, (a["BLOCK_ROWS"], _WIDTH))}


def _fp4_launch(seed: int) -> Launch:
    g = torch.Generator().manual_seed(seed)
    packed = torch.arange(37 * 16).view(37, 16).to(torch.int8)
    scale = torch.randint(100, 140, (37,), generator=g).to(torch.int8)
    args: Args = {"packed": packed, "scale": scale, "out": torch.zeros(37, 32, dtype=torch.bfloat16), "groups": 37}
    return Launch(args, (2,), {"GROUPS": 16}, ("out",))


def _fp4_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    return {"out": definition.dequantize_fp4(a["packed"], a["scale"][:, None].view(definition.E8M0))}


# ------------------------------------------------------------------------------------------------- kernels


@triton.jit
def scale_code(amax):
    """E8M0 code of 2^ceil(log2(max(amax, 1e-4) / 448)) from the bits of amax; 255 where amax is not finite.

    448 = 1.75 * 2^8: what is added carries into the exponent where the mantissa is more than 1.75.
    """
    code = ((tl.maximum(amax, 0x38D1B717) + 0x1FFFFF) >> 23) - 8
    return tl.where(amax >= 0x7F800000, 255, code)


@triton.jit
def scale_value(code):
    """2^(code - 127) in fp32 from an int32 code 0..255; NaN for 255."""
    bits = tl.where(code == 0, 0x400000, code << 23)
    return tl.where(code == 255, 0x7FC00000, bits).to(tl.float32, bitcast=True)


@triton.jit
def encode_e4m3(v, code):
    """E4M3 byte (in int32) of v / 2^(code - 127), |v| at most 448 scales: nearest, ties to even; NaN for code 255.

    Adding 2^23 times the step between codes (2^-9 below 2^-6) rounds |v| to whole steps, in the sum's low bits.
    """
    v = v * ((254 - code) << 23).to(tl.float32, bitcast=True)
    word = v.to(tl.int32, bitcast=True)
    binade = tl.maximum(word & 0x7F800000, 0x3C800000)
    magic = binade + 0x0A000000
    steps = (tl.abs(v) + magic.to(tl.float32, bitcast=True)).to(tl.int32, bitcast=True) - magic
    byte = (steps + ((binade - 0x3C800000) >> 20)) | ((word >> 24) & 0x80)
    return tl.where(code == 255, 0x7F, byte)


@triton.jit
def decode_e4m3(byte):
    """fp32 of an E4M3 byte in an int16: an fp16 number of the same exponent field and mantissa is 2^-8 of it."""
    half = tl.where((byte & 0x7F) == 0x7F, 0x7E00, (byte << 7) & -0x4001).to(tl.int16)
    return half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0


@triton.jit
def decode_e2m1(nibble):
    """fp32 of an E2M1 code 0..15 in an int16: an fp16 number of the same fields is 2^-14 of it."""
    half = (((nibble & 7) << 9) | ((nibble & 8) << 12)).to(tl.int16)
    return half.to(tl.float16, bitcast=True).to(tl.float32) * 16384.0


@example(_weights, _quantize_reference)
@example(_activations, _quantize_reference)
@triton.jit
def fp8_quantize(x, codes, scale, rows, columns, BLOCK_ROWS: tl.constexpr, ROWS: tl.constexpr):
    """Codes [M, N] and E8M0 scales [ceil(M/BLOCK_ROWS), ceil(N/128)] of x [M, N], as `ops.formats.quantize_fp8`.

    BLOCK_ROWS 1: ROWS rows make a tile. BLOCK_ROWS 128: a block is read twice, ROWS rows at a time.
    """
    groups = tl.cdiv(columns, 128)
    r = tl.arange(0, ROWS)[:, None]
    c = tl.arange(0, 128)[None, :]
    if BLOCK_ROWS == 1:
        for tile in range(tl.program_id(0).to(tl.int64), tl.cdiv(rows, ROWS) * groups, tl.num_programs(0)):
            row, group = (tile // groups) * ROWS, tile % groups
            live = (r < (rows - row).to(tl.int32)) & (c < (columns - group * 128).to(tl.int32))
            at = row * columns + group * 128
            v = tl.load(x + at + r * columns + c, mask=live, other=0.0).to(tl.float32)
            code = scale_code(tl.max(v.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1))
            tl.store(scale + row * groups + group + tl.arange(0, ROWS) * groups, code.to(tl.int8),
                     mask=tl.arange(0, ROWS) < (rows - row).to(tl.int32))
            tl.store(codes + at + r * columns + c, encode_e4m3(v, code[:, None]).to(tl.int8), mask=live)
    else:
        for tile in range(tl.program_id(0).to(tl.int64), tl.cdiv(rows, BLOCK_ROWS) * groups, tl.num_programs(0)):
            row, group = (tile // groups) * BLOCK_ROWS, tile % groups
            inside = c < (columns - group * 128).to(tl.int32)
            amax = tl.zeros((ROWS, 128), tl.int32)
            for part in range(0, BLOCK_ROWS, ROWS):
                at = (row + part) * columns + group * 128
                live = (r < (rows - row - part).to(tl.int32)) & inside
                v = tl.load(x + at + r * columns + c, mask=live, other=0.0).to(tl.float32)
                amax = tl.maximum(amax, v.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
            code = scale_code(tl.max(tl.max(amax, 1), 0))
            tl.store(scale + tile, code.to(tl.int8))
            for part in range(0, BLOCK_ROWS, ROWS):
                at = (row + part) * columns + group * 128
                live = (r < (rows - row - part).to(tl.int32)) & inside
                v = tl.load(x + at + r * columns + c, mask=live, other=0.0).to(tl.float32)
                tl.store(codes + at + r * columns + c, encode_e4m3(v, code).to(tl.int8), mask=live)


@example(_weights_back, _dequantize_reference)
@example(_activations_back, _dequantize_reference)
@triton.jit
def fp8_dequantize(codes, scale, out, rows, columns, BLOCK_ROWS: tl.constexpr, ROWS: tl.constexpr):
    """out [M, N] = E4M3 codes times their block's E8M0 scale; ROWS divides BLOCK_ROWS where that is not 1."""
    groups = tl.cdiv(columns, 128)
    r = tl.arange(0, ROWS)[:, None]
    c = tl.arange(0, 128)[None, :]
    for tile in range(tl.program_id(0).to(tl.int64), tl.cdiv(rows, ROWS) * groups, tl.num_programs(0)):
        row, group = (tile // groups) * ROWS, tile % groups
        live = (r < (rows - row).to(tl.int32)) & (c < (columns - group * 128).to(tl.int32))
        at = row * columns + group * 128
        v = decode_e4m3(tl.load(codes + at + r * columns + c, mask=live, other=0).to(tl.int16))
        if BLOCK_ROWS == 1:
            code = tl.load(scale + row * groups + group + tl.arange(0, ROWS) * groups,
                           mask=tl.arange(0, ROWS) < (rows - row).to(tl.int32), other=0)
            v = v * scale_value(code.to(tl.int32) & 0xFF)[:, None]
        else:
            code = tl.load(scale + (row // BLOCK_ROWS) * groups + group)
            v = v * scale_value(code.to(tl.int32) & 0xFF)
        tl.store(out + at + r * columns + c, v.to(out.dtype.element_ty), mask=live)


@example(_fp4_launch, _fp4_reference)
@triton.jit
def fp4_dequantize(packed, scale, out, groups, GROUPS: tl.constexpr):
    """out [G, 32] from packed E2M1 [G, 16] (low nibble first) times each group's E8M0 scale [G]."""
    g = tl.arange(0, GROUPS)
    j = tl.arange(0, 16)[None, :]
    for tile in range(tl.program_id(0).to(tl.int64), tl.cdiv(groups, GROUPS), tl.num_programs(0)):
        at = tile * GROUPS
        live = g < (groups - at).to(tl.int32)
        byte = tl.load(packed + at * 16 + g[:, None] * 16 + j, mask=live[:, None], other=0).to(tl.int16)
        factor = scale_value(tl.load(scale + at + g, mask=live, other=0).to(tl.int32) & 0xFF)[:, None]
        low, high = decode_e2m1(byte & 15) * factor, decode_e2m1((byte >> 4) & 15) * factor
        to = out + at * 32 + g[:, None] * 32 + 2 * j
        tl.store(to, low.to(out.dtype.element_ty), mask=live[:, None])
        tl.store(to + 1, high.to(out.dtype.element_ty), mask=live[:, None])


# ---------------------------------------------------------------------------------------------------- host


def quantize_fp8(
    launch: Launcher, x: Tensor, block: tuple[int, int] = definition.FP8_WEIGHT_BLOCK
) -> definition.Quantized:
    """`ops.formats.quantize_fp8` of a matrix x [M, N] (fp32 or bf16) for blocks of 128 x 128 or 1 x 128."""
    _check(x, block)
    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = codes.new_empty(-(-x.shape[0] // block[0]), -(-x.shape[1] // _WIDTH))
    rows, columns = _sizes(x, block)
    args: Args = {"x": x.contiguous(), "codes": codes, "scale": scale, "rows": rows, "columns": columns}
    constants = _constants(rows, block)
    tiles = -(-rows // max(constants.values())) * -(-columns // _WIDTH)
    launch(fp8_quantize, programs(launch, tiles), args, constants)
    return definition.Quantized(codes.view(definition.E4M3), scale.view(definition.E8M0))


def dequantize_fp8(launch: Launcher, quantized: definition.Quantized, block: tuple[int, int] =
                   definition.FP8_WEIGHT_BLOCK, dtype: torch.dtype = torch.float32) -> Tensor:
    """`ops.formats.dequantize_fp8` of a matrix, in `dtype`."""
    codes, scale = (t.view(torch.int8).contiguous() for t in quantized)
    _check(codes, block)
    out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    rows, columns = _sizes(codes, block)
    args: Args = {"codes": codes, "scale": scale, "out": out, "rows": rows, "columns": columns}
    constants = _constants(rows, block)
    tiles = -(-rows // constants["ROWS"]) * -(-columns // _WIDTH)
    launch(fp8_dequantize, programs(launch, tiles), args, constants)
    return out


def dequantize_fp4(launch: Launcher, quantized: definition.Quantized, dtype: torch.dtype = torch.float32) -> Tensor:
    """`ops.formats.dequantize_fp4` of packed codes [..., n/2] with scales [..., n/32], in `dtype`."""
    packed, scale = quantized.codes.contiguous(), quantized.scale.view(torch.int8).contiguous()
    out = torch.empty(*packed.shape[:-1], 2 * packed.shape[-1], dtype=dtype, device=packed.device)
    tile = min(_GROUPS, power_of_2(scale.numel()))
    args: Args = {"packed": packed, "scale": scale, "out": out, "groups": scale.numel()}
    launch(fp4_dequantize, programs(launch, -(-scale.numel() // tile)), args, {"GROUPS": tile})
    return out


def _check(x: Tensor, block: tuple[int, int]) -> None:
    if x.dim() != 2 or block[1] != _WIDTH or block[0] not in (1, _WIDTH):
        raise InputError(f"the FP8 kernels take a matrix in blocks of 1x128 or 128x128; these are blocks of {block} of "
                         f"{tuple(x.shape)}: reshape it, or use ops.formats")


def _sizes(x: Tensor, block: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns as the kernel sees them: whole rows of blocks are one column of them, so DMA is unbroken."""
    rows, columns = x.shape
    return (rows * columns // _WIDTH, _WIDTH) if block[0] == 1 and columns % _WIDTH == 0 else (rows, columns)


def _constants(rows: int, block: tuple[int, int]) -> dict[str, int]:
    return {"BLOCK_ROWS": block[0], "ROWS": _ROWS if block[0] > 1 else min(_ROWS, power_of_2(rows))}
