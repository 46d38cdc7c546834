"""The plain residual: x + y, element by element."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .example import Launch, example
from .grid import TILE, Args, programs
from .launch import Launcher


def _inputs(seed: int) -> Launch:
    """Three whole tiles and a part of one; elements of very different sizes."""
    g = torch.Generator().manual_seed(seed)
    x, y = ((torch.randn(3, 300, generator=g) * torch.logspace(-6, 6, 300)).bfloat16() for _ in range(2))
    return Launch({"x": x, "y": y, "out": torch.zeros_like(x), "count": x.numel()}, (3,), {"BLOCK": 256}, ("out",))


def _reference(a: dict[str, Any]) -> dict[str, Tensor]:
    return {"out": a["x"] + a["y"]}


@example(_inputs, _reference)
@triton.jit
def add_elements(x, y, out, count, BLOCK: tl.constexpr):
    """out = x + y in fp32, rounded once."""
    i = tl.arange(0, BLOCK)
    for at in range(tl.program_id(0).to(tl.int64) * BLOCK, count, tl.num_programs(0) * BLOCK):
        here = i < (count - at).to(tl.int32)
        total = tl.load(x + at + i, mask=here, other=0.0).to(tl.float32)
        total += tl.load(y + at + i, mask=here, other=0.0).to(tl.float32)
        tl.store(out + at + i, total.to(out.dtype.element_ty), mask=here)


def add(launch: Launcher, x: Tensor, y: Tensor) -> Tensor:
    """`ops.add` by the kernel: x + y of one shape, in x's dtype; differentiable in both."""
    out: Tensor = _Add.apply(launch, x, y)
    return out


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, launch: Launcher, x: Tensor, y: Tensor) -> Tensor:
        ctx.dtypes = x.dtype, y.dtype
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        args: Args = {"x": x.contiguous(), "y": y.contiguous(), "out": out, "count": x.numel()}
        launch(add_elements, programs(launch, -(-x.numel() // TILE)), args, {"BLOCK": TILE})
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor]:
        return None, grads[0].to(ctx.dtypes[0]), grads[0].to(ctx.dtypes[1])
