"""Delta, which attention's gradients start from: the sum of the output times its gradient over a head's channels."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .example import Launch, example
from .grid import programs, tile_rows
from .launch import Launcher


def _delta_inputs(seed: int) -> Launch:
    generator = torch.Generator().manual_seed(seed)
    out, grad = (torch.randn(21, 512, generator=generator).bfloat16() for _ in range(2))
    return Launch({"out": out, "grad": grad, "delta": torch.zeros(21), "rows": 21}, (2,),
                  {"CHANNELS": 512, "ROWS": 8}, ("delta",))


def _delta_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    return {"delta": (a["out"] * a["grad"]).sum(1)}


@example(_delta_inputs, _delta_reference)
@triton.jit
def attention_delta(out, grad, delta, rows, CHANNELS: tl.constexpr, ROWS: tl.constexpr):
    """delta[r] = the sum of out * grad over a head's channels."""
    r = tl.arange(0, ROWS)
    c = tl.arange(0, CHANNELS)[None, :]
    for first in range(tl.program_id(0).to(tl.int64) * ROWS, rows, tl.num_programs(0) * ROWS):
        left = (rows - first).to(tl.int32)
        at = first * CHANNELS + r[:, None] * CHANNELS + c
        x = tl.load(out + at, mask=r[:, None] < left, other=0.0).to(tl.float32)
        g = tl.load(grad + at, mask=r[:, None] < left, other=0.0).to(tl.float32)
        tl.store(delta + first + r, tl.sum(x * g, 1), mask=r < left)


def delta(launch: Launcher, out: Tensor, grad: Tensor) -> Tensor:
    """Return the sum of out * grad over the last dimension, fp32; both contiguous."""
    found = out.new_empty(out.shape[:-1], dtype=torch.float32)
    channels = out.shape[-1]
    rows = tile_rows(found.numel(), channels)
    launch(attention_delta, programs(launch, -(-found.numel() // rows)),
           {"out": out, "grad": grad, "delta": found, "rows": found.numel()}, {"CHANNELS": channels, "ROWS": rows},
           warps=8 if channels > 128 else 4, stages=1)
    return found
