"""Rotary position embedding of the first or last R channels (pairs interleaved or half apart), also after an RMS norm.

x is [T, H, C]; a tile is some tokens of one head, and a program keeps a tile's angles for all heads of its group.
Even and odd channels are loaded with stride 2 from an offset that is a run-time argument: Huawei's front end
(triton_ascend 3.2.0, InterleaveOptimization.cpp) aborts where that offset is a constant of the program.
Shape suffixes: T tokens, H heads, C channels, R rotated channels.
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
from .norm_grad import norm_gradients

Angles = tuple[Tensor, Tensor]  # cos and sin, fp32 [T, R/2]


class Turn(NamedTuple):
    """How channels are rotated: by `sign` times the angle; pairs half apart or neighbours; the first R or the last."""

    sign: float = 1.0
    half: bool = False
    first: bool = False


# ------------------------------------------------------------------------------------------------ examples


def _inputs(seed: int, shape: tuple[int, int, int, int], dtype: torch.dtype) -> dict[str, Tensor]:
    tokens, heads, channels, rotated = shape
    g = torch.Generator().manual_seed(seed)
    angle = 1e4 * torch.rand(tokens, rotated // 2, generator=g)
    size = torch.logspace(-4, 4, tokens)[:, None, None]
    return {"x": (torch.randn(tokens, heads, channels, generator=g) * size).to(dtype), "cos": angle.cos(),
            "sin": angle.sin(), "weight": 1 + 0.5 * torch.randn(channels, generator=g)}


def _rope_launch(seed: int, shape: tuple[int, int, int, int], dtype: torch.dtype, turn: Turn) -> Launch:
    made = _inputs(seed, shape, dtype)
    return Launch({"x": made["x"], "cos": made["cos"], "sin": made["sin"], "y": torch.empty_like(made["x"]),
                   "tokens": shape[0], "sign": turn.sign, **_places(shape[2:], turn)}, (2,),
                  _constants(shape[1:], 4, 1, turn), ("y",))


def _constants(shape: tuple[int, int, int], tokens: int, group: int, turn: Turn) -> dict[str, int]:
    heads, channels, rotated = shape
    return {"H": heads, "C": channels, "R": rotated, "KEPT": power_of_2(channels - rotated), "TOKENS": tokens,
            "GROUP": group, "HALF": turn.half}


def _places(shape: tuple[int, int], turn: Turn) -> Args:
    """Where the rotated channels begin, and where the others do."""
    channels, rotated = shape
    return {"turned": 0, "kept": rotated} if turn.first else {"turned": channels - rotated, "kept": 0}


def _queries(seed: int) -> Launch:
    return _rope_launch(seed, (7, 3, 512, 64), torch.bfloat16, Turn())


def _inverse(seed: int) -> Launch:
    return _rope_launch(seed, (5, 4, 64, 16), torch.float32, Turn(-1.0))


def _indexer_halves(seed: int) -> Launch:
    """V3.2's indexer: the first 64 of 128 channels, in pairs that lie 32 apart."""
    return _rope_launch(seed, (7, 3, 128, 64), torch.bfloat16, Turn(half=True, first=True))


def _turned(x: Tensor, a: dict[str, Any], sin: Tensor) -> Tensor:
    """The definition in `ops.norm.rope`, in x's own precision."""
    at, rotated, cos, sin = a["turned"], a["R"], a["cos"][:, None], sin[:, None]
    part = x[..., at : at + rotated].unflatten(-1, (2, -1) if a["HALF"] else (-1, 2))
    one, other = part.unbind(-2 if a["HALF"] else -1)
    pairs = torch.stack((one * cos - other * sin, other * cos + one * sin), -2 if a["HALF"] else -1).flatten(-2)
    return torch.cat((x[..., :at], pairs, x[..., at + rotated :]), -1)


def _rope_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    return {"y": _turned(a["x"], a, a["sign"] * a["sin"])}


def _norm_rope_launch(seed: int, shape: tuple[int, int, int, int], dtype: torch.dtype, weighted: bool,
                      turn: Turn) -> Launch:
    made = _inputs(seed, shape, dtype)
    return Launch({"x": made["x"], "weight": made["weight"], "cos": made["cos"], "sin": made["sin"],
                   "y": torch.empty_like(made["x"]), "tokens": shape[0], "eps": 1e-6, **_places(shape[2:], turn)},
                  (3,), _constants(shape[1:], 4, shape[1], turn) | {"WEIGHTED": weighted}, ("y",))


def _normed_queries(seed: int) -> Launch:
    return _norm_rope_launch(seed, (9, 2, 512, 64), torch.bfloat16, False, Turn())


def _normed_entries(seed: int) -> Launch:
    return _norm_rope_launch(seed, (7, 1, 128, 64), torch.float32, True, Turn())


