"""Rotary position embedding of the last R channels (interleaved pairs), alone and after an RMS norm.

x is [T, H, C]; a tile is some tokens of one head, and a program keeps a tile's angles for all heads of its group.
Even and odd channels are loaded with stride 2 from an offset that is a run-time argument: Huawei's front end
(triton_ascend 3.2.0, InterleaveOptimization.cpp) aborts where that offset is a constant of the program.
Shape suffixes: T tokens, H heads, C channels, R rotated channels.
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
from .norm import rms_norm_gradients

# ------------------------------------------------------------------------------------------------ examples


def _inputs(seed: int, shape: tuple[int, int, int, int], dtype: torch.dtype) -> dict[str, Tensor]:
    tokens, heads, channels, rotated = shape
    g = torch.Generator().manual_seed(seed)
    angle = 1e4 * torch.rand(tokens, rotated // 2, generator=g)
    size = torch.logspace(-4, 4, tokens)[:, None, None]
    return {"x": (torch.randn(tokens, heads, channels, generator=g) * size).to(dtype), "cos": angle.cos(),
            "sin": angle.sin(), "weight": 1 + 0.5 * torch.randn(channels, generator=g)}


def _rope_launch(seed: int, shape: tuple[int, int, int, int], dtype: torch.dtype, sign: float) -> Launch:
    made = _inputs(seed, shape, dtype)
    return Launch({"x": made["x"], "cos": made["cos"], "sin": made["sin"], "y": torch.empty_like(made["x"]),
                   "tokens": shape[0], "kept": shape[2] - shape[3], "sign": sign}, (2,),
                  _constants(shape[1:], 4, 1), ("y",))


def _constants(shape: tuple[int, int, int], tokens: int, group: int) -> dict[str, int]:
    heads, channels, rotated = shape
    return {"H": heads, "C": channels, "R": rotated, "KEPT": power_of_2(channels - rotated), "TOKENS": tokens,
            "GROUP": group}


def _queries(seed: int) -> Launch:
    return _rope_launch(seed, (7, 3, 512, 64), torch.bfloat16, 1.0)


def _inverse(seed: int) -> Launch:
    return _rope_launch(seed, (5, 4, 64, 16), torch.float32, -1.0)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The definition in `ops.norm.rope`, in x's own precision."""
    half = cos.shape[-1]
    cos, sin = cos[:, None], sin[:, None]
    even, odd = x[..., -2 * half::2], x[..., -2 * half + 1::2]
    pairs = torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)
    return torch.cat((x[..., : -2 * half], pairs), -1)


def _rope_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    return {"y": _turned(a["x"], a["cos"], a["sign"] * a["sin"])}


def _norm_rope_launch(seed: int, shape: tuple[int, int, int, int], dtype: torch.dtype, weighted: bool) -> Launch:
    made = _inputs(seed, shape, dtype)
    return Launch({"x": made["x"], "weight": made["weight"], "cos": made["cos"], "sin": made["sin"],
                   "y": torch.empty_like(made["x"]), "tokens": shape[0], "kept": shape[2] - shape[3], "eps": 1e-6},
                  (3,), _constants(shape[1:], 4, shape[1]) | {"WEIGHTED": weighted}, ("y",))


def _normed_queries(seed: int) -> Launch:
    return _norm_rope_launch(seed, (9, 2, 512, 64), torch.bfloat16, False)


def _normed_entries(seed: int) -> Launch:
    return _norm_rope_launch(seed, (7, 1, 128, 64), torch.float32, True)


def _norm_rope_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    y = a["x"] * torch.rsqrt(a["x"].square().mean(-1, keepdim=True) + a["eps"])
    return {"y": _turned(y * a["weight"] if a["WEIGHTED"] else y, a["cos"], a["sin"])}


# ------------------------------------------------------------------------------------------------- kernels


