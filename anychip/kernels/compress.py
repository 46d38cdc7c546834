"""Pooling of the tokens of a window into one compressed entry: `ops.compress` and its gradient.

A tile is one entry's m rows by BLOCK channels; rows of a window lie one after the other, so nothing is gathered.
Shape suffixes: N token rows, E entries, m tokens a window, C channels of an entry, W projected channels
(C for HCA, 2C for CSA, whose [:C] goes to the next window's entry and [C:] to the own one).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import NotSupported
from .example import Launch, example
from .grid import TILE, Args, power_of_2, programs
from .launch import Launcher

# ------------------------------------------------------------------------------------------------ examples


def _inputs(seed: int, ratio: int, channels: int, dtype: torch.dtype) -> tuple[Args, dict[str, Any]]:
    """Two samples with open tails: windows 0-2 and 3-4; gates from flat to steep; first windows lack a previous."""
    g = torch.Generator().manual_seed(seed)
    overlap = ratio == 4
    width, rows = channels * (2 if overlap else 1), 5 * ratio + 3
    first = torch.tensor([0, ratio, 2 * ratio, 3 * ratio + 1, 4 * ratio + 1], dtype=torch.int32)
    previous = torch.tensor([-1, 0, ratio, -1, 3 * ratio + 1], dtype=torch.int32)
    gate = torch.randn(rows, width, generator=g) * torch.logspace(-1, 1, width)
    args: Args = {"value": torch.randn(rows, width, generator=g).to(dtype), "gate": gate.to(dtype),
                  "ape": torch.randn(ratio, width, generator=g), "first": first, "previous": previous}
    return args, {"W": width, "C": channels, "RATIO": ratio, "OVERLAP": overlap}


def _forward_launch(seed: int, ratio: int, channels: int, dtype: torch.dtype, block: int) -> Launch:
    args, constants = _inputs(seed, ratio, channels, dtype)
    args |= {"out": torch.empty(5, channels, dtype=dtype), "entries": 5, "rows": 5 * ratio + 3}
    return Launch(args, (3,), constants | {"BLOCK": block}, ("out",))


def _csa(seed: int) -> Launch:
    return _forward_launch(seed, 4, 200, torch.bfloat16, 128)


def _hca(seed: int) -> Launch:
    return _forward_launch(seed, 128, 50, torch.float32, 32)


def _pooled(a: dict[str, Any], value: Tensor, gate: Tensor, ape: Tensor) -> Tensor:
    """The definition of `ops.compress` in the tensors' own precision."""
    step, channels = torch.arange(a["RATIO"]), a["C"]
    rows = a["first"].long()[:, None] + step
    v, g = value[rows][..., -channels:], (gate[rows] + ape)[..., -channels:]
    if a["OVERLAP"]:
        absent = (a["previous"] < 0)[:, None, None]
        rows = a["previous"].long().clamp_min(0)[:, None] + step
        v = torch.cat((value[rows][..., :channels].masked_fill(absent, 0.0), v), 1)
        g = torch.cat(((gate[rows] + ape)[..., :channels].masked_fill(absent, float("-inf")), g), 1)
    return (v * g.softmax(1)).sum(1)


def _forward_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    return {"out": _pooled(a, a["value"], a["gate"], a["ape"])}


