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
from .attention import LIST, RUN, attention_inputs, load_list, load_run, plan_attention, ranges, rows_seen
from .attention_tiles import KEYS, by_block, head_block, key_blocks, slots, with_slack
from .example import Launch, example
from .grid import Args

# ------------------------------------------------------------------------------------------------ examples


def _inputs(seed: int, form: str) -> tuple[Args, dict[str, Any]]:
    """Heads of 512 channels: more than a block's, an odd number; lists with gaps, runs that overlap between tokens."""
    shape, dtype = ((2, 40, 512), torch.bfloat16) if form == "list" else ((3, 5, 64), torch.float32)
    query, window, entries, sink = attention_inputs(seed, shape, dtype)
    chosen = torch.arange(35, dtype=torch.int32).repeat(2, 1) + torch.tensor([[0], [9]], dtype=torch.int32)
    chosen[0, 20:], chosen[1, 3] = -1, -1
    if form == "list":
        keys = Keys(window, ranges([0, 40], [9, 41]), entries, chosen)
    else:
        keys = Keys(window, ranges([0, 3, 2], [5, 128, 1]), entries, ranges([0, 2, 40], [0, 73, 3]))
    args, constants = plan_attention(query, keys)
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(seed + 1)).to(dtype)
    exact = {**{n: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in args.items()},
             "query": query.double(), "sink": sink.double(), "grad": grad.double(), **constants}
    lse, delta = _statistics(exact)
    return {"query": query, "grad": grad, "lse": lse.float(), "delta": delta.float()} | args, constants


def _statistics(a: dict[str, Any]) -> tuple[Tensor, Tensor]:
    lse, delta = (a["query"].new_zeros(a["query"].shape[0], a["heads"]) for _ in range(2))
    for t in range(lse.shape[0]):
        keys, logit = _logits(a, t)
        lse[t] = torch.cat((logit, a["sink"][:, None]), 1).logsumexp(1)
        delta[t] = (_heads(a, "grad", t) * ((logit - lse[t][:, None]).exp() @ keys)).sum(1)
    return lse, delta


def _logits(a: dict[str, Any], t: int) -> tuple[Tensor, Tensor]:
    window, entries = rows_seen(a, t)
    keys = torch.cat((a["window"][window], a["entries"][entries]))
    return keys, _heads(a, "query", t) @ keys.T * a["scale"]


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


def _list_inputs(seed: int) -> Launch:
    return _query_grad_launch(seed, "list")


def _run_inputs(seed: int) -> Launch:
    return _query_grad_launch(seed, "run")


def _keys_grad_launch(seed: int, form: str) -> Launch:
    args, constants = _inputs(seed, form)
    args |= slots(args, constants)
    tokens, _, channels = args["query"].shape  # type: ignore[union-attr]
    blocks = key_blocks(channels)
    args |= by_block(args, blocks["BLOCK_H"]) | with_slack(args, blocks["BLOCK_N"])
    args["given"] = torch.full((tokens, int(args["num_slots"]), channels), 7.0)  # type: ignore[arg-type]
    del args["num_window"]  # attention_query_grad's alone
    return Launch(args, (tokens,), constants | blocks, ("given",))


def _list_keys_inputs(seed: int) -> Launch:
    return _keys_grad_launch(seed, "list")


def _run_keys_inputs(seed: int) -> Launch:
    return _keys_grad_launch(seed, "run")


def _slopes(a: dict[str, Any], t: int) -> tuple[Tensor, Tensor, Tensor]:
    """A token's keys, its softmax and the gradient of its logits."""
    keys, logit = _logits(a, t)
    p = (logit - a["lse"][t][:, None]).exp()
    return keys, p, p * (_heads(a, "grad", t) @ keys.T - a["delta"][t][:, None]) * a["scale"]


def _query_grad_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    found = [_slopes(a, t) for t in range(a["query"].shape[0])]
    return {"query_grad": torch.stack([dz @ keys for keys, _, dz in found])}


def _keys_grad_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    given = a["given"].clone()
    for t in range(given.shape[0]):
        _, p, dz = _slopes(a, t)
        count, real = int(a["window_count"][t]), slice(0, int(a["entry_count"][t]))
        each = dz.T @ _heads(a, "query", t) + p.T @ _heads(a, "grad", t)
        given[t, :count] = each[:count]
        entries = given[t, a["window_slots"]:][real]
        if a["FORM"] == LIST.value:
            entries[a["chosen"][t][real] < 0] = 0
            entries[a["chosen"][t][real] >= 0] = each[count:]
        elif a["FORM"] == RUN.value:
            entries[:] = each[count:]
    return {"given": given}


