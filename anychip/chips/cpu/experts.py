"""Routed and shared experts on the CPU: fused products and SwiGLU on panels of 16 tokens, forward and backward.

The shared expert is the routed kernel with one expert. A few tokens stream each chosen weight once.
"""

from __future__ import annotations

import math
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import NotSupported
from .bind import bind, refuse, wants_grad
from .kernels import load_library

_F32 = torch.float32
_PANEL = 16  # tokens a panel, as in tile.h
_MANY = 128  # tokens from which torch's products are faster in training: dense layers are wide, experts narrow
_FEW = 8  # up to this many (token, choice) pairs an expert on average, streaming the weights is faster than panels


@cache
def _kernels() -> SimpleNamespace:
    shared = "lllllf" + "p" * 5 + "ll" + "p"
    return bind(load_library(), {
        "experts_plan": "lllpp", "experts_few": shared + "pp", "experts": shared + "ppp",
        "experts_back": shared + "p" * 10,
    })  # fmt: skip


class _Bank(NamedTuple):
    """Where the weights lie: addresses of w1, w3, w2, and the steps from one expert to the next."""

    w1: int
    w3: int
    w2: int
    stride13: int
    stride2: int


def experts(x_Td: Tensor, ids_TK: Tensor, weight_TK: Tensor, banks: tuple[Tensor, Tensor], limit: float) -> Tensor:
    """`ops.experts.experts`, fused. Raises NotSupported for other formats than fp32 or widths not of 8."""
    w13, w2 = banks[0].contiguous(), banks[1].contiguous()
    if not (x_Td.dtype is weight_TK.dtype is w13.dtype is w2.dtype is _F32):
        refuse("experts", x_Td, weight_TK, w13, w2)
    if wants_grad(x_Td, weight_TK, w13, w2):
        out: Tensor = _Experts.apply(x_Td, ids_TK, weight_TK, w13, w2, limit)
        return out
    x, ids, weight = x_Td.contiguous(), ids_TK.contiguous(), weight_TK.contiguous()
    num_experts, d, width = w2.shape
    shape = (*ids.shape, num_experts, d, width, limit)
    bank = _stacked(w13, w2)
    if ids.numel() <= _FEW * num_experts // 4:
        return _few(shape, x, weight.data_ptr(), bank, ids.data_ptr())
    return _forward(shape, x, weight.data_ptr(), bank, _plan(ids, num_experts)[0], 0)


def mlp(x_Td: Tensor, w1_Fd: Tensor, w3_Fd: Tensor, w2_dF: Tensor, limit: float) -> Tensor:
    """`ops.experts.mlp`, fused. Raises NotSupported for other formats than fp32 or widths not of 8."""
    if not (x_Td.dtype is w1_Fd.dtype is w3_Fd.dtype is w2_dF.dtype is _F32):
        refuse("mlp", x_Td, w1_Fd, w3_Fd, w2_dF)
    if wants_grad(x_Td, w1_Fd, w3_Fd, w2_dF):
        wide = math.isinf(limit) and x_Td.shape[0] >= _MANY
        out: Tensor = (_WideMlp.apply(x_Td, w1_Fd, w3_Fd, w2_dF) if wide
                       else _Mlp.apply(x_Td, w1_Fd, w3_Fd, w2_dF, limit))
        return out
    x, w1, w3, w2 = x_Td.contiguous(), w1_Fd.contiguous(), w3_Fd.contiguous(), w2_dF.contiguous()
    d, width = w2.shape
    shape = (x.shape[0], 1, 1, d, width, limit)
    bank = _Bank(w1.data_ptr(), w3.data_ptr(), w2.data_ptr(), 0, 0)
    if x.shape[0] <= _FEW:
        return _few(shape, x, 0, bank, 0)
    return _forward(shape, x, 0, bank, _only_expert(x.shape[0])[0], 0)


def _stacked(w13: Tensor, w2: Tensor) -> _Bank:
    _, d, width = w2.shape
    start = w13.data_ptr()
    return _Bank(start, start + 4 * width * d, w2.data_ptr(), 2 * width * d, width * d)


def _few(shape: tuple[Any, ...], x: Tensor, weight: int, bank: _Bank, ids: int) -> Tensor:
    tokens, choices, _, d, width, _ = shape
    if (d | width) & 7:
        _misfit(d, width)
    hidden, out = torch.empty(tokens * choices * width), torch.empty(tokens, d)
    _kernels().experts_few(*shape, x.data_ptr(), weight, *bank, ids, hidden.data_ptr(), out.data_ptr())
    return out


def _plan(ids: Tensor, num_experts: int) -> tuple[Tensor, int]:
    """Sort the pairs by expert; return the plan that the kernels read, and its number of panels."""
    plan = torch.empty(2 * (num_experts + 1 + ids.numel()), dtype=torch.int32)
    return plan, _kernels().experts_plan(*ids.shape, num_experts, ids.data_ptr(), plan.data_ptr())


def _only_expert(tokens: int) -> tuple[Tensor, int]:
    return _plan(torch.zeros(tokens, 1, dtype=torch.int64), 1)


