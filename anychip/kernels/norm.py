"""RMS and layer normalisation over the last dimension, with and without a weight: the forward kernel.

Layer normalisation (CENTERED) is the RMS norm of x less its mean, plus a bias. Rows of any length: a row that fits a
tile is read once, a longer one twice, block by block (thrice where it is centred).
Shape suffixes: M rows, N channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .example import Launch, example
from .grid import TILE, Args, power_of_2, programs, tile_rows
from .launch import Launcher


class Form(NamedTuple):
    """What the norm does beside dividing a row by its size."""

    weighted: bool
    centered: bool


RMS, LAYER = Form(weighted=True, centered=False), Form(weighted=True, centered=True)

# ------------------------------------------------------------------------------------------------ examples


def norm_inputs(seed: int, shape: tuple[int, int], dtype: torch.dtype, form: Form) -> dict[str, Tensor]:
    """Rows of very different sizes, far from zero where they are centred; a weight; gradients."""
    (rows, width), g = shape, torch.Generator().manual_seed(seed)
    size, mean = torch.logspace(-3, 3, rows)[:, None], 4.0 if form.centered else 0.0
    return {"x": ((torch.randn(rows, width, generator=g) + mean) * size).to(dtype),
            "weight": 1 + 0.5 * torch.randn(width, generator=g),
            "dy": torch.randn(rows, width, generator=g).to(dtype)}


def _forward_launch(seed: int, rows: int, width: int, dtype: torch.dtype, block: int, form: Form) -> Launch:
    made = norm_inputs(seed, (rows, width), dtype, form)
    return Launch({"x": made["x"], "weight": made["weight"], "bias": 3 * made["weight"].flip(0),
                   "y": torch.empty_like(made["x"]), "rows": rows, "eps": 1e-6}, (2,),
                  norm_constants(rows, width, block, form), ("y",))


def norm_constants(rows: int, width: int, block: int, form: Form, tile: int = 2048) -> dict[str, int]:
    """The constants of the forward kernel and of the gradient's."""
    return {"N": width, "ROWS": tile_rows(rows, block, tile), "BLOCK": block, "WEIGHTED": form.weighted,
            "CENTERED": form.centered}


def _whole_row(seed: int) -> Launch:
    return _forward_launch(seed, 13, 512, torch.bfloat16, 512, RMS)


def _odd_width(seed: int) -> Launch:
    return _forward_launch(seed, 5, 100, torch.float32, 128, RMS._replace(weighted=False))


def _row_in_blocks(seed: int) -> Launch:
    return _forward_launch(seed, 3, 7168, torch.bfloat16, 4096, RMS)


def _layer(seed: int) -> Launch:
    return _forward_launch(seed, 13, 128, torch.bfloat16, 128, LAYER)


def unit_rows(a: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The normalised rows without weight and bias, and 1 / the size of each."""
    x = a["x"] - a["x"].mean(-1, keepdim=True) if a["CENTERED"] else a["x"]
    rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + a["eps"])
    return x * rstd, rstd


def _forward_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    y = unit_rows(a)[0] * a["weight"] if a["WEIGHTED"] else unit_rows(a)[0]
    return {"y": y + a["bias"] if a["CENTERED"] else y}


# ------------------------------------------------------------------------------------------------- kernels


@triton.jit
def row_means(x, live, r, N: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The mean [ROWS, 1] of each row of a tile of x [M, N], whose rows lie at `r`; `live` marks those that exist."""
    c = tl.arange(0, BLOCK)[None, :]
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for k in range(0, N, BLOCK):
        total += tl.load(x + k + r + c, mask=live & (c < N - k), other=0.0).to(tl.float32)
    return (tl.sum(total, 1) * (1.0 / N))[:, None]


@example(_layer, _forward_reference)
@example(_row_in_blocks, _forward_reference)
@example(_odd_width, _forward_reference)
@example(_whole_row, _forward_reference)
@triton.jit
def rms_norm_forward(x, weight, bias, y, rows, eps, N: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
                     WEIGHTED: tl.constexpr, CENTERED: tl.constexpr):
    """y = weight * x / sqrt(mean(x^2) + eps) for rows of x [M, N]; programs take tiles of ROWS rows in turn. CENTERED:
    of x less its mean, plus bias."""
    r = tl.arange(0, ROWS)[:, None] * N
    c = tl.arange(0, BLOCK)[None, :]
    if N <= BLOCK and WEIGHTED:
        w = tl.load(weight + tl.arange(0, BLOCK), mask=tl.arange(0, BLOCK) < N, other=0.0).to(tl.float32)[None, :]
    for tile in range(tl.program_id(0).to(tl.int64), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        live = (tl.arange(0, ROWS) < (rows - tile * ROWS).to(tl.int32))[:, None]
        at = tile * (ROWS * N)
        if N <= BLOCK:
            v = tl.load(x + at + r + c, mask=live & (c < N), other=0.0).to(tl.float32)
            if CENTERED:
                v = tl.where(c < N, v - (tl.sum(v, 1) * (1.0 / N))[:, None], 0.0)
            v = v * tl.rsqrt(tl.sum(v * v, 1) * (1.0 / N) + eps)[:, None]
            if WEIGHTED:
                v = v * w
            if CENTERED:
                v = v + tl.load(bias + c, mask=c < N, other=0.0).to(tl.float32)
            tl.store(y + at + r + c, v.to(y.dtype.element_ty), mask=live & (c < N))
        else:
            if CENTERED:
                m = row_means(x + at, live, r, N, ROWS, BLOCK)
            square = tl.zeros((ROWS, BLOCK), tl.float32)
            for k in range(0, N, BLOCK):
                v = tl.load(x + at + k + r + c, mask=live & (c < N - k), other=0.0).to(tl.float32)
                if CENTERED:
                    v = tl.where(c < N - k, v - m, 0.0)
                square += v * v
            rstd = tl.rsqrt(tl.sum(square, 1) * (1.0 / N) + eps)[:, None]
            for k in range(0, N, BLOCK):
                v = tl.load(x + at + k + r + c, mask=live & (c < N - k), other=0.0).to(tl.float32)
                if CENTERED:
                    v = v - m
                v = v * rstd
                if WEIGHTED:
                    v = v * tl.load(weight + k + tl.arange(0, BLOCK), mask=tl.arange(0, BLOCK) < N - k,
                                    other=0.0).to(tl.float32)[None, :]
                if CENTERED:
                    v = v + tl.load(bias + k + c, mask=c < N - k, other=0.0).to(tl.float32)
                tl.store(y + at + k + r + c, v.to(y.dtype.element_ty), mask=live & (c < N - k))


# ---------------------------------------------------------------------------------------------------- host


def norm_forward(launch: Launcher, x: Tensor, weight_N: Tensor | None, bias_N: Tensor | None, eps: float) -> Tensor:
    """Return the layer norm of contiguous rows with a bias, the RMS norm without one."""
    width = x.shape[-1]
    rows, block = x.numel() // width, min(power_of_2(width), TILE)
    constants = norm_constants(rows, width, block, Form(weight_N is not None, bias_N is not None), TILE)
    y = torch.empty_like(x)
    args: Args = {"x": x, "weight": x if weight_N is None else weight_N, "bias": x if bias_N is None else bias_N,
                  "y": y, "rows": rows, "eps": eps}
    launch(rms_norm_forward, programs(launch, -(-rows // constants["ROWS"])), args, constants)
    return y