def _normed_halves(seed: int) -> Launch:
    """Qwen3's heads, which are rotated whole."""
    return _norm_rope_launch(seed, (9, 2, 128, 128), torch.bfloat16, True, Turn(half=True))


def _norm_rope_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    y = a["x"] * torch.rsqrt(a["x"].square().mean(-1, keepdim=True) + a["eps"])
    return {"y": _turned(y * a["weight"] if a["WEIGHTED"] else y, a, a["sin"])}


# ------------------------------------------------------------------------------------------------- kernels


@example(_indexer_halves, _rope_reference)
@example(_inverse, _rope_reference)
@example(_queries, _rope_reference)
@triton.jit
def rope_rotate(x, cos, sin, y, tokens, turned, kept, sign, H: tl.constexpr, C: tl.constexpr, R: tl.constexpr,
                KEPT: tl.constexpr, TOKENS: tl.constexpr, GROUP: tl.constexpr, HALF: tl.constexpr):
    """y = x with R channels from `turned` on turned by sign * angle; the others lie from `kept` on. HALF: pairs are R/2
    apart, else neighbours. KEPT: C - R or the next power of two."""
    groups: tl.constexpr = H // GROUP
    step: tl.constexpr = 1 if HALF else 2
    apart: tl.constexpr = R // 2 if HALF else 1
    j = tl.arange(0, R // 2)[None, :]
    c = tl.arange(0, KEPT)[None, :]
    t = tl.arange(0, TOKENS)[:, None]
    for tile in range(tl.program_id(0).to(tl.int64), tl.cdiv(tokens, TOKENS) * groups, tl.num_programs(0)):
        token = (tile // groups) * TOKENS
        live = t < (tokens - token).to(tl.int32)
        cs = tl.load(cos + token * (R // 2) + t * (R // 2) + j, mask=live, other=0.0)
        sn = tl.load(sin + token * (R // 2) + t * (R // 2) + j, mask=live, other=0.0) * sign
        head = token * (H * C) + (tile % groups) * (GROUP * C)
        for _ in range(GROUP):
            if C > R:
                at = head + kept + t * (H * C) + c
                tl.store(y + at, tl.load(x + at, mask=live & (c < C - R), other=0.0).to(y.dtype.element_ty),
                         mask=live & (c < C - R))
            at = head + turned + t * (H * C) + step * j
            one = tl.load(x + at, mask=live, other=0.0).to(tl.float32)
            other = tl.load(x + at + apart, mask=live, other=0.0).to(tl.float32)
            tl.store(y + at, (one * cs - other * sn).to(y.dtype.element_ty), mask=live)
            tl.store(y + at + apart, (other * cs + one * sn).to(y.dtype.element_ty), mask=live)
            head += C


@example(_normed_halves, _norm_rope_reference)
@example(_normed_entries, _norm_rope_reference)
@example(_normed_queries, _norm_rope_reference)
@triton.jit
def norm_rope_forward(x, weight, cos, sin, y, tokens, turned, kept, eps, H: tl.constexpr, C: tl.constexpr,
                      R: tl.constexpr, KEPT: tl.constexpr, TOKENS: tl.constexpr, GROUP: tl.constexpr,
                      HALF: tl.constexpr, WEIGHTED: tl.constexpr):
    """y = rope(weight * x / sqrt(mean(x^2) + eps)) of every head, in one read and one write; see `rope_rotate`."""
    groups: tl.constexpr = H // GROUP
    step: tl.constexpr = 1 if HALF else 2
    apart: tl.constexpr = R // 2 if HALF else 1
    j = tl.arange(0, R // 2)[None, :]
    c = tl.arange(0, KEPT)[None, :]
    t = tl.arange(0, TOKENS)[:, None]
    if WEIGHTED:
        if C > R:
            w = tl.load(weight + kept + c, mask=c < C - R, other=0.0).to(tl.float32)
        w_one = tl.load(weight + turned + step * j).to(tl.float32)
        w_other = tl.load(weight + turned + step * j + apart).to(tl.float32)
    for tile in range(tl.program_id(0).to(tl.int64), tl.cdiv(tokens, TOKENS) * groups, tl.num_programs(0)):
        token = (tile // groups) * TOKENS
        live = t < (tokens - token).to(tl.int32)
        cs = tl.load(cos + token * (R // 2) + t * (R // 2) + j, mask=live, other=0.0)
        sn = tl.load(sin + token * (R // 2) + t * (R // 2) + j, mask=live, other=0.0)
        head = token * (H * C) + (tile % groups) * (GROUP * C)
        for _ in range(GROUP):
            at = head + turned + t * (H * C) + step * j
            one = tl.load(x + at, mask=live, other=0.0).to(tl.float32)
            other = tl.load(x + at + apart, mask=live, other=0.0).to(tl.float32)
            square = tl.sum(one * one + other * other, 1)
            if C > R:
                rest = head + kept + t * (H * C) + c
                v = tl.load(x + rest, mask=live & (c < C - R), other=0.0).to(tl.float32)
                square = tl.sum(v * v, 1) + square
            rstd = tl.rsqrt(square * (1.0 / C) + eps)[:, None]
            one, other = one * rstd, other * rstd
            if WEIGHTED:
                one, other = one * w_one, other * w_other
            if C > R:
                v = v * rstd
                if WEIGHTED:
                    v = v * w
                tl.store(y + rest, v.to(y.dtype.element_ty), mask=live & (c < C - R))
            tl.store(y + at, (one * cs - other * sn).to(y.dtype.element_ty), mask=live)
            tl.store(y + at + apart, (other * cs + one * sn).to(y.dtype.element_ty), mask=live)
            head += C


# ---------------------------------------------------------------------------------------------------- host


def rope(launch: Launcher, x: Tensor, cos_TR: Tensor, sin_TR: Tensor, *, inverse: bool = False, half: bool = False,
         first: bool = False) -> Tensor:
    """`ops.rope` by its kernel. Differentiable in x: the gradient is rotated the other way."""
    out: Tensor = _Rope.apply(launch, x, cos_TR, sin_TR, Turn(-1.0 if inverse else 1.0, half, first))
    return out


def norm_rope(launch: Launcher, x: Tensor, weight_C: Tensor | None, eps: float, cos_TR: Tensor, sin_TR: Tensor, *,
              half: bool = False) -> Tensor:
    """`ops.norm_rope`: the norm and the rotation in one pass, differentiable in x and the weight."""
    out: Tensor = _NormRope.apply(launch, x, weight_C, eps, (cos_TR, sin_TR), Turn(half=half))
    return out


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, launch: Launcher, x: Tensor, cos: Tensor, sin: Tensor, turn: Turn) -> Tensor:
        ctx.launch, ctx.turn = launch, turn
        ctx.save_for_backward(cos, sin)
        return _rotate(launch, x, (cos, sin), turn)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None, None, None]:
        back = ctx.turn._replace(sign=-ctx.turn.sign)
        return None, _rotate(ctx.launch, grads[0], ctx.saved_tensors, back), None, None, None


class _NormRope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, launch: Launcher, x: Tensor, weight: Tensor | None, eps: float, angles: Angles,
                turn: Turn) -> Tensor:
        ctx.launch, ctx.eps, ctx.turn = launch, eps, turn
        ctx.save_for_backward(x, weight, *angles)
        x = x.contiguous()
        y = torch.empty_like(x)
        grid, args, constants = _plan(launch, x, angles, turn)
        args |= {"x": x, "weight": x if weight is None else weight, "y": y, "eps": eps}
        launch(norm_rope_forward, grid, args, constants | {"WEIGHTED": weight is not None})
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, cos, sin = ctx.saved_tensors
        back = ctx.turn._replace(sign=-ctx.turn.sign)
        dnorm = _rotate(ctx.launch, grads[0], (cos, sin), back, torch.float32)  # rounded once, after the norm
        dx, dweight, _ = norm_gradients(ctx.launch, dnorm, x, weight, ctx.eps)
        return None, dx, dweight, None, None, None


def _rotate(launch: Launcher, x: Tensor, angles: Angles, turn: Turn, dtype: torch.dtype | None = None) -> Tensor:
    x = x.contiguous()
    y = torch.empty_like(x, dtype=dtype or x.dtype)
    grid, args, constants = _plan(launch, x, angles, turn)
    launch(rope_rotate, grid, args | {"x": x, "y": y, "sign": turn.sign}, constants)
    return y


def _plan(launch: Launcher, x: Tensor, angles: Angles, turn: Turn) -> tuple[tuple[int], Args, dict[str, int]]:
    """The grid, what both kernels take, and the largest group of heads that still gives every program a tile."""
    tokens, channels, heads = x.shape[0], x.shape[-1], x.shape[1] if x.dim() == 3 else 1
    rows = max(2, tile_rows(tokens, power_of_2(channels), TILE))  # the adapter falls over a tile of one row
    tiles, wanted = -(-tokens // rows), programs(launch, 1 << 30)[0]
    sizes = [g for g in range(1, heads + 1) if heads % g == 0]
    group = max((g for g in sizes if tiles * (heads // g) >= wanted), default=1)
    cos, sin = (table.contiguous() for table in angles)
    rotated = 2 * cos.shape[-1]
    args: Args = {"cos": cos, "sin": sin, "tokens": tokens, **_places((channels, rotated), turn)}
    return programs(launch, tiles * (heads // group)), args, _constants((heads, channels, rotated), rows, group, turn)