def _delta_inputs(seed: int) -> Launch:
    generator = torch.Generator().manual_seed(seed)
    out, grad = (torch.randn(21, 512, generator=generator).bfloat16() for _ in range(2))
    return Launch({"out": out, "grad": grad, "delta": torch.zeros(21), "rows": 21}, (2,),
                  {"CHANNELS": 512, "ROWS": 8}, ("delta",))


def _delta_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    return {"delta": (a["out"] * a["grad"]).sum(1)}


# ------------------------------------------------------------------------------------------------- kernels


@example(_delta_inputs, _delta_reference)
@triton.jit
def attention_delta(out, grad, delta, rows, CHANNELS: tl.constexpr, ROWS: tl.constexpr):
    """delta[r] = the sum of out * grad over a head's channels."""
    r = tl.arange(0, ROWS)
    c = tl.arange(0, CHANNELS)[None, :]
    for first in range(tl.program_id(0).to(tl.int64) * ROWS, rows, tl.num_programs(0) * ROWS):
        left = (rows - first).to(tl.int32)
        at = first * CHANNELS + r[:, None] * CHANNELS + c
        x = tl.load(out + at, mask=r[:, None] < left, other=0.0).to(tl.float32)
        g = tl.load(grad + at, mask=r[:, None] < left, other=0.0).to(tl.float32)
        tl.store(delta + first + r, tl.sum(x * g, 1), mask=r < left)


@triton.jit
def query_step(query, grad, keys, seen, lse, delta, scale, total):
    """Add what a tile of keys gives to the queries' gradient.

    Both products are masked: on Ascend what lies beyond a tile's real rows is never computed, so it can be NaN.
    """
    logit = tl.where(seen[None, :], tl.dot(query, tl.trans(keys), input_precision="ieee") * scale, -1e30)
    slope = tl.where(seen[None, :], tl.dot(grad, tl.trans(keys), input_precision="ieee"), 0.0) - delta[:, None]
    slope = tl.exp(logit - lse[:, None]) * slope * scale
    return tl.dot(slope.to(keys.dtype), keys, total, input_precision="ieee")


@example(_run_inputs, _query_grad_reference)
@example(_list_inputs, _query_grad_reference)
@triton.jit
def attention_query_grad(
    query, grad, lse, delta, window, window_start, window_count, entries, entry_start, entry_count, chosen, query_grad,
    heads, num_window, num_entries, num_chosen, scale,
    FORM: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr,
):
    """query_grad [T, H, C]; one program a token and block of heads, as the forward pass."""
    t = tl.program_id(0)
    h0 = tl.program_id(1) * BLOCK_H
    h = tl.arange(0, BLOCK_H)
    hc = h[:, None] * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    at = (t.to(tl.int64) * tl.num_programs(1) * BLOCK_H + h0) * CHANNELS
    q = tl.load(query + at + hc)
    g = tl.load(grad + at + hc)
    high = tl.load(lse + t * heads + h0 + h, mask=h < heads - h0, other=0.0)
    mean = tl.load(delta + t * heads + h0 + h, mask=h < heads - h0, other=0.0)
    start = tl.load(window_start + t)
    count = tl.load(window_count + t)
    total = tl.zeros((BLOCK_H, CHANNELS), tl.float32)
    for first in range(0, count, BLOCK_N):
        keys, seen = load_run(window, num_window, start, count, first, CHANNELS, BLOCK_N)
        total = query_step(q, g, keys, seen, high, mean, scale, total)
    start = tl.load(entry_start + t)
    count = tl.load(entry_count + t)
    chosen += t.to(tl.int64) * num_chosen
    if FORM == RUN:
        for first in range(0, count, BLOCK_N):
            keys, seen = load_run(entries, num_entries, start, count, first, CHANNELS, BLOCK_N)
            total = query_step(q, g, keys, seen, high, mean, scale, total)
    if FORM == LIST:
        for first in range(0, count, BLOCK_N):
            keys, row, seen = load_list(entries, chosen + first, num_entries, count - first, CHANNELS, BLOCK_N)
            total = query_step(q, g, keys, seen, high, mean, scale, total)
    at = (t.to(tl.int64) * heads + h0) * CHANNELS
    tl.store(query_grad + at + hc, total.to(query_grad.dtype.element_ty), mask=h[:, None] < heads - h0)


