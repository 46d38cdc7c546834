"""The gradients of RMS and layer normalisation (CENTERED) over the last dimension.

Shape suffixes: M rows, N channels.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .example import Launch, example
from .grid import TILE, Args, power_of_2, programs
from .launch import Launcher
from .norm import LAYER, RMS, Form, norm_constants, norm_inputs, row_means, unit_rows

# ------------------------------------------------------------------------------------------------ examples


def _backward_launch(seed: int, rows: int, width: int, dtype: torch.dtype, block: int, form: Form) -> Launch:
    made = norm_inputs(seed, (rows, width), dtype, form)
    args: Args = {"dy": made["dy"], "x": made["x"], "weight": made["weight"], "dx": torch.empty_like(made["x"]),
                  "rstd": torch.empty(rows), "mean": torch.zeros(rows), "rows": rows, "eps": 1e-6}
    return Launch(args, (2,), norm_constants(rows, width, block, form), ("dx", "rstd", "mean"))


def _whole_row_back(seed: int) -> Launch:
    return _backward_launch(seed, 13, 512, torch.bfloat16, 512, RMS)


def _row_in_blocks_back(seed: int) -> Launch:
    return _backward_launch(seed, 3, 1000, torch.float32, 256, RMS)


def _layer_back(seed: int) -> Launch:
    return _backward_launch(seed, 5, 300, torch.float32, 256, LAYER)


def _backward_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    (unit, rstd), mean = unit_rows(a), a["x"].mean(-1)
    gain = a["dy"] * a["weight"] if a["WEIGHTED"] else a["dy"]
    pull = unit * (gain * unit).mean(-1, keepdim=True)
    if a["CENTERED"]:
        pull = pull + gain.mean(-1, keepdim=True)
    return {"dx": rstd * (gain - pull), "rstd": rstd[:, 0], "mean": mean if a["CENTERED"] else torch.zeros_like(mean)}


def _weight_launch(seed: int, form: Form) -> Launch:
    rows, width = 37, 300
    made = norm_inputs(seed, (rows, width), torch.bfloat16, form)
    x = made["x"].float()
    mean = x.mean(-1) if form.centered else torch.zeros(rows)
    rstd = torch.rsqrt((x - mean[:, None]).square().mean(-1) + 1e-6)
    return Launch({"dy": made["dy"], "x": made["x"], "rstd": rstd, "mean": mean, "partial": torch.zeros(2, width),
                   "shift": torch.zeros(2, width), "rows": rows, "splits": 2}, (4,),
                  {"N": width, "ROWS": 8, "BLOCK": 256, "CENTERED": form.centered}, ("partial", "shift"))


def _weight_back(seed: int) -> Launch:
    return _weight_launch(seed, RMS)


def _layer_weight_back(seed: int) -> Launch:
    return _weight_launch(seed, LAYER)


def _weight_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    tile = torch.arange(a["rows"]) // a["ROWS"]

    def split(terms: Tensor) -> Tensor:
        return torch.stack([terms[tile % a["splits"] == s].sum(0) for s in range(a["splits"])])

    return {"partial": split(a["dy"] * (a["x"] - a["mean"][:, None]) * a["rstd"][:, None]),
            "shift": split(a["dy"]) if a["CENTERED"] else torch.zeros_like(a["shift"])}


# ------------------------------------------------------------------------------------------------- kernels


@example(_layer_back, _backward_reference)
@example(_row_in_blocks_back, _backward_reference)
@example(_whole_row_back, _backward_reference)
@triton.jit
def rms_norm_backward(dy, x, weight, dx, rstd, mean, rows, eps, N: tl.constexpr, ROWS: tl.constexpr,
                      BLOCK: tl.constexpr, WEIGHTED: tl.constexpr, CENTERED: tl.constexpr):
    """dx = rstd * (g - xh * mean(g * xh)), g = dy * weight, xh = x * rstd; rstd [M] is worked out anew and stored.
    CENTERED: xh = (x - mean) * rstd, dx less rstd * mean(g), and mean [M] is stored."""
    r = tl.arange(0, ROWS)[:, None] * N
    c = tl.arange(0, BLOCK)[None, :]
    for tile in range(tl.program_id(0).to(tl.int64), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        alive = tl.arange(0, ROWS) < (rows - tile * ROWS).to(tl.int32)
        live = alive[:, None]
        at = tile * (ROWS * N)
        square = tl.zeros((ROWS, BLOCK), tl.float32)
        cross = tl.zeros((ROWS, BLOCK), tl.float32)
        if CENTERED:
            m = row_means(x + at, live, r, N, ROWS, BLOCK)
            tl.store(mean + tile * ROWS + tl.arange(0, ROWS), tl.sum(m, 1), mask=alive)
            gain = tl.zeros((ROWS, BLOCK), tl.float32)
        for k in range(0, N, BLOCK):
            v = tl.load(x + at + k + r + c, mask=live & (c < N - k), other=0.0).to(tl.float32)
            g = tl.load(dy + at + k + r + c, mask=live & (c < N - k), other=0.0).to(tl.float32)
            if WEIGHTED:
                g = g * tl.load(weight + k + tl.arange(0, BLOCK), mask=tl.arange(0, BLOCK) < N - k,
                                other=0.0).to(tl.float32)[None, :]
            if CENTERED:
                v = tl.where(c < N - k, v - m, 0.0)
                gain += g
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
            if CENTERED:
                v = v - m
                g = g - (tl.sum(gain, 1) * (1.0 / N))[:, None]
            g = (g - v * pull) * rs[:, None]
            tl.store(dx + at + k + r + c, g.to(dx.dtype.element_ty), mask=live & (c < N - k))


@example(_layer_weight_back, _weight_reference)
@example(_weight_back, _weight_reference)
@triton.jit
def rms_norm_backward_weight(dy, x, rstd, mean, partial, shift, rows, splits, N: tl.constexpr, ROWS: tl.constexpr,
                             BLOCK: tl.constexpr, CENTERED: tl.constexpr):
    """partial[s] = sum over the row tiles of split s of dy * x * rstd; one program a split and column block. CENTERED:
    of dy * (x - mean) * rstd, and shift[s] = sum of dy."""
    blocks: tl.constexpr = (N + BLOCK - 1) // BLOCK
    split = tl.program_id(0) // blocks
    k = (tl.program_id(0) % blocks) * BLOCK
    r = tl.arange(0, ROWS)[:, None] * N
    c = tl.arange(0, BLOCK)[None, :]
    acc = tl.zeros((ROWS, BLOCK), tl.float32)
    if CENTERED:
        total = tl.zeros((ROWS, BLOCK), tl.float32)
    for tile in range(split.to(tl.int64), tl.cdiv(rows, ROWS), splits):
        alive = tl.arange(0, ROWS) < (rows - tile * ROWS).to(tl.int32)
        at = tile * (ROWS * N) + k
        v = tl.load(x + at + r + c, mask=alive[:, None] & (c < N - k), other=0.0).to(tl.float32)
        g = tl.load(dy + at + r + c, mask=alive[:, None] & (c < N - k), other=0.0).to(tl.float32)
        rs = tl.load(rstd + tile * ROWS + tl.arange(0, ROWS), mask=alive, other=0.0)
        if CENTERED:
            v = v - tl.load(mean + tile * ROWS + tl.arange(0, ROWS), mask=alive, other=0.0)[:, None]
            total += g
        acc += v * g * rs[:, None]
    at = split * N + k + tl.arange(0, BLOCK)
    tl.store(partial + at, tl.sum(acc, 0), mask=tl.arange(0, BLOCK) < N - k)
    if CENTERED:
        tl.store(shift + at, tl.sum(total, 0), mask=tl.arange(0, BLOCK) < N - k)


# ---------------------------------------------------------------------------------------------------- host


def norm_gradients(launch: Launcher, dy: Tensor, x: Tensor, weight_N: Tensor | None, eps: float,
                   centered: bool = False) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the gradients of x, of the weight (None without one) and of the bias (None but where `centered`)."""
    dy, x = dy.contiguous(), x.contiguous()
    width = x.shape[-1]
    rows, block = x.numel() // width, min(power_of_2(width), TILE // 2)
    constants = norm_constants(rows, width, block, Form(weight_N is not None, centered))
    dx, rstd = torch.empty_like(x), x.new_empty(rows, dtype=torch.float32)
    mean = torch.empty_like(rstd) if centered else rstd
    args: Args = {"dy": dy, "x": x, "weight": x if weight_N is None else weight_N, "dx": dx, "rstd": rstd,
                  "mean": mean, "rows": rows, "eps": eps}
    tiles = -(-rows // constants["ROWS"])
    launch(rms_norm_backward, programs(launch, tiles), args, constants)
    if weight_N is None:
        return dx, None, None
    blocks = -(-width // block)
    splits = max(1, min(tiles, programs(launch, 1 << 30)[0] // blocks))
    partial = x.new_zeros(splits, width, dtype=torch.float32)
    shift = torch.zeros_like(partial) if centered else partial
    args = {"dy": dy, "x": x, "rstd": rstd, "mean": mean, "partial": partial, "shift": shift, "rows": rows,
            "splits": splits}
    del constants["WEIGHTED"]
    launch(rms_norm_backward_weight, (splits * blocks,) if rows else (0,), args, constants)
    return dx, partial.sum(0).to(weight_N.dtype), shift.sum(0).to(weight_N.dtype) if centered else None
