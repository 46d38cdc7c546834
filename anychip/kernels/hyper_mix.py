"""mHC's mixing coefficients from their logits: sigmoids and 20 Sinkhorn iterations, forward and backward.

Everything is in planes: one row a coefficient, tokens along it, so that a vector instruction works on neighbouring
tokens. (As [T, 4, 4] each token's 16 numbers are padded to 128 on Ascend: 54 times slower by estimate.)
Shape suffixes: m = 2n + n*n mixing logits, n streams (a power of two), T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .example import Launch, example
from .grid import Args

TOKENS = 256  # tokens of a tile: 16 planes of them are 16 KB

# ------------------------------------------------------------------------------------------------ examples


def _inputs(seed: int, tokens: int, streams: int = 4) -> dict[str, Tensor]:
    """Logits from flat to so steep that a softmax is one-hot; some norms tiny."""
    g = torch.Generator().manual_seed(seed)
    m = streams * (streams + 2)
    return {"proj": torch.randn(m, tokens, generator=g) * torch.logspace(-2, 1.5, tokens),
            "rstd": torch.logspace(-1, 0.5, tokens), "scale": 1 + torch.rand(3, generator=g),
            "base": torch.randn(m, generator=g)}


def _forward_launch(seed: int, tokens: int, iterations: int, block: int) -> Launch:
    made = _inputs(seed, tokens)
    args: Args = {**made, "pre": torch.empty(4, tokens), "post": torch.empty(4, tokens),
                  "comb": torch.empty(16, tokens), "sums": torch.empty(2 * iterations - 1, 4, tokens),
                  "tokens": tokens, "eps": 1e-6}
    return Launch(args, (2,), {"S": 4, "ITERATIONS": iterations, "TOKENS": block, "KEEP": True},
                  ("pre", "post", "comb", "sums"))


def _twenty_passes(seed: int) -> Launch:
    return _forward_launch(seed, 133, 20, 64)


def _sinkhorn(logit: Tensor, iterations: int, eps: float) -> tuple[Tensor, Tensor]:
    """The definition (`ops.hyper.sinkhorn`) of [n, n, T] with its divisors, in the logits' precision."""
    comb, sums = logit.softmax(1) + eps, []
    for step in range(2 * iterations - 1):
        axis = step % 2
        total = comb.sum(axis) + eps
        comb = comb / total.unsqueeze(axis)
        sums.append(total)
    return comb, torch.stack(sums)


def _forward_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    n, mixed = a["S"], a["proj"] * a["rstd"]
    scale = a["scale"].repeat_interleave(torch.tensor([n, n, n * n]))
    logit = mixed * scale[:, None] + a["base"][:, None]
    comb, sums = _sinkhorn(logit[2 * n:].view(n, n, -1), a["ITERATIONS"], a["eps"])
    return {"pre": torch.sigmoid(logit[:n]) + a["eps"], "post": 2 * torch.sigmoid(logit[n:2 * n]),
            "comb": comb.reshape(n * n, -1), "sums": sums}


def _backward_launch(seed: int, tokens: int, iterations: int, block: int) -> Launch:
    made = _inputs(seed, tokens)
    g = torch.Generator().manual_seed(seed + 1)
    made["proj"] *= 0.1
    given = {**made, "S": 4, "ITERATIONS": iterations, "eps": 1e-6}
    forward = _forward_reference({k: v.double() if isinstance(v, Tensor) else v for k, v in given.items()})
    args: Args = {**made, "comb": forward["comb"].float(), "sums": forward["sums"].float(),
                  "dpre": torch.randn(4, tokens, generator=g), "dpost": torch.randn(4, tokens, generator=g),
                  "dcomb": torch.randn(16, tokens, generator=g), "dlogit": torch.empty(24, tokens),
                  "dproj": torch.empty(24, tokens), "drstd": torch.empty(tokens), "tokens": tokens}
    return Launch(args, (2,), {"S": 4, "ITERATIONS": iterations, "TOKENS": block}, ("dlogit", "dproj", "drstd"))


def _twenty_passes_back(seed: int) -> Launch:
    return _backward_launch(seed, 133, 20, 64)