@example(_inverse, _rope_reference)
@example(_queries, _rope_reference)
@triton.jit
def rope_rotate(x, cos, sin, y, tokens, kept, sign, H: tl.constexpr, C: tl.constexpr, R: tl.constexpr,
                KEPT: tl.constexpr, TOKENS: tl.constexpr, GROUP: tl.constexpr):
    """y = x with the last R channels turned by sign * angle; `kept` = C - R, KEPT its next power of two."""
    groups: tl.constexpr = H // GROUP
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
                v = tl.load(x + head + t * (H * C) + c, mask=live & (c < C - R), other=0.0)
                tl.store(y + head + t * (H * C) + c, v.to(y.dtype.element_ty), mask=live & (c < C - R))
            turned = head + kept
            even = tl.load(x + turned + t * (H * C) + 2 * j, mask=live, other=0.0).to(tl.float32)
            odd = tl.load(x + turned + t * (H * C) + 2 * j + 1, mask=live, other=0.0).to(tl.float32)
            tl.store(y + turned + t * (H * C) + 2 * j, (even * cs - odd * sn).to(y.dtype.element_ty), mask=live)
            tl.store(y + turned + t * (H * C) + 2 * j + 1, (odd * cs + even * sn).to(y.dtype.element_ty), mask=live)
            head += C


