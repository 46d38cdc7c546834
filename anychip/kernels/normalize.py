"""`ops.rms_norm` and `ops.layer_norm` on the kernels of norm.py and norm_grad.py, differentiable."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .launch import Launcher
from .norm import norm_forward
from .norm_grad import norm_gradients


def rms_norm(launch: Launcher, x: Tensor, weight_N: Tensor | None, eps: float) -> Tensor:
    """Return `weight * x / sqrt(mean(x^2) + eps)` over the last dimension in x's dtype; differentiable."""
    out: Tensor = _Norm.apply(launch, x, weight_N, None, eps)
    return out


def layer_norm(launch: Launcher, x: Tensor, weight_N: Tensor, bias_N: Tensor, eps: float) -> Tensor:
    """`ops.layer_norm` by the kernels, in x's dtype; differentiable in x, the weight and the bias."""
    out: Tensor = _Norm.apply(launch, x, weight_N, bias_N, eps)
    return out


class _Norm(torch.autograd.Function):
    """With a bias it is the layer norm, without one the RMS norm."""

    @staticmethod
    def forward(ctx: Any, launch: Launcher, x: Tensor, weight_N: Tensor | None, bias_N: Tensor | None,
                eps: float) -> Tensor:
        ctx.launch, ctx.eps, ctx.centered = launch, eps, bias_N is not None
        ctx.save_for_backward(x, weight_N)
        return norm_forward(launch, x.contiguous(), weight_N, bias_N, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_N = ctx.saved_tensors
        dx, dweight, dbias = norm_gradients(ctx.launch, grads[0], x, weight_N, ctx.eps, ctx.centered)
        return None, dx, dweight, dbias, None