def _backward_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    n = a["S"]
    proj, rstd = (a[k].clone().requires_grad_() for k in ("proj", "rstd"))
    scale = a["scale"].repeat_interleave(torch.tensor([n, n, n * n]))
    logit = proj * rstd * scale[:, None] + a["base"][:, None]
    logit.retain_grad()
    with torch.enable_grad():
        comb, _ = _sinkhorn(logit[2 * n:].view(n, n, -1), a["ITERATIONS"], 1e-6)
        ((torch.sigmoid(logit[:n]) * a["dpre"]).sum() + (2 * torch.sigmoid(logit[n:2 * n]) * a["dpost"]).sum()
         + (comb.reshape(n * n, -1) * a["dcomb"]).sum()).backward()
    assert logit.grad is not None and proj.grad is not None and rstd.grad is not None
    return {"dlogit": logit.grad, "dproj": proj.grad, "drstd": rstd.grad}


def _gates(seed: int) -> Launch:
    made = _inputs(seed, 133)
    return Launch({"proj": made["proj"][:4].contiguous(), "rstd": made["rstd"], "scale": made["scale"][:1],
                   "base": made["base"][:4].contiguous(), "pre": torch.empty(4, 133), "tokens": 133, "eps": 1e-6},
                  (2,), {"S": 4, "TOKENS": 64}, ("pre",))


def _gates_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    return {"pre": torch.sigmoid(a["proj"] * a["rstd"] * a["scale"] + a["base"][:, None]) + a["eps"]}


