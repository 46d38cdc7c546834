"""RMS norm and rotary embedding on the CPU, in one pass over the rows each way."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ...ops import Ops
from .bind import bind, refuse, wants_grad
from .kernels import load_library

_F32 = torch.float32


@cache
def _kernels() -> SimpleNamespace:
    return bind(load_library(), {
        "threads": "", "norm_rope": "lliif" + "p" * 6, "norm_rope_back": "llii" + "p" * 9, "rope": "lliif" + "p" * 4,
    })  # fmt: skip


def rms_norm(x: Tensor, weight_C: Tensor | None, eps: float) -> Tensor:
    """`ops.norm.rms_norm` in one pass. Raises NotSupported for other formats than fp32."""
    if x.dtype is not _F32 or (weight_C is not None and weight_C.dtype is not _F32):
        refuse("rms_norm", x, weight_C)
    if wants_grad(x, weight_C):
        out: Tensor = _NormRope.apply(x, weight_C, eps, None, None)
        return out
    return _norm_rope(x.contiguous(), weight_C, eps, None, 0)


def norm_rope(x: Tensor, weight_C: Tensor | None, eps: float, cos_TR: Tensor, sin_TR: Tensor, *,
              half: bool = False) -> Tensor:
    """`ops.norm.norm_rope` in one pass. Raises NotSupported for other formats than fp32."""
    if half:
        return Ops.norm_rope(x, weight_C, eps, cos_TR, sin_TR, half=half)
    if not (x.dtype is cos_TR.dtype is sin_TR.dtype is _F32) or (weight_C is not None and weight_C.dtype is not _F32):
        refuse("norm_rope", x, weight_C, cos_TR, sin_TR)
    angles = cos_TR.contiguous(), sin_TR.contiguous()
    if wants_grad(x, weight_C):
        out: Tensor = _NormRope.apply(x, weight_C, eps, *angles)
        return out
    return _norm_rope(x.contiguous(), weight_C, eps, angles, 0)


def _norm_rope(x: Tensor, weight: Tensor | None, eps: float, angles: tuple[Tensor, Tensor] | None, kept: int) -> Tensor:
    out = torch.empty_like(x)
    if not out.numel():
        return out
    channels = x.shape[-1]
    rows = x.numel() // channels
    weight = None if weight is None else weight.contiguous()
    given = 0 if weight is None else weight.data_ptr()
    if angles is None:
        _kernels().norm_rope(rows, channels, 1, 0, eps, x.data_ptr(), given, 0, 0, out.data_ptr(), kept)
    else:
        cos, sin = angles
        _kernels().norm_rope(
            rows, channels, rows // x.shape[0], cos.shape[-1], eps, x.data_ptr(), given, cos.data_ptr(), sin.data_ptr(),
            out.data_ptr(), kept,
        )  # fmt: skip
    return out


class _NormRope(torch.autograd.Function):
    """norm_rope with its gradients; keeps the input and one number a row."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, eps: float, cos: Tensor | None, sin: Tensor | None
    ) -> Tensor:
        x, weight = x.contiguous(), None if weight is None else weight.contiguous()
        kept = torch.empty(x.shape[:-1])
        angles = None if cos is None or sin is None else (cos, sin)
        out = _norm_rope(x, weight, eps, angles, kept.data_ptr())
        ctx.save_for_backward(x, kept, *(t for t in (weight, cos, sin) if t is not None))
        ctx.weighted, ctx.turned = weight is not None, cos is not None
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:  # type: ignore[override]
        x, kept, *rest = ctx.saved_tensors
        weight = rest.pop(0) if ctx.weighted else None
        cos, sin = rest if ctx.turned else (None, None)
        dx = torch.empty_like(x)
        dweight = torch.zeros_like(weight) if weight is not None and ctx.needs_input_grad[1] else None
        if not dx.numel():
            return dx, dweight, None, None, None
        channels = x.shape[-1]
        rows = x.numel() // channels
        parts = torch.empty(_kernels().threads() * 2 * channels)
        tensors = (x, weight, cos, sin, kept, dout.contiguous(), dx, dweight, parts)
        heads, half = (rows // x.shape[0], cos.shape[-1]) if cos is not None else (1, 0)
        _kernels().norm_rope_back(rows, channels, heads, half, *(0 if t is None else t.data_ptr() for t in tensors))
        return dx, dweight, None, None, None


def rope(x: Tensor, cos_TR: Tensor, sin_TR: Tensor, *, inverse: bool = False, half: bool = False,
         first: bool = False) -> Tensor:
    """`ops.norm.rope` in one pass. Raises NotSupported for other formats than fp32."""
    if half or first:
        return Ops.rope(x, cos_TR, sin_TR, inverse=inverse, half=half, first=first)
    if not (x.dtype is cos_TR.dtype is sin_TR.dtype is _F32):
        refuse("rope", x, cos_TR, sin_TR)
    cos, sin, sign = cos_TR.contiguous(), sin_TR.contiguous(), -1.0 if inverse else 1.0
    if wants_grad(x):
        out: Tensor = _Rope.apply(x, cos, sin, sign)
        return out
    return _rope(x.contiguous(), cos, sin, sign)


def _rope(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    out = torch.empty_like(x)
    if not out.numel():
        return out
    channels = x.shape[-1]
    rows = x.numel() // channels
    _kernels().rope(
        rows, channels, rows // x.shape[0], cos.shape[-1], sign, x.data_ptr(), cos.data_ptr(), sin.data_ptr(),
        out.data_ptr(),
    )  # fmt: skip
    return out


class _Rope(torch.autograd.Function):
    """rope, whose gradient is the rotation back; keeps only the angles."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.sign = sign
        return _rope(x.contiguous(), cos, sin, sign)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _rope(dout.contiguous(), cos, sin, -ctx.sign), None, None, None
