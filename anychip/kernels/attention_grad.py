"""Attention's gradients: of the queries, and of the keys, which are values too.

With z the scaled products, p = exp(z - lse), g the gradient of the output and delta = sum(g * out) for each head:
dz = p * (g . key - delta), dquery = scale * dz @ keys, dkeys = scale * dz^T @ query + p^T @ g. The gradient of a sink
is -sum over tokens of exp(sink - lse) * delta. Many tokens see a key: each writes what it gives to it, and each key
then sums up what it is given, in order, so that the result is the same every time. (An atomic add beside a product
would count twice on 910B: both vector cores of a cube core carry it out.) Shape suffixes as in attention.py; S slots:
the most window rows, then the most entries, that a token sees.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops import Keys
from .attention import LIST, RUN, attention_inputs, latent_keys, plan_attention, ranges, rows_seen, sinks
from .attention_keys import list_keys, list_rows, load_run, logits, products, run_keys, run_rows
from .attention_tiles import KEYS, by_block, head_block, key_blocks, slots, with_slack
from .example import Launch, example
from .grid import Args

# ------------------------------------------------------------------------------------------------ examples


def _inputs(seed: int, form: str) -> tuple[Args, dict[str, Any]]:
    """Heads of 512 channels: more than a block's, an odd number; lists with gaps, runs that overlap between tokens."""
    shape, dtype = {"list": ((2, 40, 512), torch.bfloat16), "run": ((3, 5, 64), torch.float32),
                    "latent": ((2, 24, 576), torch.bfloat16)}[form]
    query, window, entries, sink = attention_inputs(seed, shape, dtype)
    chosen = torch.arange(35, dtype=torch.int32).repeat(2, 1) + torch.tensor([[0], [9]], dtype=torch.int32)
    chosen[0, 20:], chosen[1, 3] = -1, -1
    if form == "list":
        keys = Keys(window, ranges([0, 40], [9, 41]), entries, chosen)
    elif form == "run":
        keys = Keys(window, ranges([0, 3, 2], [5, 128, 1]), entries, ranges([0, 2, 40], [0, 73, 3]))
    else:
        keys, sink = latent_keys(entries), sinks(None, query)
    args, constants = plan_attention(query, keys, None, 512 if form == "latent" else None)
    grad = torch.randn(*shape[:2], constants["CHANNELS"], generator=torch.Generator().manual_seed(seed + 1)).to(dtype)
    exact = {**{n: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in args.items()},
             "query": query.double(), "sink": sink.double(), "grad": grad.double(), **constants}
    lse, delta = _statistics(exact)
    return {"query": query, "grad": grad, "lse": lse.float(), "delta": delta.float()} | args, constants


def _statistics(a: dict[str, Any]) -> tuple[Tensor, Tensor]:
    lse, delta = (a["query"].new_zeros(a["query"].shape[0], a["heads"]) for _ in range(2))
    for t in range(lse.shape[0]):
        keys, logit = _logits(a, t)
        lse[t] = torch.cat((logit, a["sink"][:, None]), 1).logsumexp(1)
        delta[t] = (_heads(a, "grad", t) * ((logit - lse[t][:, None]).exp() @ _values(a, keys))).sum(1)
    return lse, delta


def _logits(a: dict[str, Any], t: int) -> tuple[Tensor, Tensor]:
    window, entries = rows_seen(a, t)
    keys = torch.cat((a["window"][window], a["entries"][entries]))
    return keys, _heads(a, "query", t) @ keys.T * a["scale"]


def _values(a: dict[str, Any], keys: Tensor) -> Tensor:
    return keys[:, : a["CHANNELS"]]


def _heads(a: dict[str, Any], name: str, t: int) -> Tensor:
    """A token's heads, without those that fill its last block."""
    heads: Tensor = a[name][t, : a["heads"]]
    return heads


