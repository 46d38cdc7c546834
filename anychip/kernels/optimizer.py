"""AdamW's step on a flat tensor: both moments and the decoupled decay in one read and one write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .example import Launch, example
from .grid import TILE, Args, programs
from .launch import Launcher


@dataclass(frozen=True)
class AdamW:
    """The step's settings, as `torch.optim.AdamW` names them; `step` counts from 1."""

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    step: int

    def scalars(self) -> dict[str, float]:
        """What the kernel needs, worked out in double: 1 - beta2 in fp32 would be wrong in its third digit."""
        b1, b2 = self.betas
        return {"b1": b1, "b1_rest": 1 - b1, "b2": b2, "b2_rest": 1 - b2, "keep": 1 - self.lr * self.weight_decay,
                "rate": self.lr / (1 - b1**self.step), "root": (1 - b2**self.step) ** -0.5, "eps": self.eps}


def _launch(seed: int, count: int, dtype: torch.dtype, settings: AdamW) -> Launch:
    """Gradients from 1e-8 to 1e4, some exactly 0 with moments of 0."""
    g = torch.Generator().manual_seed(seed)
    grad = (torch.randn(count, generator=g) * torch.logspace(-8, 4, count)).to(dtype)
    grad[::7] = 0
    first = torch.randn(count, generator=g) * grad.float()
    second = torch.rand(count, generator=g) * grad.float().square()
    args: Args = {"param": torch.randn(count, generator=g).to(dtype), "grad": grad, "first": first, "second": second,
                  "count": count, **settings.scalars()}
    return Launch(args, (2,), {"BLOCK": 512}, ("param", "first", "second"))


def _tail(seed: int) -> Launch:
    return _launch(seed, 3001, torch.float32, AdamW(3e-4, (0.9, 0.95), 1e-8, 0.1, 1000))


def _first_step(seed: int) -> Launch:
    return _launch(seed, 1025, torch.bfloat16, AdamW(1e-2, (0.9, 0.999), 1e-8, 0.0, 1))


def _reference(a: dict[str, Any]) -> dict[str, Tensor]:
    first = a["first"] * a["b1"] + a["grad"] * a["b1_rest"]
    second = a["second"] * a["b2"] + a["grad"].square() * a["b2_rest"]
    step = a["rate"] * first / (second.sqrt() * a["root"] + a["eps"])
    return {"param": a["param"] * a["keep"] - step, "first": first, "second": second}


@example(_first_step, _reference)
@example(_tail, _reference)
@triton.jit
def adamw(param, grad, first, second, count, b1, b1_rest, b2, b2_rest, keep, rate, root, eps, BLOCK: tl.constexpr):
    """param = param * keep - rate * m / (sqrt(v) * root + eps) with the moments m = first, v = second updated."""
    i = tl.arange(0, BLOCK)
    for tile in range(tl.program_id(0).to(tl.int64), tl.cdiv(count, BLOCK), tl.num_programs(0)):
        at = tile * BLOCK
        live = i < (count - at).to(tl.int32)
        g = tl.load(grad + at + i, mask=live, other=0.0).to(tl.float32)
        m = tl.load(first + at + i, mask=live, other=0.0) * b1 + g * b1_rest
        v = tl.load(second + at + i, mask=live, other=0.0) * b2 + g * g * b2_rest
        p = tl.load(param + at + i, mask=live, other=0.0).to(tl.float32)
        p = p * keep - rate * m / (tl.sqrt(v) * root + eps)
        tl.store(first + at + i, m, mask=live)
        tl.store(second + at + i, v, mask=live)
        tl.store(param + at + i, p.to(param.dtype.element_ty), mask=live)


def adamw_step(launch: Launcher, param: Tensor, grad: Tensor, moments: tuple[Tensor, Tensor], settings: AdamW) -> None:
    """Update `param` and its fp32 moments (exp_avg, exp_avg_sq) in place, as `torch.optim.AdamW` does."""
    block = TILE // 2
    args: Args = {"param": param, "grad": grad.contiguous(), "first": moments[0], "second": moments[1],
                  "count": param.numel(), **settings.scalars()}
    launch(adamw, programs(launch, -(-param.numel() // block)), args, {"BLOCK": block})
