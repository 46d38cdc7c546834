"""RMS normalisation over the last dimension, forward and backward, with and without a weight.

Rows of any length: a row that fits a tile is read once, a longer one twice, block by block.
Shape suffixes: M rows, N channels.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .example import Launch, example
from .grid import TILE, Args, power_of_2, programs, tile_rows
from .launch import Launcher

# ------------------------------------------------------------------------------------------------ examples


def _inputs(seed: int, rows: int, width: int, dtype: torch.dtype, scale: float = 1.0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    row_scale = scale * torch.logspace(-3, 3, rows)[:, None]
    return {"x": (torch.randn(rows, width, generator=g) * row_scale).to(dtype),
            "weight": 1 + 0.5 * torch.randn(width, generator=g),
            "dy": torch.randn(rows, width, generator=g).to(dtype)}


def _forward_launch(seed: int, rows: int, width: int, dtype: torch.dtype, block: int, weighted: bool) -> Launch:
    made = _inputs(seed, rows, width, dtype)
    constants = {"N": width, "ROWS": tile_rows(rows, block, 2048), "BLOCK": block, "WEIGHTED": weighted}
    return Launch({"x": made["x"], "weight": made["weight"], "y": torch.empty_like(made["x"]), "rows": rows,
                   "eps": 1e-6}, (2,), constants, ("y",))


def _whole_row(seed: int) -> Launch:
    return _forward_launch(seed, 13, 512, torch.bfloat16, 512, True)


def _odd_width(seed: int) -> Launch:
    return _forward_launch(seed, 5, 100, torch.float32, 128, False)


def _row_in_blocks(seed: int) -> Launch:
    return _forward_launch(seed, 3, 7168, torch.bfloat16, 4096, True)


def _forward_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    y = a["x"] * torch.rsqrt(a["x"].square().mean(-1, keepdim=True) + a["eps"])
    return {"y": y * a["weight"] if a["WEIGHTED"] else y}


def _backward_launch(seed: int, rows: int, width: int, dtype: torch.dtype, block: int) -> Launch:
    made = _inputs(seed, rows, width, dtype)
    constants = {"N": width, "ROWS": tile_rows(rows, block, 2048), "BLOCK": block, "WEIGHTED": True}
    args: Args = {"dy": made["dy"], "x": made["x"], "weight": made["weight"], "dx": torch.empty_like(made["x"]),
            "rstd": torch.empty(rows), "rows": rows, "eps": 1e-6}
    return Launch(args, (2,), constants, ("dx", "rstd"))


def _whole_row_back(seed: int) -> Launch:
    return _backward_launch(seed, 13, 512, torch.bfloat16, 512)


def _row_in_blocks_back(seed: int) -> Launch:
    return _backward_launch(seed, 3, 1000, torch.float32, 256)


def _backward_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    rstd = torch.rsqrt(a["x"].square().mean(-1, keepdim=True) + a["eps"])
    gain = a["dy"] * a["weight"] if a["WEIGHTED"] else a["dy"]
    unit = a["x"] * rstd
    return {"dx": rstd * (gain - unit * (gain * unit).mean(-1, keepdim=True)), "rstd": rstd[:, 0]}


def _weight_back(seed: int) -> Launch:
    rows, width = 37, 300
    made = _inputs(seed, rows, width, torch.bfloat16)
    rstd = torch.rsqrt(made["x"].float().square().mean(-1) + 1e-6)
    return Launch({"dy": made["dy"], "x": made["x"], "rstd": rstd, "partial": torch.empty(2, width), "rows": rows,
                   "splits": 2}, (4,), {"N": width, "ROWS": 8, "BLOCK": 256}, ("partial",))


def _weight_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    terms = a["dy"] * a["x"] * a["rstd"][:, None]
    tile = torch.arange(a["rows"]) // a["ROWS"]
    return {"partial": torch.stack([terms[tile % a["splits"] == s].sum(0) for s in range(a["splits"])])}


# ------------------------------------------------------------------------------------------------- kernels


@example(_row_in_blocks, _forward_reference)
@example(_odd_width, _forward_reference)
@example(_whole_row, _forward_reference)
@triton.jit
def rms_norm_forward(x, weight, y, rows, eps, N: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
                     WEIGHTED: tl.constexpr):
    """y = weight * x / sqrt(mean(x^2) + eps) for rows of x [M, N]; programs take tiles of ROWS rows in turn."""
    r = tl.arange(0, ROWS)[:, None] * N
    c = tl.arange(0, BLOCK)[None, :]
    if N <= BLOCK and WEIGHTED:
        w = tl.load(weight + tl.arange(0, BLOCK), mask=tl.arange(0, BLOCK) < N, other=0.0).to(tl.float32)[None, :]
    for tile in range(tl.program_id(0).to(tl.int64), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        live = (tl.arange(0, ROWS) < (rows - tile * ROWS).to(tl.int32))[:, None]
        at = tile * (ROWS * N)
        if N <= BLOCK:
            v = tl.load(x + at + r + c, mask=live & (c < N), other=0.0).to(tl.float32)
            v = v * tl.rsqrt(tl.sum(v * v, 1) * (1.0 / N) + eps)[:, None]
            if WEIGHTED:
                v = v * w
            tl.store(y + at + r + c, v.to(y.dtype.element_ty), mask=live & (c < N))
        else:
            square = tl.zeros((ROWS, BLOCK), tl.float32)
            for k in range(0, N, BLOCK):
                v = tl.load(x + at + k + r + c, mask=live & (c < N - k), other=0.0).to(tl.float32)
                square += v * v
            rstd = tl.rsqrt(tl.sum(square, 1) * (1.0 / N) + eps)[:, None]
            for k in range(0, N, BLOCK):
                v = tl.load(x + at + k + r + c, mask=live & (c < N - k), other=0.0).to(tl.float32) * rstd
                if WEIGHTED:
                    v = v * tl.load(weight + k + tl.arange(0, BLOCK), mask=tl.arange(0, BLOCK) < N - k,
                                    other=0.0).to(tl.float32)[None, :]
                tl.store(y + at + k + r + c, v.to(y.dtype.element_ty), mask=live & (c < N - k))


@example(_row_in_blocks_back, _backward_reference)
@example(_whole_row_back, _backward_reference)
@triton.jit
def rms_norm_backward(dy, x, weight, dx, rstd, rows, eps, N: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
                      WEIGHTED: tl.constexpr):
    """dx = rstd * (g - xh * mean(g * xh)), g = dy * weight, xh = x * rstd; rstd [M] is worked out anew and stored."""
    r = tl.arange(0, ROWS)[:, None] * N
    c = tl.arange(0, BLOCK)[None, :]
    for tile in range(tl.program_id(0).to(tl.int64), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        alive = tl.arange(0, ROWS) < (rows - tile * ROWS).to(tl.int32)
        live = alive[:, None]
        at = tile * (ROWS * N)
        square = tl.zeros((ROWS, BLOCK), tl.float32)
        cross = tl.zeros((ROWS, BLOCK), tl.float32)
        for k in range(0, N, BLOCK):
            v = tl.load(x + at + k + r + c, mask=live & (c < N - k), other=0.0).to(tl.float32)
            g = tl.load(dy + at + k + r + c, mask=live & (c < N - k), other=0.0).to(tl.float32)
            if WEIGHTED:
                g = g * tl.load(weight + k + tl.arange(0, BLOCK), mask=tl.arange(0, BLOCK) < N - k,
                                other=0.0).to(tl.float32)[None, :]
            square += v * v
            cross += v * g
        rs = tl.rsqrt(tl.sum(square, 1) * (1.0 / N) + eps)
        tl.store(rstd + tile * ROWS + tl.arange(0, ROWS), rs, mask=alive)
        pull = (tl.sum(cross, 1) * (1.0 / N) * rs * rs)[:, None]
        for k in range(0, N, BLOCK):
            v = tl.load(x + at + k + r + c, mask=live & (c < N - k), other=0.0).to(tl.float32)
            g = tl.load(dy + at + k + r + c, mask=live & (c < N - k), other=0.0).to(tl.float32)
            if WEIGHTED:
                g = g * tl.load(weight + k + tl.arange(0, BLOCK), mask=tl.arange(0, BLOCK) < N - k,
                                other=0.0).to(tl.float32)[None, :]
            g = (g - v * pull) * rs[:, None]
            tl.store(dx + at + k + r + c, g.to(dx.dtype.element_ty), mask=live & (c < N - k))


@example(_weight_back, _weight_reference)
@triton.jit
def rms_norm_backward_weight(dy, x, rstd, partial, rows, splits, N: tl.constexpr, ROWS: tl.constexpr,
                             BLOCK: tl.constexpr):
    """partial[s] = sum over the row tiles of split s of dy * x * rstd; one program a split and column block."""
    blocks: tl.constexpr = (N + BLOCK - 1) // BLOCK
    split = tl.program_id(0) // blocks
    k = (tl.program_id(0) % blocks) * BLOCK
    r = tl.arange(0, ROWS)[:, None] * N
    c = tl.arange(0, BLOCK)[None, :]
    acc = tl.zeros((ROWS, BLOCK), tl.float32)
    for tile in range(split.to(tl.int64), tl.cdiv(rows, ROWS), splits):
        alive = tl.arange(0, ROWS) < (rows - tile * ROWS).to(tl.int32)
        at = tile * (ROWS * N) + k
        v = tl.load(x + at + r + c, mask=alive[:, None] & (c < N - k), other=0.0).to(tl.float32)
        g = tl.load(dy + at + r + c, mask=alive[:, None] & (c < N - k), other=0.0).to(tl.float32)
        rs = tl.load(rstd + tile * ROWS + tl.arange(0, ROWS), mask=alive, other=0.0)
        acc += v * g * rs[:, None]
    tl.store(partial + split * N + k + tl.arange(0, BLOCK), tl.sum(acc, 0), mask=tl.arange(0, BLOCK) < N - k)


# ---------------------------------------------------------------------------------------------------- host


def rms_norm(launch: Launcher, x: Tensor, weight_N: Tensor | None, eps: float) -> Tensor:
    """Return `weight * x / sqrt(mean(x^2) + eps)` over the last dimension in x's dtype; differentiable."""
    out: Tensor = _RmsNorm.apply(launch, x, weight_N, eps)
    return out


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, launch: Launcher, x: Tensor, weight_N: Tensor | None, eps: float) -> Tensor:
        ctx.launch, ctx.eps = launch, eps
        ctx.save_for_backward(x, weight_N)
        return _forward(launch, x.contiguous(), weight_N, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor | None, None]:
        x, weight_N = ctx.saved_tensors
        dx, dweight = rms_norm_gradients(ctx.launch, grads[0], x, weight_N, ctx.eps)
        return None, dx, dweight, None


