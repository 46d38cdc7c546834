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
                   "out": torch.empty_like(made["x"]), "tokens": 11}, (3,), _constants(300, 128, 4), ("out",))


def _mix_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    mixed = torch.einsum("jkt,tjd->tkd", a["comb"].view(4, 4, -1), a["x"])
    return {"out": torch.einsum("kt,td->tkd", a["post"], a["y"]) + mixed}


def _dots_launch(seed: int) -> Launch:
    made = _inputs(seed, 11, 300, torch.bfloat16)
    return Launch({"a": made["x"], "b": made["grad"], "out": torch.empty(16, 11), "tokens": 11}, (3,),
                  {"D": 300, "A": 4, "B": 4, "TOKENS": 4, "BLOCK": 128}, ("out",))


def _dots_one_launch(seed: int) -> Launch:
    made = _inputs(seed, 5, 200, torch.float32)
    return Launch({"a": made["y"], "b": made["x"], "out": torch.empty(4, 5), "tokens": 5}, (2,),
                  {"D": 200, "A": 1, "B": 4, "TOKENS": 4, "BLOCK": 256}, ("out",))


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
def hyper_mix_streams(y, x, post, comb, out, tokens, D: tl.constexpr, S: tl.constexpr, TOKENS: tl.constexpr,
                      BLOCK: tl.constexpr):
    """out[:, k] = post[k] * y + sum over j of comb[j*S + k] * x[:, j]: comb is used transposed."""
    blocks: tl.constexpr = (D + BLOCK - 1) // BLOCK
    t = tl.arange(0, TOKENS)
    c = tl.arange(0, BLOCK)[None, :]
    for tile in range(tl.program_id(0).to(tl.int64), tl.cdiv(tokens, TOKENS) * blocks, tl.num_programs(0)):
        token, k = (tile // blocks) * TOKENS, (tile % blocks) * BLOCK
        alive = t < (tokens - token).to(tl.int32)
        live = alive[:, None] & (c < D - k)
        new = tl.load(y + token * D + k + t[:, None] * D + c, mask=live, other=0.0).to(tl.float32)
        for to in range(S):
            total = new * tl.load(post + to * tokens + token + t, mask=alive, other=0.0)[:, None]
            for s in range(S):
                v = tl.load(x + (token * S + s) * D + k + t[:, None] * (S * D) + c, mask=live, other=0.0)
                weight = tl.load(comb + (s * S + to) * tokens + token + t, mask=alive, other=0.0)
                total += v.to(tl.float32) * weight[:, None]
            at = (token * S + to) * D + k
            tl.store(out + at + t[:, None] * (S * D) + c, total.to(out.dtype.element_ty), mask=live)


@example(_dots_one_launch, _dots_reference)
@example(_dots_launch, _dots_reference)
@triton.jit
def hyper_dots(a, b, out, tokens, D: tl.constexpr, A: tl.constexpr, B: tl.constexpr, TOKENS: tl.constexpr,
               BLOCK: tl.constexpr):
    """out[i*B + j] [A*B, T] = dot of a[:, i] and b[:, j] for a [T, A, d], b [T, B, d]: gradients of coefficients."""
    t = tl.arange(0, TOKENS)
    c = tl.arange(0, BLOCK)[None, :]
    for tile in range(tl.program_id(0).to(tl.int64), tl.cdiv(tokens, TOKENS) * (A * B), tl.num_programs(0)):
        token, pair = (tile // (A * B)) * TOKENS, tile % (A * B)
        alive = t < (tokens - token).to(tl.int32)
        total = tl.zeros((TOKENS, BLOCK), tl.float32)
        for k in range(0, D, BLOCK):
            live = alive[:, None] & (c < D - k)
            left = tl.load(a + (token * A + pair // B) * D + k + t[:, None] * (A * D) + c, mask=live, other=0.0)
            right = tl.load(b + (token * B + pair % B) * D + k + t[:, None] * (B * D) + c, mask=live, other=0.0)
            total += left.to(tl.float32) * right.to(tl.float32)
        tl.store(out + pair * tokens + token + t, tl.sum(total, 1), mask=alive)


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