def _query_grad_launch(seed: int, form: str) -> Launch:
    args, constants = _inputs(seed, form)
    query = args["query"]
    assert isinstance(query, Tensor)
    (tokens, heads, _), block = query.shape, head_block("ascend", query)
    args |= by_block(args, block) | {"query_grad": torch.full_like(query, 7.0)}
    return Launch(args, (tokens, -(-heads // block)), constants | {"BLOCK_H": block, "BLOCK_N": KEYS}, ("query_grad",))


def _latent_inputs(seed: int) -> Launch:
    return _query_grad_launch(seed, "latent")


def _list_inputs(seed: int) -> Launch:
    return _query_grad_launch(seed, "list")


def _run_inputs(seed: int) -> Launch:
    return _query_grad_launch(seed, "run")


def _keys_grad_launch(seed: int, form: str) -> Launch:
    args, constants = _inputs(seed, form)
    args |= slots(args, constants)
    tokens, _, width = args["query"].shape  # type: ignore[union-attr]
    blocks = key_blocks(constants["CHANNELS"])
    args |= by_block(args, blocks["BLOCK_H"]) | with_slack(args, blocks["BLOCK_N"])
    args["given"] = torch.full((tokens, int(args["num_slots"]), width), 7.0)  # type: ignore[arg-type]
    del args["num_window"]  # attention_query_grad's alone
    return Launch(args, (tokens,), constants | blocks, ("given",))


def _latent_keys_inputs(seed: int) -> Launch:
    return _keys_grad_launch(seed, "latent")


def _list_keys_inputs(seed: int) -> Launch:
    return _keys_grad_launch(seed, "list")


def _run_keys_inputs(seed: int) -> Launch:
    return _keys_grad_launch(seed, "run")


def _slopes(a: dict[str, Any], t: int) -> tuple[Tensor, Tensor, Tensor]:
    """A token's keys, its softmax and the gradient of its logits."""
    keys, logit = _logits(a, t)
    p = (logit - a["lse"][t][:, None]).exp()
    return keys, p, p * (_heads(a, "grad", t) @ _values(a, keys).T - a["delta"][t][:, None]) * a["scale"]


def _query_grad_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    found = [_slopes(a, t) for t in range(a["query"].shape[0])]
    return {"query_grad": torch.stack([dz @ keys for keys, _, dz in found])}


def _keys_grad_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    given = a["given"].clone()
    for t in range(given.shape[0]):
        _, p, dz = _slopes(a, t)
        count, real = int(a["window_count"][t]), slice(0, int(a["entry_count"][t]))
        each = dz.T @ _heads(a, "query", t)
        each[:, : a["CHANNELS"]] += p.T @ _heads(a, "grad", t)
        given[t, :count] = each[:count]
        entries = given[t, a["window_slots"]:][real]
        if a["FORM"] == LIST.value:
            entries[a["chosen"][t][real] < 0] = 0
            entries[a["chosen"][t][real] >= 0] = each[count:]
        elif a["FORM"] == RUN.value:
            entries[:] = each[count:]
    return {"given": given}


# ------------------------------------------------------------------------------------------------- kernels


@triton.jit
def slopes(query, query_tail, grad, keys, tail, values, seen, lse, delta, scale, TAIL: tl.constexpr):
    """The gradient [H, N] of a tile's logits, in the keys' dtype.

    Both products are masked: on Ascend what lies beyond a tile's real rows is never computed, so it can be NaN.
    """
    logit = logits(query, query_tail, keys, tail, seen, scale, TAIL)
    slope = tl.where(seen, tl.dot(grad, tl.trans(values), input_precision="ieee"), 0.0) - delta[:, None]
    return (tl.exp(logit - lse[:, None]) * slope * scale).to(keys.dtype)


@example(_latent_inputs, _query_grad_reference)
@example(_run_inputs, _query_grad_reference)
@example(_list_inputs, _query_grad_reference)
@triton.jit
def attention_query_grad(
    query, grad, lse, delta, window, window_start, window_count, entries, entry_start, entry_count, chosen, query_grad,
    heads, num_window, num_entries, num_chosen, scale,
    FORM: tl.constexpr, CHANNELS: tl.constexpr, TAIL: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr,
):
    """query_grad [T, H, CHANNELS + TAIL]; one program a token and block of heads, as the forward pass."""
    t = tl.program_id(0)
    h0 = tl.program_id(1) * BLOCK_H
    h = tl.arange(0, BLOCK_H)
    width: tl.constexpr = CHANNELS + TAIL
    at = t.to(tl.int64) * tl.num_programs(1) * BLOCK_H + h0
    q, q_tail = run_keys(query, at, width, CHANNELS, TAIL, BLOCK_H)
    g = load_run(grad, at, CHANNELS, CHANNELS, BLOCK_H)
    high = tl.load(lse + t * heads + h0 + h, mask=h < heads - h0, other=0.0)
    mean = tl.load(delta + t * heads + h0 + h, mask=h < heads - h0, other=0.0)
    start = tl.load(window_start + t)
    count = tl.load(window_count + t)
    total = tl.zeros((BLOCK_H, CHANNELS), tl.float32)
    if TAIL > 0:
        rest = tl.zeros((BLOCK_H, TAIL), tl.float32)
    for first in range(0, count, BLOCK_N):
        row, seen = run_rows(num_window, start, count, first, BLOCK_N)
        keys, tail = run_keys(window, row, width, CHANNELS, TAIL, BLOCK_N)
        slope = slopes(q, q_tail, g, keys, tail, keys, seen[None, :], high, mean, scale, TAIL)
        total = tl.dot(slope, keys, total, input_precision="ieee")
        if TAIL > 0:
            rest = tl.dot(slope, tail, rest, input_precision="ieee")
    start = tl.load(entry_start + t)
    count = tl.load(entry_count + t)
    chosen += t.to(tl.int64) * num_chosen
    if FORM == RUN:
        for first in range(0, count, BLOCK_N):
            row, seen = run_rows(num_entries, start, count, first, BLOCK_N)
            keys, tail = run_keys(entries, row, width, CHANNELS, TAIL, BLOCK_N)
            slope = slopes(q, q_tail, g, keys, tail, keys, seen[None, :], high, mean, scale, TAIL)
            total = tl.dot(slope, keys, total, input_precision="ieee")
            if TAIL > 0:
                rest = tl.dot(slope, tail, rest, input_precision="ieee")
    if FORM == LIST:
        for first in range(0, count, BLOCK_N):
            listed, seen = list_rows(chosen + first, num_entries, count - first, BLOCK_N)
            keys, tail = list_keys(entries, listed, count - first, CHANNELS, TAIL)
            slope = slopes(q, q_tail, g, keys, tail, keys, seen[None, :], high, mean, scale, TAIL)
            total = tl.dot(slope, keys, total, input_precision="ieee")
            if TAIL > 0:
                rest = tl.dot(slope, tail, rest, input_precision="ieee")
    at = query_grad + (t.to(tl.int64) * heads + h0) * width + h[:, None] * width
    tl.store(at + tl.arange(0, CHANNELS)[None, :], total.to(query_grad.dtype.element_ty),
             mask=h[:, None] < heads - h0)
    if TAIL > 0:
        tl.store(at + CHANNELS + tl.arange(0, TAIL)[None, :], rest.to(query_grad.dtype.element_ty),
                 mask=h[:, None] < heads - h0)


@triton.jit
def turned_slopes(query, query_tail, grad, keys, tail, values, seen, lse, delta, scale, TAIL: tl.constexpr):
    """The softmax [N, H] of a tile of keys, and the gradient of its logits, in the keys' dtype."""
    weight = tl.exp(tl.where(seen, products(keys, tail, query, query_tail, TAIL) * scale, -1e30) - lse[None, :])
    slope = tl.where(seen, tl.dot(values, tl.trans(grad), input_precision="ieee"), 0.0) - delta[None, :]
    return weight.to(keys.dtype), (weight * slope * scale).to(keys.dtype)


@triton.jit
def give(given, query, grad, lse, delta, keys, tail, seen, left, heads, scale,
         CHANNELS: tl.constexpr, TAIL: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr):
    """Store the gradient [N, CHANNELS + TAIL] that one token gives to a tile of its keys, of which `left` have a slot;
    zero where they are not seen."""
    h = tl.arange(0, BLOCK_H)
    n = tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_N, CHANNELS), tl.float32)
    if TAIL > 0:
        rest = tl.zeros((BLOCK_N, TAIL), tl.float32)
    for h0 in range(0, heads, BLOCK_H):
        q, q_tail = run_keys(query, h0, CHANNELS + TAIL, CHANNELS, TAIL, BLOCK_H)
        g = load_run(grad, h0, CHANNELS, CHANNELS, BLOCK_H)
        high = tl.load(lse + h0 + h, mask=h < heads - h0, other=0.0)
        mean = tl.load(delta + h0 + h, mask=h < heads - h0, other=0.0)
        live = seen[:, None] & (h[None, :] < heads - h0)
        weight, slope = turned_slopes(q, q_tail, g, keys, tail, keys, live, high, mean, scale, TAIL)
        total = tl.dot(weight, g, total, input_precision="ieee")
        total = tl.dot(slope, q, total, input_precision="ieee")
        if TAIL > 0:
            rest = tl.dot(slope, q_tail, rest, input_precision="ieee")
    at = given + n[:, None] * (CHANNELS + TAIL)
    tl.store(at + tl.arange(0, CHANNELS)[None, :], total, mask=n[:, None] < left)
    if TAIL > 0:
        tl.store(at + CHANNELS + tl.arange(0, TAIL)[None, :], rest, mask=n[:, None] < left)


@example(_latent_keys_inputs, _keys_grad_reference)
@example(_run_keys_inputs, _keys_grad_reference)
@example(_list_keys_inputs, _keys_grad_reference)
@triton.jit
def attention_keys_grad(
    query, grad, lse, delta, window, window_start, window_count, entries, entry_start, entry_count, chosen, given,
    heads, num_entries, num_chosen, window_slots, num_slots, scale,
    FORM: tl.constexpr, CHANNELS: tl.constexpr, TAIL: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr,
):
    """given [T, S, CHANNELS + TAIL] (fp32): what each token gives to each key that it sees; other slots stay."""
    t = tl.program_id(0)
    n = tl.arange(0, BLOCK_N)
    width: tl.constexpr = CHANNELS + TAIL
    query += t.to(tl.int64) * tl.cdiv(heads, BLOCK_H) * BLOCK_H * width
    grad += t.to(tl.int64) * tl.cdiv(heads, BLOCK_H) * BLOCK_H * CHANNELS
    lse += t * heads
    delta += t * heads
    given += t.to(tl.int64) * num_slots * width
    start = tl.load(window_start + t)
    count = tl.load(window_count + t)
    for first in range(0, count, BLOCK_N):
        keys, tail = run_keys(window, start + first, width, CHANNELS, TAIL, BLOCK_N)
        give(given + first * width, query, grad, lse, delta, keys, tail, n < count - first, count - first, heads, scale,
             CHANNELS, TAIL, BLOCK_H, BLOCK_N)
    start = tl.load(entry_start + t)
    count = tl.load(entry_count + t)
    chosen += t.to(tl.int64) * num_chosen
    given += window_slots * width
    if FORM == RUN:
        for first in range(0, count, BLOCK_N):
            keys, tail = run_keys(entries, start + first, width, CHANNELS, TAIL, BLOCK_N)
            give(given + first * width, query, grad, lse, delta, keys, tail, n < count - first, count - first, heads,
                 scale, CHANNELS, TAIL, BLOCK_H, BLOCK_N)
    if FORM == LIST:
        for first in range(0, count, BLOCK_N):
            listed, seen = list_rows(chosen + first, num_entries, count - first, BLOCK_N)
            keys, tail = list_keys(entries, listed, count - first, CHANNELS, TAIL)
            give(given + first * width, query, grad, lse, delta, keys, tail, seen, count - first, heads, scale,
                 CHANNELS, TAIL, BLOCK_H, BLOCK_N)