def _forward(launch: Launcher, x: Tensor, weight_N: Tensor | None, eps: float) -> Tensor:
    width = x.shape[-1]
    rows, block = x.numel() // width, min(power_of_2(width), TILE)
    constants = {"N": width, "ROWS": tile_rows(rows, block), "BLOCK": block, "WEIGHTED": weight_N is not None}
    y = torch.empty_like(x)
    args: Args = {"x": x, "weight": x if weight_N is None else weight_N, "y": y, "rows": rows, "eps": eps}
    launch(rms_norm_forward, programs(launch, -(-rows // constants["ROWS"])), args, constants)
    return y


def rms_norm_gradients(
    launch: Launcher, dy: Tensor, x: Tensor, weight_N: Tensor | None, eps: float
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of x and of the weight (None without one)."""
    dy, x = dy.contiguous(), x.contiguous()
    width = x.shape[-1]
    rows, block = x.numel() // width, min(power_of_2(width), TILE // 2)
    constants = {"N": width, "ROWS": tile_rows(rows, block, TILE // 2), "BLOCK": block}
    dx, rstd = torch.empty_like(x), x.new_empty(rows, dtype=torch.float32)
    args: Args = {"dy": dy, "x": x, "weight": x if weight_N is None else weight_N, "dx": dx, "rstd": rstd, "rows": rows,
            "eps": eps}
    tiles = -(-rows // constants["ROWS"])
    launch(rms_norm_backward, programs(launch, tiles), args, constants | {"WEIGHTED": weight_N is not None})
    if weight_N is None:
        return dx, None
    blocks = -(-width // block)
    splits = max(1, min(tiles, programs(launch, 1 << 30)[0] // blocks))
    partial = x.new_zeros(splits, width, dtype=torch.float32)
    args = {"dy": dy, "x": x, "rstd": rstd, "partial": partial, "rows": rows, "splits": splits}
    launch(rms_norm_backward_weight, (splits * blocks,) if rows else (0,), args, constants)
    return dx, partial.sum(0).to(weight_N.dtype)