@example(_normed_entries, _norm_rope_reference)
@example(_normed_queries, _norm_rope_reference)
@triton.jit
def norm_rope_forward(x, weight, cos, sin, y, tokens, kept, eps, H: tl.constexpr, C: tl.constexpr, R: tl.constexpr,
                      KEPT: tl.constexpr, TOKENS: tl.constexpr, GROUP: tl.constexpr, WEIGHTED: tl.constexpr):
    """y = rope(weight * x / sqrt(mean(x^2) + eps)) of every head, in one read and one write."""
    groups: tl.constexpr = H // GROUP
    j = tl.arange(0, R // 2)[None, :]
    c = tl.arange(0, KEPT)[None, :]
    t = tl.arange(0, TOKENS)[:, None]
    if WEIGHTED:
        w = tl.load(weight + c, mask=c < C - R, other=0.0).to(tl.float32)
        w_even = tl.load(weight + kept + 2 * j).to(tl.float32)
        w_odd = tl.load(weight + kept + 2 * j + 1).to(tl.float32)
    for tile in range(tl.program_id(0).to(tl.int64), tl.cdiv(tokens, TOKENS) * groups, tl.num_programs(0)):
        token = (tile // groups) * TOKENS
        live = t < (tokens - token).to(tl.int32)
        cs = tl.load(cos + token * (R // 2) + t * (R // 2) + j, mask=live, other=0.0)
        sn = tl.load(sin + token * (R // 2) + t * (R // 2) + j, mask=live, other=0.0)
        head = token * (H * C) + (tile % groups) * (GROUP * C)
        for _ in range(GROUP):
            turned = head + kept
            v = tl.load(x + head + t * (H * C) + c, mask=live & (c < C - R), other=0.0).to(tl.float32)
            even = tl.load(x + turned + t * (H * C) + 2 * j, mask=live, other=0.0).to(tl.float32)
            odd = tl.load(x + turned + t * (H * C) + 2 * j + 1, mask=live, other=0.0).to(tl.float32)
            square = tl.sum(v * v, 1) + tl.sum(even * even + odd * odd, 1)
            rstd = tl.rsqrt(square * (1.0 / C) + eps)[:, None]
            v, even, odd = v * rstd, even * rstd, odd * rstd
            if WEIGHTED:
                v, even, odd = v * w, even * w_even, odd * w_odd
            tl.store(y + head + t * (H * C) + c, v.to(y.dtype.element_ty), mask=live & (c < C - R))
            tl.store(y + turned + t * (H * C) + 2 * j, (even * cs - odd * sn).to(y.dtype.element_ty), mask=live)
            tl.store(y + turned + t * (H * C) + 2 * j + 1, (odd * cs + even * sn).to(y.dtype.element_ty), mask=live)
            head += C


# ---------------------------------------------------------------------------------------------------- host


def rope(launch: Launcher, x: Tensor, cos_TR: Tensor, sin_TR: Tensor, *, inverse: bool = False) -> Tensor:
    """Rotate the pairs of the last R channels of x [T, (H,) C] by each token's angles (fp32 [T, R/2]), or back.

    Differentiable in x: the gradient is rotated the other way.
    """
    out: Tensor = _Rope.apply(launch, x, cos_TR, sin_TR, -1.0 if inverse else 1.0)
    return out


def norm_rope(
    launch: Launcher, x: Tensor, weight_C: Tensor | None, eps: float, angles: tuple[Tensor, Tensor]
) -> Tensor:
    """Return `rope(rms_norm(x))` in one pass for x [T, (H,) C]; angles = (cos, sin); differentiable in x, weight."""
    out: Tensor = _NormRope.apply(launch, x, weight_C, eps, *angles)
    return out


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, launch: Launcher, x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
        ctx.launch, ctx.sign = launch, sign
        ctx.save_for_backward(cos, sin)
        return _rotate(launch, x, (cos, sin), sign)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None, None, None]:
        return None, _rotate(ctx.launch, grads[0], ctx.saved_tensors, -ctx.sign), None, None, None


class _NormRope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, launch: Launcher, x: Tensor, weight: Tensor | None, eps: float, cos: Tensor,
                sin: Tensor) -> Tensor:
        ctx.launch, ctx.eps = launch, eps
        ctx.save_for_backward(x, weight, cos, sin)
        x = x.contiguous()
        y = torch.empty_like(x)
        grid, constants = _tiling(launch, x, cos)
        args: Args = {"x": x, "weight": x if weight is None else weight, "cos": cos.contiguous(),
                "sin": sin.contiguous(), "y": y, "tokens": x.shape[0], "kept": x.shape[-1] - 2 * cos.shape[-1],
                "eps": eps}
        launch(norm_rope_forward, grid, args, constants | {"WEIGHTED": weight is not None})
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor | None, None, None, None]:
        x, weight, cos, sin = ctx.saved_tensors
        dnorm = _rotate(ctx.launch, grads[0], (cos, sin), -1.0, torch.float32)  # rounded once, after the norm
        dx, dweight = rms_norm_gradients(ctx.launch, dnorm, x, weight, ctx.eps)
        return None, dx, dweight, None, None, None


def _rotate(
    launch: Launcher, x: Tensor, angles: tuple[Tensor, Tensor], sign: float, dtype: torch.dtype | None = None
) -> Tensor:
    x, (cos, sin) = x.contiguous(), angles
    y = torch.empty_like(x, dtype=dtype or x.dtype)
    grid, constants = _tiling(launch, x, cos)
    args: Args = {"x": x, "cos": cos.contiguous(), "sin": sin.contiguous(), "y": y, "tokens": x.shape[0],
            "kept": x.shape[-1] - 2 * cos.shape[-1], "sign": sign}
    launch(rope_rotate, grid, args, constants)
    return y


def _tiling(launch: Launcher, x: Tensor, cos: Tensor) -> tuple[tuple[int], dict[str, int]]:
    """The grid, and the largest group of heads that still gives every program a tile."""
    tokens, channels, heads = x.shape[0], x.shape[-1], x.shape[1] if x.dim() == 3 else 1
    rows = max(2, tile_rows(tokens, power_of_2(channels), TILE))  # the adapter falls over a tile of one row
    tiles, wanted = -(-tokens // rows), programs(launch, 1 << 30)[0]
    sizes = [g for g in range(1, heads + 1) if heads % g == 0]
    group = max((g for g in sizes if tiles * (heads // g) >= wanted), default=1)
    return programs(launch, tiles * (heads // group)), _constants((heads, channels, 2 * cos.shape[-1]), rows, group)
