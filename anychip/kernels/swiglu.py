"""The experts' clamped SwiGLU, forward and backward, with or without each row's routing weight.

h = [gate | up] is [M, 2F]; y = silu(min(gate, limit)) * clamp(up, -limit, limit) * weight is [M, F].
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


def _inputs(seed: int, rows: int, width: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Values on both sides of the clamp at 10, tiny ones, and gates so low that silu underflows."""
    g = torch.Generator().manual_seed(seed)
    size = torch.tensor([1e-4, 1.0, 12.0, 200.0])[torch.randint(4, (rows, 2 * width), generator=g)]
    return {"h": (torch.randn(rows, 2 * width, generator=g) * size).to(dtype),
            "weight": torch.rand(rows, generator=g), "dy": torch.randn(rows, width, generator=g).to(dtype)}


def _forward_launch(seed: int, shape: tuple[int, int], dtype: torch.dtype, block: int, weighted: bool) -> Launch:
    made = _inputs(seed, *shape, dtype)
    constants = {"F": shape[1], "ROWS": tile_rows(shape[0], block, 2048), "BLOCK": block, "WEIGHTED": weighted}
    return Launch({"h": made["h"], "weight": made["weight"], "y": torch.empty_like(made["dy"]), "rows": shape[0],
                   "limit": 10.0}, (3,), constants, ("y",))


def _routed(seed: int) -> Launch:
    return _forward_launch(seed, (11, 300), torch.bfloat16, 256, True)


def _shared(seed: int) -> Launch:
    return _forward_launch(seed, (3, 3072), torch.float32, 2048, False)


