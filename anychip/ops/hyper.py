"""Residual streams: manifold-constrained hyper-connections (mHC) mix n of them in and out of a sub-layer.

Shape suffixes: T tokens, n streams, d hidden, m = 2n + n*n mixing logits. Report, section 2.2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..record import Cost
from .linear import nbytes


class HyperWeights(NamedTuple):
    """One site's parameters, fp32: `fn` [m, n*d], `base` [m], `scale` [3] (or [n, n*d], [n], [1] at the head)."""

    fn: Tensor
    base: Tensor
    scale: Tensor


class HyperRule(NamedTuple):
    """The constants: Sinkhorn iterations, its epsilon, the norm's epsilon."""

    sinkhorn_iters: int
    eps: float
    norm_eps: float


def _logits(streams_Tnd: Tensor, weights: HyperWeights, norm_eps: float) -> Tensor:
    """`fn @ vec(X) / rms(vec(X))`: the un-weighted norm is folded in after the product."""
    flat = streams_Tnd.flatten(1).float()
    return F.linear(flat, weights.fn.float()) * torch.rsqrt(flat.square().mean(-1, keepdim=True) + norm_eps)


def sinkhorn(logit_Tnn: Tensor, rule: HyperRule) -> Tensor:
    """Row softmax + eps, then alternate column and row normalisation, `sinkhorn_iters` column passes in all."""
    comb = logit_Tnn.softmax(-1) + rule.eps
    comb = comb / (comb.sum(-2, keepdim=True) + rule.eps)
    for _ in range(rule.sinkhorn_iters - 1):
        comb = comb / (comb.sum(-1, keepdim=True) + rule.eps)
        comb = comb / (comb.sum(-2, keepdim=True) + rule.eps)
    return comb


def hc_pre(streams_Tnd: Tensor, weights: HyperWeights, rule: HyperRule) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sub-layer's input [T, d], and `post` [T, n] and `comb` [T, n, n] (fp32) for `hc_post`.

    pre = sigmoid(m)+eps weighs the streams into the input; post = 2 sigmoid(m); comb is doubly stochastic.
    """
    n = streams_Tnd.shape[1]
    pre, post, comb = _logits(streams_Tnd, weights, rule.norm_eps).split((n, n, n * n), -1)
    pre_b, post_b, comb_b = weights.base.float().split((n, n, n * n))
    pre_s, post_s, comb_s = weights.scale.float().unbind()
    pre_Tn = torch.sigmoid(pre * pre_s + pre_b) + rule.eps
    post_Tn = 2 * torch.sigmoid(post * post_s + post_b)
    comb_Tnn = sinkhorn((comb * comb_s + comb_b).view(-1, n, n), rule)
    return _collapse(streams_Tnd, pre_Tn), post_Tn, comb_Tnn


def _collapse(streams_Tnd: Tensor, weight_Tn: Tensor) -> Tensor:
    return (weight_Tn[..., None] * streams_Tnd.float()).sum(1).to(streams_Tnd.dtype)


def hc_post(y_Td: Tensor, streams_Tnd: Tensor, post_Tn: Tensor, comb_Tnn: Tensor) -> Tensor:
    """Return the new streams: X'_k = post_k * y + sum_j comb[j, k] X_j (comb is used transposed)."""
    mixed = comb_Tnn.transpose(1, 2) @ streams_Tnd.float()
    return (post_Tn[..., None] * y_Td.float()[:, None] + mixed).to(streams_Tnd.dtype)


def hc_head(streams_Tnd: Tensor, weights: HyperWeights, rule: HyperRule) -> Tensor:
    """Collapse the streams into one [T, d] before the last norm: sigmoid weights, no Sinkhorn."""
    logit = _logits(streams_Tnd, weights, rule.norm_eps)
    return _collapse(streams_Tnd, torch.sigmoid(logit * weights.scale.float() + weights.base.float()) + rule.eps)


def add(x: Tensor, y: Tensor) -> Tensor:
    """Return `x + y`: the plain residual of models with one stream."""
    return x + y


def add_cost(x: Tensor, y: Tensor) -> Cost:
    """One FLOP an element; two reads and one write."""
    return Cost(float(x.numel()), 2 * nbytes(x) + nbytes(y))


def hc_pre_cost(streams_Tnd: Tensor, weights: HyperWeights, rule: HyperRule) -> Cost:
    """The mixing product, the Sinkhorn passes and the weighted sum; streams are read once."""
    tokens, n, d = streams_Tnd.shape
    flops = 2.0 * weights.fn.numel() + 4.0 * n * d + 4.0 * n * n * rule.sinkhorn_iters
    results = tokens * (d * streams_Tnd.element_size() + 4.0 * n * (n + 1))
    return Cost(tokens * flops, nbytes(streams_Tnd, weights.fn) + results)


def hc_post_cost(y_Td: Tensor, streams_Tnd: Tensor, post_Tn: Tensor, comb_Tnn: Tensor) -> Cost:
    """2n(n+1)d FLOPs a token; streams are read and written once."""
    tokens, n, d = streams_Tnd.shape
    return Cost(2.0 * tokens * n * (n + 1) * d, 2 * nbytes(streams_Tnd) + nbytes(y_Td, post_Tn, comb_Tnn))


def hc_head_cost(streams_Tnd: Tensor, weights: HyperWeights, rule: HyperRule) -> Cost:
    """The mixing product and the weighted sum."""
    tokens, n, d = streams_Tnd.shape
    flops = tokens * (2.0 * weights.fn.numel() + 4.0 * n * d)
    return Cost(flops, nbytes(streams_Tnd, weights.fn) + nbytes(streams_Tnd) / n)
