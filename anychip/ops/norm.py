"""RMS and layer normalisation, rotary position embedding, and RMS and rotary in one pass.

Shape suffixes: T tokens, H heads (may be absent), C channels, R rotated channels (R/2 pairs).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


def layer_norm(x: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> Tensor:
    """Return `weight * (x - mean) / sqrt(variance + eps) + bias` over the last dimension: fp32 inside."""
    return F.layer_norm(x.float(), (x.shape[-1],), weight_C.float(), bias_C.float(), eps).to(x.dtype)


def layer_norm_cost(x: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> Cost:
    """About seven FLOPs an element; one read and one write."""
    return Cost(7.0 * x.numel(), 2 * nbytes(x) + nbytes(weight_C, bias_C))


def rope(x: Tensor, cos_TR: Tensor, sin_TR: Tensor, *, inverse: bool = False, half: bool = False,
         first: bool = False) -> Tensor:
    """Rotate pairs among the last R channels of x [T, (H,) C] by the angles of each token.

    `cos_TR`, `sin_TR` are [T, R/2] in fp32. Pairs are neighbours, or with `half` channels i and i + R/2. `first`: of
    the first R channels instead. `inverse` rotates back (V4's attention output, report section 2.3).
    """
    pairs = cos_TR.shape[-1]
    shape = (x.shape[0],) + (1,) * (x.dim() - 2) + (pairs,)
    cos, sin = cos_TR.view(shape), sin_TR.view(shape)
    sin = -sin if inverse else sin
    at = 2 * pairs if first else x.shape[-1] - 2 * pairs
    rotated, kept = (x[..., :at], x[..., at:]) if first else (x[..., at:], x[..., :at])
    rotated = rotated.float()
    a, b = rotated.chunk(2, -1) if half else (rotated[..., 0::2], rotated[..., 1::2])
    turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-2 if half else -1).flatten(-2).to(x.dtype)
    return torch.cat((turned, kept) if first else (kept, turned), dim=-1)


def rope_cost(x: Tensor, cos_TR: Tensor, sin_TR: Tensor, *, inverse: bool = False, half: bool = False,
              first: bool = False) -> Cost:
    """Three FLOPs a rotated channel; the whole tensor moves in and out."""
    rotated = x.numel() // x.shape[-1] * cos_TR.shape[-1] * 2
    return Cost(3.0 * rotated, 2 * nbytes(x) + nbytes(cos_TR, sin_TR))


def norm_rope(x: Tensor, weight_C: Tensor | None, eps: float, cos_TR: Tensor, sin_TR: Tensor, *,
              half: bool = False) -> Tensor:
    """Return `rope(rms_norm(x))`: queries (with no weight in V4), keys, entries, the indexer's keys."""
    return rope(rms_norm(x, weight_C, eps), cos_TR, sin_TR, half=half)


def norm_rope_cost(x: Tensor, weight_C: Tensor | None, eps: float, cos_TR: Tensor, sin_TR: Tensor, *,
                   half: bool = False) -> Cost:
    """The arithmetic of both; one read and one write."""
    flops = rms_norm_cost(x, weight_C, eps).flops + rope_cost(x, cos_TR, sin_TR).flops
    return Cost(flops, 2 * nbytes(x) + nbytes(weight_C, cos_TR, sin_TR))