def _activation(a: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """gate and up as they are, and silu(clamped gate) * clamped up."""
    gate, up = a["h"].chunk(2, -1)
    return gate, up, torch.nn.functional.silu(gate.clamp(max=a["limit"])) * up.clamp(-a["limit"], a["limit"])


def _forward_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    y = _activation(a)[2]
    return {"y": y * a["weight"][:, None] if a["WEIGHTED"] else y}


def _backward_launch(seed: int, shape: tuple[int, int], dtype: torch.dtype, block: int, weighted: bool) -> Launch:
    made = _inputs(seed, *shape, dtype)
    constants = {"F": shape[1], "ROWS": tile_rows(shape[0], block, 1024), "BLOCK": block, "WEIGHTED": weighted}
    return Launch({"dy": made["dy"], "h": made["h"], "weight": made["weight"], "dh": torch.empty_like(made["h"]),
                   "dweight": torch.zeros(shape[0]), "rows": shape[0], "limit": 10.0}, (3,), constants,
                  ("dh", "dweight"))


def _routed_back(seed: int) -> Launch:
    return _backward_launch(seed, (11, 300), torch.bfloat16, 256, True)


def _shared_back(seed: int) -> Launch:
    return _backward_launch(seed, (5, 100), torch.float32, 128, False)


def _backward_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    gate, up, y = _activation(a)
    limit = a["limit"]
    dweight = (a["dy"] * y).sum(-1) if a["WEIGHTED"] else torch.zeros(a["rows"], dtype=y.dtype)
    dy = a["dy"] * a["weight"][:, None] if a["WEIGHTED"] else a["dy"]
    low, s = gate.clamp(max=limit), torch.sigmoid(gate.clamp(max=limit))
    dgate = dy * up.clamp(-limit, limit) * (s + low * s * (1 - s)) * (gate <= limit)
    dup = dy * low * s * (up.abs() <= limit)
    return {"dh": torch.cat((dgate, dup), -1), "dweight": dweight}


# ------------------------------------------------------------------------------------------------- kernels


@example(_shared, _forward_reference)
@example(_routed, _forward_reference)
@triton.jit
def swiglu_forward(h, weight, y, rows, limit, F: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
                   WEIGHTED: tl.constexpr):
    """y = silu(min(gate, limit)) * clamp(up, -limit, limit) (* weight of the row)."""
    blocks: tl.constexpr = (F + BLOCK - 1) // BLOCK
    r = tl.arange(0, ROWS)[:, None]
    c = tl.arange(0, BLOCK)[None, :]
    for tile in range(tl.program_id(0).to(tl.int64), tl.cdiv(rows, ROWS) * blocks, tl.num_programs(0)):
        row, k = (tile // blocks) * ROWS, (tile % blocks) * BLOCK
        live = (r < (rows - row).to(tl.int32)) & (c < (F - k))
        at = row * (2 * F) + k
        gate = tl.load(h + at + r * (2 * F) + c, mask=live, other=0.0).to(tl.float32)
        up = tl.load(h + at + F + r * (2 * F) + c, mask=live, other=0.0).to(tl.float32)
        gate = tl.minimum(gate, limit)
        v = gate / (1.0 + tl.exp(-gate)) * tl.minimum(tl.maximum(up, -limit), limit)
        if WEIGHTED:
            v = v * tl.load(weight + row + tl.arange(0, ROWS),
                            mask=tl.arange(0, ROWS) < (rows - row).to(tl.int32), other=0.0)[:, None]
        tl.store(y + row * F + k + r * F + c, v.to(y.dtype.element_ty), mask=live)


@example(_shared_back, _backward_reference)
@example(_routed_back, _backward_reference)
@triton.jit
def swiglu_backward(dy, h, weight, dh, dweight, rows, limit, F: tl.constexpr, ROWS: tl.constexpr,
                    BLOCK: tl.constexpr, WEIGHTED: tl.constexpr):
    """dh [M, 2F] (no gradient beyond the clamp) and, WEIGHTED, dweight [M] = sum of dy * unweighted y."""
    r = tl.arange(0, ROWS)[:, None]
    c = tl.arange(0, BLOCK)[None, :]
    for tile in range(tl.program_id(0).to(tl.int64), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tile * ROWS
        alive = tl.arange(0, ROWS) < (rows - row).to(tl.int32)
        acc = tl.zeros((ROWS, BLOCK), tl.float32)
        if WEIGHTED:
            scale = tl.load(weight + row + tl.arange(0, ROWS), mask=alive, other=0.0)[:, None]
        for k in range(0, F, BLOCK):
            live = alive[:, None] & (c < F - k)
            at = row * (2 * F) + k
            gate = tl.load(h + at + r * (2 * F) + c, mask=live, other=0.0).to(tl.float32)
            up = tl.load(h + at + F + r * (2 * F) + c, mask=live, other=0.0).to(tl.float32)
            g = tl.load(dy + row * F + k + r * F + c, mask=live, other=0.0).to(tl.float32)
            low = tl.minimum(gate, limit)
            s = 1.0 / (1.0 + tl.exp(-low))
            silu = low * s
            held = tl.minimum(tl.maximum(up, -limit), limit)
            if WEIGHTED:
                acc += g * silu * held
                g = g * scale
            dgate = tl.where(gate <= limit, g * held * (s + silu * (1.0 - s)), 0.0)
            dup = tl.where(tl.abs(up) <= limit, g * silu, 0.0)
            tl.store(dh + at + r * (2 * F) + c, dgate.to(dh.dtype.element_ty), mask=live)
            tl.store(dh + at + F + r * (2 * F) + c, dup.to(dh.dtype.element_ty), mask=live)
        if WEIGHTED:
            tl.store(dweight + row + tl.arange(0, ROWS), tl.sum(acc, 1), mask=alive)


# ---------------------------------------------------------------------------------------------------- host


def swiglu(launch: Launcher, gate_up: Tensor, limit: float, weight_M: Tensor | None = None) -> Tensor:
    """Return silu(min(gate, limit)) * clamp(up, -limit, limit) * weight of gate_up [..., 2F] in its dtype.

    `weight_M` (fp32, one a row of gate_up [M, 2F]) is the routing weight of `ops.experts`, None without.
    Differentiable in gate_up and the weight; the product is rounded once.
    """
    out: Tensor = _Swiglu.apply(launch, gate_up, weight_M, limit)
    return out


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, launch: Launcher, gate_up: Tensor, weight: Tensor | None, limit: float) -> Tensor:
        ctx.launch, ctx.limit = launch, limit
        h = gate_up.contiguous()
        ctx.save_for_backward(h, weight)
        width = h.shape[-1] // 2
        rows, block = h.numel() // (2 * width), min(power_of_2(width), TILE // 2)
        constants = {"F": width, "ROWS": tile_rows(rows, block), "BLOCK": block, "WEIGHTED": weight is not None}
        y = h.new_empty(*h.shape[:-1], width)
        args: Args = {"h": h, "weight": h if weight is None else weight.contiguous(), "y": y, "rows": rows,
                      "limit": limit}
        tiles = -(-rows // constants["ROWS"]) * -(-width // block)
        launch(swiglu_forward, programs(launch, tiles), args, constants)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor | None, None]:
        h, weight = ctx.saved_tensors
        width = h.shape[-1] // 2
        rows, block = h.numel() // (2 * width), min(power_of_2(width), TILE // 4)
        constants = {"F": width, "ROWS": tile_rows(rows, block, TILE // 4), "BLOCK": block,
                     "WEIGHTED": weight is not None}
        dh, dweight = torch.empty_like(h), h.new_empty(rows, dtype=torch.float32)
        args: Args = {"dy": grads[0].contiguous(), "h": h, "weight": h if weight is None else weight.contiguous(),
                "dh": dh, "dweight": dweight, "rows": rows, "limit": ctx.limit}
        ctx.launch(swiglu_backward, programs(ctx.launch, -(-rows // constants["ROWS"])), args, constants)
        return None, dh, None if weight is None else dweight.to(weight.dtype), None
