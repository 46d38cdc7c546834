"""Linear maps on the CPU: products of large matrices for many tokens, weights streamed once for a few."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .bind import bind, refuse, wants_grad
from .kernels import load_library
from .product import product

_F32 = torch.float32
_FEW = 8  # up to this many tokens streaming beats a product


@cache
def _kernels() -> SimpleNamespace:
    return bind(load_library(), {"linear_few": "llllppp"})


def linear(x_TI: Tensor, weight_OI: Tensor) -> Tensor:
    """`ops.linear.linear`. Raises NotSupported for other formats than fp32."""
    if not (x_TI.dtype is weight_OI.dtype is _F32):
        refuse("linear", x_TI, weight_OI)
    tokens, inputs = x_TI.shape
    if wants_grad(x_TI, weight_OI):
        result: Tensor = _Linear.apply(x_TI, weight_OI)
        return result
    outputs = weight_OI.shape[0]
    out = torch.empty(tokens, outputs)
    if tokens > _FEW:
        return product(x_TI, weight_OI.t(), out)
    x, weight = x_TI.contiguous(), weight_OI.contiguous()
    _kernels().linear_few(tokens, 1, inputs, outputs, x.data_ptr(), weight.data_ptr(), out.data_ptr())
    return out


def grouped_linear(x_TGI: Tensor, weight: Tensor) -> Tensor:
    """`ops.linear.grouped_linear` without copies. Raises NotSupported for other formats than fp32."""
    if not (x_TGI.dtype is weight.dtype is _F32):
        refuse("grouped_linear", x_TGI, weight)
    weight_GOI = weight if weight.dim() == 3 else weight.view(x_TGI.shape[1], -1, x_TGI.shape[2])
    if wants_grad(x_TGI, weight):
        result: Tensor = _GroupedLinear.apply(x_TGI, weight_GOI)
        return result
    tokens, groups, inputs = x_TGI.shape
    if tokens > _FEW or not weight_GOI.is_contiguous():
        return _grouped(x_TGI, weight_GOI)
    out = torch.empty(tokens, groups * weight_GOI.shape[1])
    x = x_TGI.contiguous()
    _kernels().linear_few(
        tokens, groups, inputs, weight_GOI.shape[1], x.data_ptr(), weight_GOI.data_ptr(), out.data_ptr()
    )
    return out


def embed(ids_T: Tensor, weight_Vd: Tensor) -> Tensor:
    """`ops.linear.embed`. Raises NotSupported for other formats than fp32, IndexError for an id outside 0..V-1."""
    if weight_Vd.dtype is not _F32:
        refuse("embed", weight_Vd)
    return F.embedding(ids_T, weight_Vd)


def _grouped(x: Tensor, weight_GOI: Tensor) -> Tensor:
    tokens, groups, _ = x.shape
    out = torch.empty(tokens, groups, weight_GOI.shape[1])
    for g in range(groups):
        product(x[:, g], weight_GOI[g].t(), out[:, g])
    return out.flatten(1)


class _Linear(torch.autograd.Function):
    """linear with the gradients that are asked for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight.t(), torch.empty(x.shape[0], weight.shape[0]))

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        wants_x, wants_weight = ctx.needs_input_grad
        return (product(dout, weight, torch.empty(x.shape)) if wants_x else None,
                product(dout.t(), x, torch.empty(weight.shape)) if wants_weight else None)


class _GroupedLinear(torch.autograd.Function):
    """grouped_linear with its gradients, group by group on views."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _grouped(x, weight)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        tokens, groups, _ = x.shape
        dx, dweight, dout = torch.empty(x.shape), torch.empty(weight.shape), dout.view(tokens, groups, weight.shape[1])
        for g in range(groups):
            product(dout[:, g], weight[g], dx[:, g])
            product(dout[:, g].t(), x[:, g], dweight[g])
        return dx, dweight