def _forward(shape: tuple[Any, ...], x: Tensor, weight: int, bank: _Bank, plan: Tensor, kept: int) -> Tensor:
    tokens, choices, _, d, width, _ = shape
    if (d | width) & 7:
        _misfit(d, width)
    rows, out = torch.empty(tokens * choices, d), torch.empty(tokens, d)
    _kernels().experts(
        *shape, x.data_ptr(), weight, *bank, plan.data_ptr(), kept, rows.data_ptr(), out.data_ptr()
    )
    return out


def _backward(
    shape: tuple[Any, ...], tensors: tuple[Tensor, ...], weight: int, bank: _Bank, made: tuple[int, int, int, int]
) -> Tensor:
    """Run the backward kernel; `made` are the addresses of dweight (or 0), dw1, dw3, dw2. Returns dx."""
    x, plan, kept, dout = tensors[:3] + (tensors[3].contiguous(),)  # named: it must outlive the call
    tokens, choices, _, d, width, _ = shape
    dx, rows = torch.empty_like(x), torch.empty(tokens * choices, d)
    dgate_up, hidden = torch.empty_like(kept), torch.empty(tokens * choices * width)
    _kernels().experts_back(
        *shape, x.data_ptr(), weight, *bank, plan.data_ptr(), kept.data_ptr(), dout.data_ptr(),
        dx.data_ptr(), *made, rows.data_ptr(), dgate_up.data_ptr(), hidden.data_ptr(),
    )  # fmt: skip
    return dx


class _Experts(torch.autograd.Function):
    """experts with its gradients; keeps the plan and the products gate and up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ids: Tensor, weight: Tensor, w13: Tensor, w2: Tensor, limit: float) -> Tensor:
        x, ids, weight = x.contiguous(), ids.contiguous(), weight.contiguous()
        num_experts, d, width = w2.shape
        ctx.shape = (*ids.shape, num_experts, d, width, limit)
        plan, panels = _plan(ids, num_experts)
        kept = torch.empty(panels, 2 * width, _PANEL)
        ctx.save_for_backward(x, weight, w13, w2, plan, kept)
        return _forward(ctx.shape, x, weight.data_ptr(), _stacked(w13, w2), plan, kept.data_ptr())

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:  # type: ignore[override]
        x, weight, w13, w2, plan, kept = ctx.saved_tensors
        dweight, dw13, dw2 = torch.zeros_like(weight), torch.empty_like(w13), torch.empty_like(w2)
        made = _stacked(dw13, dw2)
        dx = _backward(ctx.shape, (x, plan, kept, dout), weight.data_ptr(), _stacked(w13, w2),
                       (dweight.data_ptr(), made.w1, made.w3, made.w2))
        return dx, None, dweight, dw13, dw2, None


class _Mlp(torch.autograd.Function):
    """mlp with its gradients; keeps the products gate and up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, w3: Tensor, w2: Tensor, limit: float) -> Tensor:
        x, w1, w3, w2 = (t.contiguous() for t in (x, w1, w3, w2))
        d, width = w2.shape
        ctx.shape = (x.shape[0], 1, 1, d, width, limit)
        plan, panels = _only_expert(x.shape[0])
        kept = torch.empty(panels, 2 * width, _PANEL)
        ctx.save_for_backward(x, w1, w3, w2, plan, kept)
        bank = _Bank(w1.data_ptr(), w3.data_ptr(), w2.data_ptr(), 0, 0)
        return _forward(ctx.shape, x, 0, bank, plan, kept.data_ptr())

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:  # type: ignore[override]
        x, w1, w3, w2, plan, kept = ctx.saved_tensors
        made = tuple(torch.empty_like(w) for w in (w1, w3, w2))
        bank = _Bank(w1.data_ptr(), w3.data_ptr(), w2.data_ptr(), 0, 0)
        dx = _backward(ctx.shape, (x, plan, kept, dout), 0, bank, (0, *(w.data_ptr() for w in made)))  # type: ignore[arg-type]
        return (dx, *made, None)


class _WideMlp(torch.autograd.Function):
    """mlp without a clamp, with its gradients, of torch's own products; keeps gate, up and sigmoid(gate)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, w3: Tensor, w2: Tensor) -> Tensor:
        gate, up = x @ w1.T, x @ w3.T
        sigmoid = gate.sigmoid()
        ctx.save_for_backward(x, w1, w3, w2, gate, up, sigmoid)
        return (gate * sigmoid).mul_(up) @ w2.T

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:  # type: ignore[override]
        x, w1, w3, w2, gate, up, sigmoid = ctx.saved_tensors
        silu, dhidden = gate * sigmoid, dout @ w2
        dw2, dup = dout.T @ (silu * up), dhidden * silu
        dgate = dhidden.mul_(up).mul_(sigmoid).mul_(1 + gate - silu)
        return torch.addmm(dup @ w3, dgate, w1), dgate.T @ x, dup.T @ x, dw2


def _misfit(d: int, width: int) -> None:
    raise NotSupported(
        f"the cpu chip's experts need widths that are multiples of 8; hidden_size={d}, "
        f"moe_intermediate_size={width}; use cpu:reference"
    )