def _backward_launch(seed: int, ratio: int, channels: int, dtype: torch.dtype, block: int) -> Launch:
    args, constants = _inputs(seed, ratio, channels, dtype)
    width = constants["W"]
    dout = torch.randn(5, channels, generator=torch.Generator().manual_seed(seed + 1)).to(dtype)
    zeros = (torch.zeros(5 * ratio + 3, width, dtype=dtype) for _ in range(2))
    args |= {"dout": dout, "dvalue": next(zeros), "dgate": next(zeros), "dape": torch.zeros(2, ratio, width),
             "entries": 5, "rows": 5 * ratio + 3, "splits": 2}
    return Launch(args, (2 * -(-channels // block),), constants | {"BLOCK": block}, ("dvalue", "dgate", "dape"))


def _csa_back(seed: int) -> Launch:
    return _backward_launch(seed, 4, 200, torch.bfloat16, 128)


def _hca_back(seed: int) -> Launch:
    return _backward_launch(seed, 128, 50, torch.float32, 16)


def _backward_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    leaves = [a[name].clone().requires_grad_() for name in ("value", "gate", "ape")]
    dape = []
    for split in range(a["splits"]):
        leaves[2].grad = None
        mine = (torch.arange(a["entries"]) % a["splits"] == split)[:, None]
        with torch.enable_grad():
            (_pooled(a, *leaves) * a["dout"] * mine).sum().backward()
        dape.append(leaves[2].grad)
    return {"dvalue": leaves[0].grad, "dgate": leaves[1].grad, "dape": torch.stack(dape)}  # type: ignore[dict-item,arg-type]


# ------------------------------------------------------------------------------------------------- kernels


@example(_hca, _forward_reference)
@example(_csa, _forward_reference)
@triton.jit
def compress_forward(value, gate, ape, first, previous, out, entries, rows, W: tl.constexpr, C: tl.constexpr,
                     RATIO: tl.constexpr, OVERLAP: tl.constexpr, BLOCK: tl.constexpr):
    """out [E, C]: each channel's softmax over a window's slots of gate + ape weighs value; rows are clamped to N."""
    blocks: tl.constexpr = (C + BLOCK - 1) // BLOCK
    slot = tl.arange(0, RATIO)[:, None]
    r = slot * W
    c = tl.arange(0, BLOCK)[None, :]
    for tile in range(tl.program_id(0), entries * blocks, tl.num_programs(0)):
        entry, k = tile // blocks, (tile % blocks) * BLOCK
        live = (c < C - k) & (slot < RATIO)
        row = tl.minimum(tl.maximum(tl.load(first + entry), 0), rows - RATIO).to(tl.int64) * W + (W - C) + k
        v = tl.load(value + row + r + c, mask=live, other=0.0).to(tl.float32)
        g = tl.load(gate + row + r + c, mask=live, other=0.0).to(tl.float32)
        g += tl.load(ape + (W - C) + k + r + c, mask=live, other=0.0).to(tl.float32)
        peak = tl.max(g, 0)
        if OVERLAP:
            start = tl.load(previous + entry)
            row = tl.minimum(tl.maximum(start, 0), rows - RATIO).to(tl.int64) * W + k
            v2 = tl.load(value + row + r + c, mask=live, other=0.0).to(tl.float32)
            g2 = tl.load(gate + row + r + c, mask=live, other=0.0).to(tl.float32)
            g2 += tl.load(ape + k + r + c, mask=live, other=0.0).to(tl.float32)
            v2 = tl.where(start >= 0, v2, 0.0)
            g2 = tl.where(start >= 0, g2, -1e30)
            peak = tl.maximum(peak, tl.max(g2, 0))
        p = tl.exp(g - peak[None, :])
        total, mixed = tl.sum(p, 0), tl.sum(p * v, 0)
        if OVERLAP:
            p = tl.exp(g2 - peak[None, :])
            total += tl.sum(p, 0)
            mixed += tl.sum(p * v2, 0)
        tl.store(out + entry * C + k + tl.arange(0, BLOCK), (mixed / total).to(out.dtype.element_ty),
                 mask=tl.arange(0, BLOCK) < C - k)


@example(_hca_back, _backward_reference)
@example(_csa_back, _backward_reference)
@triton.jit
def compress_backward(value, gate, ape, first, previous, dout, dvalue, dgate, dape, entries, rows, splits,
                      W: tl.constexpr, C: tl.constexpr, RATIO: tl.constexpr, OVERLAP: tl.constexpr,
                      BLOCK: tl.constexpr):
    """dvalue, dgate [N, W] at the rows that entries use (windows do not overlap), dape [splits, m, W] in parts.

    One program a split and channel block; split s takes entries s, s + splits, ...
    """
    blocks: tl.constexpr = (C + BLOCK - 1) // BLOCK
    split, k = tl.program_id(0) // blocks, (tl.program_id(0) % blocks) * BLOCK
    slot = tl.arange(0, RATIO)[:, None]
    r = slot * W
    c = tl.arange(0, BLOCK)[None, :]
    live = (c < C - k) & (slot < RATIO)
    bias = tl.load(ape + (W - C) + k + r + c, mask=live, other=0.0).to(tl.float32)
    own = tl.zeros((RATIO, BLOCK), tl.float32)
    if OVERLAP:
        bias2 = tl.load(ape + k + r + c, mask=live, other=0.0).to(tl.float32)
        before = tl.zeros((RATIO, BLOCK), tl.float32)
    for entry in range(split, entries, splits):
        row = tl.minimum(tl.maximum(tl.load(first + entry), 0), rows - RATIO).to(tl.int64) * W + (W - C) + k
        v = tl.load(value + row + r + c, mask=live, other=0.0).to(tl.float32)
        g = tl.load(gate + row + r + c, mask=live, other=0.0).to(tl.float32) + bias
        peak = tl.max(g, 0)
        if OVERLAP:
            start = tl.load(previous + entry)
            row2 = tl.minimum(tl.maximum(start, 0), rows - RATIO).to(tl.int64) * W + k
            v2 = tl.load(value + row2 + r + c, mask=live, other=0.0).to(tl.float32)
            g2 = tl.load(gate + row2 + r + c, mask=live, other=0.0).to(tl.float32) + bias2
            v2 = tl.where(start >= 0, v2, 0.0)
            g2 = tl.where(start >= 0, g2, -1e30)
            peak = tl.maximum(peak, tl.max(g2, 0))
        p = tl.exp(g - peak[None, :])
        total, mixed = tl.sum(p, 0), tl.sum(p * v, 0)
        if OVERLAP:
            p2 = tl.exp(g2 - peak[None, :])
            total += tl.sum(p2, 0)
            mixed += tl.sum(p2 * v2, 0)
        mixed = mixed / total
        d = tl.load(dout + entry * C + k + c, mask=c < C - k, other=0.0).to(tl.float32) / total[None, :]
        p = p * d
        tl.store(dvalue + row + r + c, p.to(dvalue.dtype.element_ty), mask=live)
        p = p * (v - mixed[None, :])
        tl.store(dgate + row + r + c, p.to(dgate.dtype.element_ty), mask=live)
        own += p
        if OVERLAP:
            there = (c < C - k) & (slot < tl.where(start >= 0, RATIO, 0))
            p2 = p2 * d
            tl.store(dvalue + row2 + r + c, p2.to(dvalue.dtype.element_ty), mask=there)
            p2 = p2 * (v2 - mixed[None, :])
            tl.store(dgate + row2 + r + c, p2.to(dgate.dtype.element_ty), mask=there)
            before += p2
    part = dape + split * (RATIO * W) + k + r + c
    tl.store(part + (W - C), own, mask=live)
    if OVERLAP:
        tl.store(part, before, mask=live)


# ---------------------------------------------------------------------------------------------------- host


def compress(
    launch: Launcher, value_NW: Tensor, gate_NW: Tensor, ape_mW: Tensor, *windows_E: Tensor | None
) -> Tensor:
    """`ops.compress` [E, C]; windows = first, previous (or None); differentiable in value, gate and ape.

    Raises NotSupported where the window's length is no power of two.
    """
    ratio = ape_mW.shape[0]
    if ratio != power_of_2(ratio):
        raise NotSupported(f"the compressor's kernels need a window of a power of two tokens; it has {ratio}: use the "
                           "reference op")
    out: Tensor = _Compress.apply(launch, value_NW, gate_NW, ape_mW, *windows_E)
    return out


class _Compress(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, launch: Launcher, value: Tensor, gate: Tensor, ape: Tensor, first: Tensor,
                previous: Tensor | None) -> Tensor:
        first = first.int().contiguous()
        tensors = {"value": value.contiguous(), "gate": gate.contiguous(), "ape": ape.contiguous(), "first": first,
                   "previous": first if previous is None else previous.int().contiguous()}
        ctx.launch, ctx.overlap = launch, previous is not None
        ctx.save_for_backward(*tensors.values())
        constants, entries = _constants(ape, ctx.overlap, TILE), first.shape[0]
        out = value.new_empty(entries, constants["C"])
        args: Args = {**tensors, "out": out, "entries": entries, "rows": value.shape[0]}
        launch(compress_forward, programs(launch, entries * -(-constants["C"] // constants["BLOCK"])), args, constants)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        value, gate, ape, first, previous = ctx.saved_tensors
        constants, entries = _constants(ape, ctx.overlap, TILE // 2), first.shape[0]
        blocks = -(-constants["C"] // constants["BLOCK"])
        splits = max(1, min(entries, programs(ctx.launch, 1 << 30)[0] // blocks))
        dvalue, dgate = torch.zeros_like(value), torch.zeros_like(gate)
        dape = torch.zeros(splits, *ape.shape, device=ape.device)
        args: Args = {"value": value, "gate": gate, "ape": ape, "first": first, "previous": previous,
                      "dout": grads[0].contiguous(), "dvalue": dvalue, "dgate": dgate, "dape": dape,
                      "entries": entries, "rows": value.shape[0], "splits": splits}
        ctx.launch(compress_backward, (splits * blocks if entries else 0,), args, constants)
        return None, dvalue, dgate, dape.sum(0).to(ape.dtype), None, None


def _constants(ape: Tensor, overlap: bool, tile: int) -> dict[str, Any]:
    ratio, width = ape.shape
    channels = width // (2 if overlap else 1)
    return {"W": width, "C": channels, "RATIO": ratio, "OVERLAP": overlap,
            "BLOCK": max(16, min(power_of_2(channels), tile // ratio // (2 if overlap else 1)))}