# ------------------------------------------------------------------------------------------------- kernels


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), 0 where exp overflows."""
    return 1.0 / (1.0 + tl.exp(-x))


@example(_twenty_passes, _forward_reference)
@triton.jit
def hyper_mix_forward(proj, rstd, scale, base, pre, post, comb, sums, tokens, eps, S: tl.constexpr,
                      ITERATIONS: tl.constexpr, TOKENS: tl.constexpr, KEEP: tl.constexpr):
    """From proj [m, T] and 1/rms [T]: pre = sigmoid + eps, post = 2 sigmoid [S, T], comb [S*S, T] by Sinkhorn.

    KEEP stores the divisors [2*ITERATIONS-1, S, T] of every pass, which the backward pass walks back through.
    """
    s = tl.arange(0, S)
    t = tl.arange(0, TOKENS)
    row = s[:, None] * tokens + t[None, :]
    square = (s[:, None, None] * S + s[None, :, None]) * tokens + t[None, None, :]
    scale_pre, scale_post, scale_comb = tl.load(scale), tl.load(scale + 1), tl.load(scale + 2)
    base_pre, base_post = tl.load(base + s)[:, None], tl.load(base + S + s)[:, None]
    base_comb = tl.load(base + 2 * S + s[:, None] * S + s[None, :])[:, :, None]
    for tile in range(tl.program_id(0), tl.cdiv(tokens, TOKENS), tl.num_programs(0)):
        at = tile * TOKENS
        live = t < tokens - at
        norm = tl.load(rstd + at + t, mask=live, other=1.0)
        x = tl.load(proj + at + row, mask=live[None, :], other=0.0) * norm[None, :]
        tl.store(pre + at + row, sigmoid(x * scale_pre + base_pre) + eps, mask=live[None, :])
        x = tl.load(proj + S * tokens + at + row, mask=live[None, :], other=0.0) * norm[None, :]
        tl.store(post + at + row, 2.0 * sigmoid(x * scale_post + base_post), mask=live[None, :])
        k = tl.load(proj + 2 * S * tokens + at + square, mask=live[None, None, :], other=0.0) * norm[None, None, :]
        k = k * scale_comb + base_comb
        k = tl.exp(k - tl.max(k, 1)[:, None, :])
        k = k / tl.sum(k, 1)[:, None, :] + eps
        total = tl.sum(k, 0) + eps
        k = k / total[None, :, :]
        if KEEP:
            tl.store(sums + at + row, total, mask=live[None, :])
        for i in range(1, ITERATIONS):
            rows_total = tl.sum(k, 1) + eps
            k = k / rows_total[:, None, :]
            columns_total = tl.sum(k, 0) + eps
            k = k / columns_total[None, :, :]
            if KEEP:
                kept = sums + (2 * i - 1) * S * tokens + at + row
                tl.store(kept, rows_total, mask=live[None, :])
                tl.store(kept + S * tokens, columns_total, mask=live[None, :])
        tl.store(comb + at + square, k, mask=live[None, None, :])


@example(_twenty_passes_back, _backward_reference)
@triton.jit
def hyper_mix_backward(proj, rstd, scale, base, comb, sums, dpre, dpost, dcomb, dlogit, dproj, drstd, tokens,
                       S: tl.constexpr, ITERATIONS: tl.constexpr, TOKENS: tl.constexpr):
    """Gradients of the logits and of proj [m, T] and of 1/rms [T]; comb is multiplied back pass by pass."""
    s = tl.arange(0, S)
    t = tl.arange(0, TOKENS)
    row = s[:, None] * tokens + t[None, :]
    square = (s[:, None, None] * S + s[None, :, None]) * tokens + t[None, None, :]
    scale_pre, scale_post, scale_comb = tl.load(scale), tl.load(scale + 1), tl.load(scale + 2)
    base_pre, base_post = tl.load(base + s)[:, None], tl.load(base + S + s)[:, None]
    base_comb = tl.load(base + 2 * S + s[:, None] * S + s[None, :])[:, :, None]
    for tile in range(tl.program_id(0), tl.cdiv(tokens, TOKENS), tl.num_programs(0)):
        at = tile * TOKENS
        live = t < tokens - at
        norm = tl.load(rstd + at + t, mask=live, other=1.0)
        k = tl.load(comb + at + square, mask=live[None, None, :], other=0.0)
        g = tl.load(dcomb + at + square, mask=live[None, None, :], other=0.0)
        for back in range(1, ITERATIONS):
            kept = sums + (2 * (ITERATIONS - back) - 1) * S * tokens + at + row
            columns_total = tl.load(kept + S * tokens, mask=live[None, :], other=1.0)
            g = (g - tl.sum(g * k, 0)[None, :, :]) / columns_total[None, :, :]
            k = k * columns_total[None, :, :]
            rows_total = tl.load(kept, mask=live[None, :], other=1.0)
            g = (g - tl.sum(g * k, 1)[:, None, :]) / rows_total[:, None, :]
            k = k * rows_total[:, None, :]
        total = tl.load(sums + at + row, mask=live[None, :], other=1.0)
        g = (g - tl.sum(g * k, 0)[None, :, :]) / total[None, :, :]
        x = tl.load(proj + 2 * S * tokens + at + square, mask=live[None, None, :], other=0.0)
        p = x * norm[None, None, :] * scale_comb + base_comb
        p = tl.exp(p - tl.max(p, 1)[:, None, :])
        p = p / tl.sum(p, 1)[:, None, :]
        g = p * (g - tl.sum(g * p, 1)[:, None, :])
        tl.store(dlogit + 2 * S * tokens + at + square, g, mask=live[None, None, :])
        g = g * scale_comb
        tl.store(dproj + 2 * S * tokens + at + square, g * norm[None, None, :], mask=live[None, None, :])
        pull = tl.sum(tl.sum(g * x, 0), 0)
        x = tl.load(proj + at + row, mask=live[None, :], other=0.0)
        p = sigmoid(x * norm[None, :] * scale_pre + base_pre)
        d = tl.load(dpre + at + row, mask=live[None, :], other=0.0) * p * (1.0 - p)
        tl.store(dlogit + at + row, d, mask=live[None, :])
        d = d * scale_pre
        tl.store(dproj + at + row, d * norm[None, :], mask=live[None, :])
        pull += tl.sum(d * x, 0)
        x = tl.load(proj + S * tokens + at + row, mask=live[None, :], other=0.0)
        p = sigmoid(x * norm[None, :] * scale_post + base_post)
        d = tl.load(dpost + at + row, mask=live[None, :], other=0.0) * (2.0 * p * (1.0 - p))
        tl.store(dlogit + S * tokens + at + row, d, mask=live[None, :])
        d = d * scale_post
        tl.store(dproj + S * tokens + at + row, d * norm[None, :], mask=live[None, :])
        tl.store(drstd + at + t, pull + tl.sum(d * x, 0), mask=live)


@example(_gates, _gates_reference)
@triton.jit
def hyper_gates(proj, rstd, scale, base, pre, tokens, eps, S: tl.constexpr, TOKENS: tl.constexpr):
    """The head's weights: pre [S, T] = sigmoid(proj * rstd * scale + base) + eps."""
    s = tl.arange(0, S)
    t = tl.arange(0, TOKENS)
    row = s[:, None] * tokens + t[None, :]
    factor = tl.load(scale)
    shift = tl.load(base + s)[:, None]
    for tile in range(tl.program_id(0), tl.cdiv(tokens, TOKENS), tl.num_programs(0)):
        at = tile * TOKENS
        live = t < tokens - at
        norm = tl.load(rstd + at + t, mask=live, other=1.0)
        x = tl.load(proj + at + row, mask=live[None, :], other=0.0) * norm[None, :]
        tl.store(pre + at + row, sigmoid(x * factor + shift) + eps, mask=live[None, :])