@triton.jit
def load_next(rows, start, CHANNELS: tl.constexpr, BLOCK_N: tl.constexpr):
    """The tile [N, C] of the rows from `start` on: no mask, see `load_run`."""
    n = tl.arange(0, BLOCK_N)[:, None]
    return tl.load(rows + start.to(tl.int64) * CHANNELS + n * CHANNELS + tl.arange(0, CHANNELS)[None, :])


@triton.jit
def keys_step(query, grad, lse, delta, keys, seen, heads, scale,
              CHANNELS: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr):
    """The gradient [N, C] that one token gives to a tile of its keys; zero where they are not seen."""
    h = tl.arange(0, BLOCK_H)
    hc = h[:, None] * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    total = tl.zeros((BLOCK_N, CHANNELS), tl.float32)
    for h0 in range(0, heads, BLOCK_H):
        q = tl.load(query + h0 * CHANNELS + hc)
        g = tl.load(grad + h0 * CHANNELS + hc)
        high = tl.load(lse + h0 + h, mask=h < heads - h0, other=0.0)
        mean = tl.load(delta + h0 + h, mask=h < heads - h0, other=0.0)
        live = seen[:, None] & (h[None, :] < heads - h0)
        logit = tl.where(live, tl.dot(keys, tl.trans(q), input_precision="ieee") * scale, -1e30)
        weight = tl.exp(logit - high[None, :])
        slope = tl.where(live, tl.dot(keys, tl.trans(g), input_precision="ieee"), 0.0) - mean[None, :]
        slope = weight * slope * scale
        total = tl.dot(weight.to(keys.dtype), g, total, input_precision="ieee")
        total = tl.dot(slope.to(keys.dtype), q, total, input_precision="ieee")
    return total


@example(_run_keys_inputs, _keys_grad_reference)
@example(_list_keys_inputs, _keys_grad_reference)
@triton.jit
def attention_keys_grad(
    query, grad, lse, delta, window, window_start, window_count, entries, entry_start, entry_count, chosen, given,
    heads, num_entries, num_chosen, window_slots, num_slots, scale,
    FORM: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr,
):
    """given [T, S, C] (fp32): what each token gives to each key that it sees; slots that it does not use stay."""
    t = tl.program_id(0)
    n = tl.arange(0, BLOCK_N)
    c = tl.arange(0, CHANNELS)[None, :]
    query += t.to(tl.int64) * tl.cdiv(heads, BLOCK_H) * BLOCK_H * CHANNELS
    grad += t.to(tl.int64) * tl.cdiv(heads, BLOCK_H) * BLOCK_H * CHANNELS
    lse += t * heads
    delta += t * heads
    given += t.to(tl.int64) * num_slots * CHANNELS
    start = tl.load(window_start + t)
    count = tl.load(window_count + t)
    for first in range(0, count, BLOCK_N):
        keys = load_next(window, start + first, CHANNELS, BLOCK_N)
        step = keys_step(query, grad, lse, delta, keys, n < count - first, heads, scale, CHANNELS, BLOCK_H, BLOCK_N)
        tl.store(given + first * CHANNELS + n[:, None] * CHANNELS + c, step, mask=n[:, None] < count - first)
    start = tl.load(entry_start + t)
    count = tl.load(entry_count + t)
    chosen += t.to(tl.int64) * num_chosen
    given += window_slots * CHANNELS
    if FORM == RUN:
        for first in range(0, count, BLOCK_N):
            keys = load_next(entries, start + first, CHANNELS, BLOCK_N)
            step = keys_step(query, grad, lse, delta, keys, n < count - first, heads, scale, CHANNELS, BLOCK_H, BLOCK_N)
            tl.store(given + first * CHANNELS + n[:, None] * CHANNELS + c, step, mask=n[:, None] < count - first)
    if FORM == LIST:
        for first in range(0, count, BLOCK_N):
            keys, row, seen = load_list(entries, chosen + first, num_entries, count - first, CHANNELS, BLOCK_N)
            step = keys_step(query, grad, lse, delta, keys, seen, heads, scale, CHANNELS, BLOCK_H, BLOCK_N)
            tl.store(given + first * CHANNELS + n[:, None] * CHANNELS + c, step, mask=n[:, None] < count - first)
