"""mHC's work on the residual streams: their norm, their collapse into one, their mixing, and the gradients.

A tile is TOKENS tokens by BLOCK channels of one stream; coefficients come in planes ([S, T], [S*S, T]).
Shape suffixes: T tokens, S streams, d hidden.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .example import Launch, example

# ------------------------------------------------------------------------------------------------ examples


def _inputs(seed: int, tokens: int, width: int, dtype: torch.dtype) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    size = torch.logspace(-3, 3, tokens)[:, None, None]
    x = (torch.randn(tokens, 4, width, generator=g) * size).to(dtype)
    return {"x": x, "y": torch.randn(tokens, width, generator=g).to(dtype), "pre": torch.rand(4, tokens, generator=g),
            "comb": torch.rand(16, tokens, generator=g), "grad": torch.randn(tokens, 4, width, generator=g).to(dtype)}


def _constants(width: int, block: int, tokens: int) -> dict[str, int]:
    return {"D": width, "S": 4, "TOKENS": tokens, "BLOCK": block}


def _norm_launch(seed: int) -> Launch:
    x = _inputs(seed, 11, 300, torch.bfloat16)["x"]
    return Launch({"x": x, "rstd": torch.empty(11), "rows": 11, "eps": 1e-6}, (2,),
                  {"N": 1200, "ROWS": 4, "BLOCK": 512}, ("rstd",))


def _norm_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    return {"rstd": torch.rsqrt(a["x"].flatten(1).square().mean(-1) + a["eps"])}


def _collapse_launch(seed: int) -> Launch:
    made = _inputs(seed, 11, 300, torch.bfloat16)
    return Launch({"x": made["x"], "pre": made["pre"], "out": torch.empty_like(made["y"]), "tokens": 11}, (3,),
                  _constants(300, 128, 4), ("out",))


def _collapse_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    return {"out": torch.einsum("st,tsd->td", a["pre"], a["x"])}


def _mix_launch(seed: int) -> Launch:
    made = _inputs(seed, 11, 300, torch.bfloat16)
    return Launch({"y": made["y"], "x": made["x"], "post": made["pre"], "comb": made["comb"],
                   "out": torch.empty_like(made["x"]), "tokens": 11}, (3,),
                  {"D": 300, "TOKENS": 4, "BLOCK": 128, "SPAN": 256}, ("out",))


def _mix_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    mixed = torch.einsum("jkt,tjd->tkd", a["comb"].view(4, 4, -1), a["x"])
    return {"out": torch.einsum("kt,td->tkd", a["post"], a["y"]) + mixed}


def _dots_launch(seed: int) -> Launch:
    made = _inputs(seed, 11, 300, torch.bfloat16)
    return Launch({"a": made["x"], "b": made["grad"], "out": torch.empty(16, 11), "tokens": 11}, (3,),
                  {"D": 300, "A": 4, "TOKENS": 4, "BLOCK": 128}, ("out",))


def _dots_one_launch(seed: int) -> Launch:
    made = _inputs(seed, 37, 200, torch.float32)
    return Launch({"a": made["y"], "b": made["x"], "out": torch.empty(4, 37), "tokens": 37}, (2,),
                  {"D": 200, "A": 1, "TOKENS": 4, "BLOCK": 256}, ("out",))


def _dots_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    left, right = (a[k].reshape(a["tokens"], -1, a["D"]) for k in ("a", "b"))
    return {"out": torch.einsum("tad,tbd->abt", left, right).flatten(0, 1)}


def _back_launch(seed: int) -> Launch:
    made = _inputs(seed, 11, 300, torch.bfloat16)
    return Launch({"dx": made["y"], "x": made["x"], "through": made["grad"].float().flatten(1), "pre": made["pre"],
                   "pull": made["comb"][0].contiguous(), "out": torch.empty_like(made["x"]), "tokens": 11}, (3,),
                  _constants(300, 128, 4), ("out",))


def _back_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    spread = torch.einsum("st,td->tsd", a["pre"], a["dx"]) + a["pull"][:, None, None] * a["x"]
    return {"out": spread + a["through"].view_as(spread)}


# ------------------------------------------------------------------------------------------------- kernels


@example(_norm_launch, _norm_reference)
@triton.jit
def hyper_norm(x, rstd, rows, eps, N: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """rstd [T] = 1 / sqrt(mean of a token's N = S*d values squared + eps)."""
    r = tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK)[None, :]
    for tile in range(tl.program_id(0).to(tl.int64), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        live = r < (rows - tile * ROWS).to(tl.int32)
        square = tl.zeros((ROWS, BLOCK), tl.float32)
        for k in range(0, N, BLOCK):
            v = tl.load(x + tile * (ROWS * N) + k + r[:, None] * N + c, mask=live[:, None] & (c < N - k), other=0.0)
            square += v.to(tl.float32) * v.to(tl.float32)
        tl.store(rstd + tile * ROWS + r, tl.rsqrt(tl.sum(square, 1) * (1.0 / N) + eps), mask=live)


@example(_collapse_launch, _collapse_reference)
@triton.jit
def hyper_collapse(x, pre, out, tokens, D: tl.constexpr, S: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr):
    """out [T, d] = sum over streams s of pre[s] * x[:, s] for x [T, S, d], pre [S, T]."""
    blocks: tl.constexpr = (D + BLOCK - 1) // BLOCK
    t = tl.arange(0, TOKENS)
    c = tl.arange(0, BLOCK)[None, :]
    for tile in range(tl.program_id(0).to(tl.int64), tl.cdiv(tokens, TOKENS) * blocks, tl.num_programs(0)):
        token, k = (tile // blocks) * TOKENS, (tile % blocks) * BLOCK
        alive = t < (tokens - token).to(tl.int32)
        live = alive[:, None] & (c < D - k)
        total = tl.zeros((TOKENS, BLOCK), tl.float32)
        for s in range(S):
            v = tl.load(x + (token * S + s) * D + k + t[:, None] * (S * D) + c, mask=live, other=0.0).to(tl.float32)
            total += v * tl.load(pre + s * tokens + token + t, mask=alive, other=0.0)[:, None]
        tl.store(out + token * D + k + t[:, None] * D + c, total.to(out.dtype.element_ty), mask=live)


@example(_mix_launch, _mix_reference)
@triton.jit
def hyper_mix_streams(y, x, post, comb, out, tokens, D: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
                      SPAN: tl.constexpr):
    """out[:, k] = post[k] * y + sum over j of comb[j*4 + k] * x[:, j] for 4 streams: comb is used transposed.

    A tile is TOKENS tokens by SPAN channels, worked on BLOCK channels at a time with coefficients loaded once.
    """
    spans: tl.constexpr = (D + SPAN - 1) // SPAN
    t = tl.arange(0, TOKENS)
    c = tl.arange(0, BLOCK)[None, :]
    for tile in range(tl.program_id(0).to(tl.int64), tl.cdiv(tokens, TOKENS) * spans, tl.num_programs(0)):
        token, start = (tile // spans) * TOKENS, (tile % spans) * SPAN
        alive = t < (tokens - token).to(tl.int32)
        plane = comb + token + t
        w00 = tl.load(plane + 0 * tokens, mask=alive, other=0.0)[:, None]
        w01 = tl.load(plane + 1 * tokens, mask=alive, other=0.0)[:, None]
        w02 = tl.load(plane + 2 * tokens, mask=alive, other=0.0)[:, None]
        w03 = tl.load(plane + 3 * tokens, mask=alive, other=0.0)[:, None]
        w10 = tl.load(plane + 4 * tokens, mask=alive, other=0.0)[:, None]
        w11 = tl.load(plane + 5 * tokens, mask=alive, other=0.0)[:, None]
        w12 = tl.load(plane + 6 * tokens, mask=alive, other=0.0)[:, None]
        w13 = tl.load(plane + 7 * tokens, mask=alive, other=0.0)[:, None]
        w20 = tl.load(plane + 8 * tokens, mask=alive, other=0.0)[:, None]
        w21 = tl.load(plane + 9 * tokens, mask=alive, other=0.0)[:, None]
        w22 = tl.load(plane + 10 * tokens, mask=alive, other=0.0)[:, None]
        w23 = tl.load(plane + 11 * tokens, mask=alive, other=0.0)[:, None]
        w30 = tl.load(plane + 12 * tokens, mask=alive, other=0.0)[:, None]
        w31 = tl.load(plane + 13 * tokens, mask=alive, other=0.0)[:, None]
        w32 = tl.load(plane + 14 * tokens, mask=alive, other=0.0)[:, None]
        w33 = tl.load(plane + 15 * tokens, mask=alive, other=0.0)[:, None]
        p0 = tl.load(post + 0 * tokens + token + t, mask=alive, other=0.0)[:, None]
        p1 = tl.load(post + 1 * tokens + token + t, mask=alive, other=0.0)[:, None]
        p2 = tl.load(post + 2 * tokens + token + t, mask=alive, other=0.0)[:, None]
        p3 = tl.load(post + 3 * tokens + token + t, mask=alive, other=0.0)[:, None]
        for k in range(0, SPAN, BLOCK):
            at = start + k
            live = alive[:, None] & (c < (D - at).to(tl.int32))
            new = tl.load(y + token * D + at + t[:, None] * D + c, mask=live, other=0.0).to(tl.float32)
            from_ = x + token * (4 * D) + at + t[:, None] * (4 * D) + c
            x0 = tl.load(from_, mask=live, other=0.0).to(tl.float32)
            x1 = tl.load(from_ + D, mask=live, other=0.0).to(tl.float32)
            x2 = tl.load(from_ + 2 * D, mask=live, other=0.0).to(tl.float32)
            x3 = tl.load(from_ + 3 * D, mask=live, other=0.0).to(tl.float32)
            into = out + token * (4 * D) + at + t[:, None] * (4 * D) + c
            v = new * p0 + x0 * w00 + x1 * w10 + x2 * w20 + x3 * w30
            tl.store(into, v.to(out.dtype.element_ty), mask=live)
            v = new * p1 + x0 * w01 + x1 * w11 + x2 * w21 + x3 * w31
            tl.store(into + D, v.to(out.dtype.element_ty), mask=live)
            v = new * p2 + x0 * w02 + x1 * w12 + x2 * w22 + x3 * w32
            tl.store(into + 2 * D, v.to(out.dtype.element_ty), mask=live)
            v = new * p3 + x0 * w03 + x1 * w13 + x2 * w23 + x3 * w33
            tl.store(into + 3 * D, v.to(out.dtype.element_ty), mask=live)


@example(_dots_one_launch, _dots_reference)
@example(_dots_launch, _dots_reference)
@triton.jit
def hyper_dots(a, b, out, tokens, D: tl.constexpr, A: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr):
    """out[i*4 + j] [A*4, T] = dot of a[:, i] and b[:, j] for a [T, A, d], b [T, 4, d]: gradients of coefficients.

    A tile is TOKENS tokens of one of a's streams with all four of b's.
    """
    t = tl.arange(0, TOKENS)
    c = tl.arange(0, BLOCK)[None, :]
    for tile in range(tl.program_id(0).to(tl.int64), tl.cdiv(tokens, TOKENS) * A, tl.num_programs(0)):
        token, i = (tile // A) * TOKENS, tile % A
        alive = t < (tokens - token).to(tl.int32)
        s0 = tl.zeros((TOKENS, BLOCK), tl.float32)
        s1 = tl.zeros((TOKENS, BLOCK), tl.float32)
        s2 = tl.zeros((TOKENS, BLOCK), tl.float32)
        s3 = tl.zeros((TOKENS, BLOCK), tl.float32)
        for k in range(0, D, BLOCK):
            live = alive[:, None] & (c < D - k)
            left = tl.load(a + (token * A + i) * D + k + t[:, None] * (A * D) + c, mask=live, other=0.0)
            left = left.to(tl.float32)
            at = token * (4 * D) + k + t[:, None] * (4 * D) + c
            s0 += left * tl.load(b + at, mask=live, other=0.0).to(tl.float32)
            s1 += left * tl.load(b + at + D, mask=live, other=0.0).to(tl.float32)
            s2 += left * tl.load(b + at + 2 * D, mask=live, other=0.0).to(tl.float32)
            s3 += left * tl.load(b + at + 3 * D, mask=live, other=0.0).to(tl.float32)
        to = out + i * 4 * tokens + token + t
        tl.store(to, tl.sum(s0, 1), mask=alive)
        tl.store(to + tokens, tl.sum(s1, 1), mask=alive)
        tl.store(to + 2 * tokens, tl.sum(s2, 1), mask=alive)
        tl.store(to + 3 * tokens, tl.sum(s3, 1), mask=alive)


@example(_back_launch, _back_reference)
@triton.jit
def hyper_pre_backward(dx, x, through, pre, pull, out, tokens, D: tl.constexpr, S: tl.constexpr,
                       TOKENS: tl.constexpr, BLOCK: tl.constexpr):
    """out[:, s] = pre[s] * dx + through[:, s] + pull * x[:, s]: by the collapse, by the logits, by their norm."""
    blocks: tl.constexpr = (D + BLOCK - 1) // BLOCK
    t = tl.arange(0, TOKENS)
    c = tl.arange(0, BLOCK)[None, :]
    for tile in range(tl.program_id(0).to(tl.int64), tl.cdiv(tokens, TOKENS) * blocks, tl.num_programs(0)):
        token, k = (tile // blocks) * TOKENS, (tile % blocks) * BLOCK
        alive = t < (tokens - token).to(tl.int32)
        live = alive[:, None] & (c < D - k)
        g = tl.load(dx + token * D + k + t[:, None] * D + c, mask=live, other=0.0).to(tl.float32)
        slope = tl.load(pull + token + t, mask=alive, other=0.0)[:, None]
        for s in range(S):
            at = (token * S + s) * D + k
            v = tl.load(x + at + t[:, None] * (S * D) + c, mask=live, other=0.0).to(tl.float32)
            by_logits = tl.load(through + at + t[:, None] * (S * D) + c, mask=live, other=0.0)
            weight = tl.load(pre + s * tokens + token + t, mask=alive, other=0.0)[:, None]
            v = v * slope + g * weight + by_logits
            tl.store(out + at + t[:, None] * (S * D) + c, v.to(out.dtype.element_ty), mask=live)
