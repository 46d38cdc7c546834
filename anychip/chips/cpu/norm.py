"""Norms and rotary embedding on the CPU, in one pass over the rows each way."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .bind import bind, refuse, wants_grad
from .kernels import load_library

_F32 = torch.float32
HALVES, FIRST = 1, 2  # as in norm.h


@cache
def _kernels() -> SimpleNamespace:
    return bind(load_library(), {
        "threads": "", "norm_rope": "lliiif" + "p" * 6, "norm_rope_back": "lliii" + "p" * 9, "rope": "lliiif" + "p" * 4,
    })  # fmt: skip


class _Turn(NamedTuple):
    """A rotation: angles [T, R/2], which channels are pairs (norm.h), and 1 or -1 for its direction."""

    cos: Tensor
    sin: Tensor
    form: int = 0
    sign: float = 1.0

    @classmethod
    def of(cls, cos: Tensor, sin: Tensor, *, half: bool, first: bool = False, inverse: bool = False) -> _Turn:
        return cls(cos.contiguous(), sin.contiguous(), HALVES * half | FIRST * first, -1.0 if inverse else 1.0)


def rms_norm(x: Tensor, weight_C: Tensor | None, eps: float) -> Tensor:
    """`ops.norm.rms_norm` in one pass. Raises NotSupported for other formats than fp32."""
    if x.dtype is not _F32 or (weight_C is not None and weight_C.dtype is not _F32):
        refuse("rms_norm", x, weight_C)
    if wants_grad(x, weight_C):
        out: Tensor = _NormRope.apply(x, weight_C, eps, None)
        return out
    return _norm_rope(x.contiguous(), weight_C, eps, None, 0)


def norm_rope(x: Tensor, weight_C: Tensor | None, eps: float, cos_TR: Tensor, sin_TR: Tensor, *,
              half: bool = False) -> Tensor:
    """`ops.norm.norm_rope` in one pass. Raises NotSupported for other formats than fp32."""
    if not (x.dtype is cos_TR.dtype is sin_TR.dtype is _F32) or (weight_C is not None and weight_C.dtype is not _F32):
        refuse("norm_rope", x, weight_C, cos_TR, sin_TR)
    turn = _Turn.of(cos_TR, sin_TR, half=half)
    if wants_grad(x, weight_C):
        out: Tensor = _NormRope.apply(x, weight_C, eps, turn)
        return out
    return _norm_rope(x.contiguous(), weight_C, eps, turn, 0)


def layer_norm(x: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> Tensor:
    """`ops.norm.layer_norm` by torch's own kernel. Raises NotSupported for other formats than fp32."""
    if not (x.dtype is weight_C.dtype is bias_C.dtype is _F32):
        refuse("layer_norm", x, weight_C, bias_C)
    return F.layer_norm(x, (x.shape[-1],), weight_C, bias_C, eps)


def _norm_rope(x: Tensor, weight: Tensor | None, eps: float, turn: _Turn | None, kept: int) -> Tensor:
    out = torch.empty_like(x)
    if not out.numel():
        return out
    weight = None if weight is None else weight.contiguous()
    given = 0 if weight is None else weight.data_ptr()
    shape, angles = _shape(x, turn)
    _kernels().norm_rope(*shape, eps, x.data_ptr(), given, *angles, out.data_ptr(), kept)
    return out


def _shape(x: Tensor, turn: _Turn | None) -> tuple[tuple[int, ...], tuple[int, int]]:
    """What the kernels begin with (rows, channels, heads, pairs, form), and the angles' addresses."""
    channels = x.shape[-1]
    rows = x.numel() // channels
    if turn is None:
        return (rows, channels, 1, 0, 0), (0, 0)
    shape = rows, channels, rows // x.shape[0], turn.cos.shape[-1], turn.form
    return shape, (turn.cos.data_ptr(), turn.sin.data_ptr())


class _NormRope(torch.autograd.Function):
    """norm_rope with its gradients; keeps the input and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float, turn: _Turn | None) -> Tensor:
        x, weight = x.contiguous(), None if weight is None else weight.contiguous()
        kept = torch.empty(x.shape[:-1])
        out = _norm_rope(x, weight, eps, turn, kept.data_ptr())
        ctx.save_for_backward(x, kept, weight)
        ctx.turn = turn
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:  # type: ignore[override]
        x, kept, weight = ctx.saved_tensors
        dx = torch.empty_like(x)
        dweight = torch.zeros_like(weight) if weight is not None and ctx.needs_input_grad[1] else None
        if not dx.numel():
            return dx, dweight, None, None
        parts = torch.empty(_kernels().threads() * 2 * x.shape[-1])
        rest = (kept, dout.contiguous(), dx, dweight, parts)
        shape, angles = _shape(x, ctx.turn)
        _kernels().norm_rope_back(*shape, x.data_ptr(), 0 if weight is None else weight.data_ptr(), *angles,
                                  *(0 if t is None else t.data_ptr() for t in rest))
        return dx, dweight, None, None


def rope(x: Tensor, cos_TR: Tensor, sin_TR: Tensor, *, inverse: bool = False, half: bool = False,
         first: bool = False) -> Tensor:
    """`ops.norm.rope` in one pass. Raises NotSupported for other formats than fp32."""
    if not (x.dtype is cos_TR.dtype is sin_TR.dtype is _F32):
        refuse("rope", x, cos_TR, sin_TR)
    turn = _Turn.of(cos_TR, sin_TR, half=half, first=first, inverse=inverse)
    if wants_grad(x):
        out: Tensor = _Rope.apply(x, turn)
        return out
    return _rope(x.contiguous(), turn)


def _rope(x: Tensor, turn: _Turn) -> Tensor:
    out = torch.empty_like(x)
    if out.numel():
        shape, angles = _shape(x, turn)
        _kernels().rope(*shape, turn.sign, x.data_ptr(), *angles, out.data_ptr())
    return out


class _Rope(torch.autograd.Function):
    """rope, whose gradient is the rotation back; keeps only the angles."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, turn: _Turn) -> Tensor:
        ctx.turn = turn
        return _rope(x.contiguous(), turn)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:  # type: ignore[override]
        return _rope(dout.contiguous(), ctx.turn._replace(sign=-ctx.turn.sign)), None
