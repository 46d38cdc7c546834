"""RMS normalisation, rotary position embedding, and the two in one pass.

Shape suffixes: T tokens, H heads (may be absent), C channels, R rotated channels (R/2 pairs).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..record import Cost
from .linear import nbytes


def rms_norm(x: Tensor, weight_C: Tensor | None, eps: float) -> Tensor:
    """Return `weight * x / sqrt(mean(x^2) + eps)` over the last dimension: fp32 inside, x's dtype outside."""
    x32 = x.float()
    y = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return (y if weight_C is None else weight_C.float() * y).to(x.dtype)


def rms_norm_cost(x: Tensor, weight_C: Tensor | None, eps: float) -> Cost:
    """About four FLOPs an element; one read and one write."""
    return Cost(4.0 * x.numel(), 2 * nbytes(x) + nbytes(weight_C))


def rope(x: Tensor, cos_TR: Tensor, sin_TR: Tensor, *, inverse: bool = False) -> Tensor:
    """Rotate the interleaved pairs of the last R channels of x [T, (H,) C] by the angles of each token.

    `cos_TR`, `sin_TR` are [T, R/2] in fp32. `inverse` rotates back (the attention output, report section 2.3).
    """
    half = cos_TR.shape[-1]
    shape = (x.shape[0],) + (1,) * (x.dim() - 2) + (half,)
    cos, sin = cos_TR.view(shape), sin_TR.view(shape)
    sin = -sin if inverse else sin
    kept, rotated = x[..., : -2 * half], x[..., -2 * half :].float()
    even, odd = rotated[..., 0::2], rotated[..., 1::2]
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
    return torch.cat((kept, turned.to(x.dtype)), dim=-1)


def rope_cost(x: Tensor, cos_TR: Tensor, sin_TR: Tensor, *, inverse: bool = False) -> Cost:
    """Three FLOPs a rotated channel; the whole tensor moves in and out."""
    rotated = x.numel() // x.shape[-1] * cos_TR.shape[-1] * 2
    return Cost(3.0 * rotated, 2 * nbytes(x) + nbytes(cos_TR, sin_TR))


def norm_rope(x: Tensor, weight_C: Tensor | None, eps: float, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Return `rope(rms_norm(x))`: queries (no weight), window entries, compressed entries, indexer keys."""
    return rope(rms_norm(x, weight_C, eps), cos_TR, sin_TR)


def norm_rope_cost(x: Tensor, weight_C: Tensor | None, eps: float, cos_TR: Tensor, sin_TR: Tensor) -> Cost:
    """The arithmetic of both; one read and one write."""
    flops = rms_norm_cost(x, weight_C, eps).flops + rope_cost(x, cos_TR, sin_TR).flops
    return Cost(flops, 2 * nbytes(x) + nbytes(weight_C, cos_TR, sin_TR))
