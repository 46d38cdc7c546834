"""The rules of routing, for the kernels of route.py: scores of experts, their gradients, and the choice of groups.

A tile is [TOKENS, BLOCK_E]. Shape suffixes: T tokens, E experts, G groups.
"""

from __future__ import annotations

import triton
import triton.language as tl

SCORES = {"sqrtsoftplus": 0, "sigmoid": 1, "softmax": 2}
SQRTSOFTPLUS, SIGMOID = tl.constexpr(0), tl.constexpr(1)


@triton.jit
def softplus(x):
    """log(1 + exp(x)), exact to the last bits where exp(x) is far below 1: log1p by Kahan's quotient."""
    e = tl.exp(-tl.abs(x))
    u = 1.0 + e
    below = tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))
    return tl.maximum(x, 0.0) + below


@triton.jit
def scores(x, real, SCORE: tl.constexpr):
    """Every expert's score from logits [T, E]; `real` marks the experts that there are."""
    if SCORE == SQRTSOFTPLUS:
        score = tl.sqrt(softplus(x))
    elif SCORE == SIGMOID:
        score = 1.0 / (1.0 + tl.exp(-x))
    else:
        x = tl.where(real, x, -1e30)
        score = tl.exp(x - tl.max(x, 1)[:, None])
        score = score / tl.sum(score, 1)[:, None]
    return score


@triton.jit
def slopes(x, score, grad, SCORE: tl.constexpr):
    """The gradient of logits [T, E] from that of their scores."""
    if SCORE == SQRTSOFTPLUS:
        slope = grad * (0.5 / (1.0 + tl.exp(-x)) / tl.where(score > 0.0, score, 1.0))
    elif SCORE == SIGMOID:
        slope = grad * score * (1.0 - score)
    else:
        slope = score * (grad - tl.sum(grad * score, 1)[:, None])
    return slope


@triton.jit
def only_best_groups(choice, c, E: tl.constexpr, TOKENS: tl.constexpr, GROUPS: tl.constexpr, KEPT: tl.constexpr,
                     BLOCK_G: tl.constexpr):
    """choice [T, E] with -inf outside the KEPT groups whose two best experts sum highest; ties to the lowest group."""
    size: tl.constexpr = E // GROUPS
    n = tl.arange(0, BLOCK_G)[None, :]
    low = -float("inf")
    sums = tl.full((TOKENS, BLOCK_G), low, tl.float32)
    for g in range(GROUPS):
        inside = tl.where((c >= g * size) & (c < (g + 1) * size), choice, low)
        best = tl.max(inside, 1)
        at = tl.min(tl.where(inside == best[:, None], c, E - 1), 1)
        sums = tl.where(n == g, (best + tl.max(tl.where(c == at[:, None], low, inside), 1))[:, None], sums)
    for g in range(GROUPS):
        own = tl.max(tl.where(n == g, sums, low), 1)[:, None]
        better = tl.sum(((sums > own) | ((sums == own) & (n < g))).to(tl.float32), 1)
        lost = tl.where(better >= KEPT, low, 0.0)[:, None]
        choice = tl.where((c >= g * size) & (c < (g + 1) * size), choice + lost, choice)
    return choice
