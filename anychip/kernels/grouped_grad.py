"""The gradients of grouped attention: of the queries, tile by tile as forward, and of the keys and values.

As in attention_grad.py; but here every program of the keys' gradient has a block of keys of its own and goes over the
rows of queries that may see it (`spans`), so that nothing is held for each pair. Shape suffixes as in grouped.py; B
blocks of keys.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops import Ranges
from .attention_grad import slopes, turned_slopes
from .attention_keys import load_run, run_keys, run_rows
from .attention_tiles import KEYS
from .example import Launch, example
from .grouped import QUERIES, by_group, grouped_inputs, in_sight, plan_grouped, rows_attention

# --------------------------------------------------------------------------------------------------- plans


def plan_keys_grad(args: dict[str, Any], constants: dict[str, Any], seen: Ranges) -> tuple[
        dict[str, Any], dict[str, Any]]:
    """Return the args (without the gradients) and constants of `grouped_keys_grad` from those of the others."""
    block = 64 if max(constants["CHANNELS"], constants["VALUE"]) <= 128 else 32
    each = args["rows"] // seen.start.shape[0]
    spans_B2 = spans(seen, args["key"].shape[0], block) * each
    taken = ("query", "grad", "lse", "delta", "count", "rows", "slack", "num_keys", "scale")
    found = {name: args[name] for name in taken}
    found |= {"start": seen.start.int().repeat_interleave(each), "spans": spans_B2.int().contiguous(),
              "num_blocks": spans_B2.shape[0], "key": _slack(args["key"], block), "value": _slack(args["value"], block)}
    return found, constants | {"BLOCK_M": QUERIES, "BLOCK_N": block}


def spans(seen: Ranges, num_keys: int, block: int) -> Tensor:
    """Return int64 [B, 2]: the first token that sees a key of each block, and the one after the last.

    Some token stands for none: an accumulator of 910B that no product starts keeps what it held.
    """
    edge = torch.arange(0, num_keys, block, device=seen.start.device)
    start, tokens = seen.start.long()[:, None], seen.start.shape[0]
    sees_TB = (start < edge + block) & (start + seen.count.long()[:, None] > edge)
    first = sees_TB.int().argmax(0)
    end = tokens - sees_TB.flip(0).int().argmax(0)
    return torch.stack((first, torch.where(sees_TB.any(0), end, 1)), 1)


def _slack(rows_NGC: Tensor, block: int) -> Tensor:
    """The rows, and zeros after them up to a whole block."""
    return torch.nn.functional.pad(rows_NGC, (0, 0, 0, 0, 0, -rows_NGC.shape[0] % block))


# ------------------------------------------------------------------------------------------------ examples


def _started(seed: int, form: str) -> tuple[dict[str, Any], dict[str, Any], Ranges]:
    tensors, seen, scale = grouped_inputs(seed, form)
    args, constants = plan_grouped("ascend", *tensors, (seen, scale))
    query, groups = tensors[0], tensors[1].shape[1]
    grad = torch.randn(*query.shape[:2], constants["VALUE"], generator=torch.Generator().manual_seed(seed))
    given = by_group(grad.to(query.dtype), groups, max(constants["BLOCK_M"], QUERIES))
    exact = {n: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in args.items()}
    prob, lse, _, value = rows_attention(exact)
    delta = (given[:, : lse.shape[1]].double() * (prob @ value)).sum(-1)
    return args | {"grad": given, "lse": lse.float(), "delta": delta.float()}, constants, seen


def _query_launch(seed: int, form: str) -> Launch:
    args, constants, _ = _started(seed, form)
    args["query_grad"] = torch.full_like(args["query"][:, : args["rows"]], 7.0).contiguous()
    return Launch(args, (3,), constants | {"BLOCK_N": KEYS}, ("query_grad",))


def _mla(seed: int) -> Launch:
    return _query_launch(seed, "mla")


def _keys_launch(seed: int, form: str) -> Launch:
    args, constants, seen = _started(seed, form)
    args, constants = plan_keys_grad(args, constants, seen)
    for name in ("key", "value"):
        args[f"{name}_grad"] = torch.full_like(args[name][: args["num_keys"]], 7.0)
    return Launch(args, (3,), constants, ("key_grad", "value_grad"))


def _mla_keys(seed: int) -> Launch:
    return _keys_launch(seed, "mla")


def _gqa_keys(seed: int) -> Launch:
    return _keys_launch(seed, "gqa")


def _slopes_of(a: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    prob, _, key, value = rows_attention(a)
    grad = a["grad"][:, : a["rows"]]
    return prob, prob * (grad @ value.mT - a["delta"][..., None]) * a["scale"], grad


def _query_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    return {"query_grad": _slopes_of(a)[1] @ a["key"].transpose(0, 1)}


def _keys_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    prob, slope, grad = _slopes_of(a)
    found = (slope.mT @ a["query"][:, : a["rows"]], prob.mT @ grad)
    key_grad, value_grad = (t[:, : a["num_keys"]].transpose(0, 1) for t in found)
    return {"key_grad": key_grad, "value_grad": value_grad}


# ------------------------------------------------------------------------------------------------- kernels


@example(_mla, _query_reference)
@triton.jit
def grouped_query_grad(
    query, grad, lse, delta, key, value, tiles, num_tiles, count, query_grad, rows, slack, num_keys, scale,
    GROUPS: tl.constexpr, CHANNELS: tl.constexpr, TAIL: tl.constexpr, VALUE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """query_grad [G, R, C]; see `grouped_forward`. grad is [G, R + slack, V], lse and delta are [G, R]."""
    width: tl.constexpr = CHANNELS + TAIL
    m = tl.arange(0, BLOCK_M)
    for job in range(tl.program_id(0), tl.load(num_tiles) * GROUPS, tl.num_programs(0)):
        tile = tiles + job // GROUPS * 4
        group = tl.cast(job % GROUPS, tl.int64)
        first = tl.load(tile)
        left = tl.load(tile + 1) - first
        start = tl.load(tile + 2)
        most = tl.load(tile + 3)
        own = tl.load(count + first + m, mask=m < left, other=0)
        at = group * rows + first
        q, q_tail = run_keys(query, at + group * slack, width, CHANNELS, TAIL, BLOCK_M)
        g = load_run(grad, at + group * slack, VALUE, VALUE, BLOCK_M)
        high = tl.load(lse + at + m, mask=m < left, other=0.0)
        mean = tl.load(delta + at + m, mask=m < left, other=0.0)
        total = tl.zeros((BLOCK_M, CHANNELS), tl.float32)
        if TAIL > 0:
            rest = tl.zeros((BLOCK_M, TAIL), tl.float32)
        for n0 in range(0, most, BLOCK_N):
            row, seen = run_rows(num_keys, start, most, n0, BLOCK_N)
            keys, tail = run_keys(key + group * width, row, GROUPS * width, CHANNELS, TAIL, BLOCK_N)
            values = load_run(value + group * VALUE, row, GROUPS * VALUE, VALUE, BLOCK_N)
            sight = in_sight(row, start, seen, own, BLOCK_N)
            slope = slopes(q, q_tail, g, keys, tail, values, sight, high, mean, scale, TAIL)
            total = tl.dot(slope, keys, total, input_precision="ieee")
            if TAIL > 0:
                rest = tl.dot(slope, tail, rest, input_precision="ieee")
        place = query_grad + at * width + m[:, None] * width
        tl.store(place + tl.arange(0, CHANNELS)[None, :], total.to(query_grad.dtype.element_ty),
                 mask=m[:, None] < left)
        if TAIL > 0:
            tl.store(place + CHANNELS + tl.arange(0, TAIL)[None, :], rest.to(query_grad.dtype.element_ty),
                     mask=m[:, None] < left)


@example(_mla_keys, _keys_reference)
@example(_gqa_keys, _keys_reference)
@triton.jit
def grouped_keys_grad(
    query, grad, lse, delta, start, count, key, value, spans, num_blocks, key_grad, value_grad, rows, slack, num_keys,
    scale, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, TAIL: tl.constexpr, VALUE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):
    """key_grad [N, G, C] and value_grad [N, G, V]; spans [B, 2] are the rows of queries that may see a block of keys.

    A row of queries sees `count` [R] keys from `start` [R] on; key and value have whole blocks.
    """
    width: tl.constexpr = CHANNELS + TAIL
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    for job in range(tl.program_id(0), num_blocks * GROUPS, tl.num_programs(0)):
        block = job // GROUPS
        group = tl.cast(job % GROUPS, tl.int64)
        n0 = block * BLOCK_N
        first = tl.load(spans + block * 2)
        end = tl.load(spans + block * 2 + 1)
        keys, tail = run_keys(key + group * width, n0, GROUPS * width, CHANNELS, TAIL, BLOCK_N)
        values = load_run(value + group * VALUE, n0, GROUPS * VALUE, VALUE, BLOCK_N)
        keys_total = tl.zeros((BLOCK_N, CHANNELS), tl.float32)
        values_total = tl.zeros((BLOCK_N, VALUE), tl.float32)
        if TAIL > 0:
            rest = tl.zeros((BLOCK_N, TAIL), tl.float32)
        for r in range(first, end, BLOCK_M):
            at = group * rows + r
            q, q_tail = run_keys(query, at + group * slack, width, CHANNELS, TAIL, BLOCK_M)
            g = load_run(grad, at + group * slack, VALUE, VALUE, BLOCK_M)
            high = tl.load(lse + at + m, mask=m < end - r, other=0.0)
            mean = tl.load(delta + at + m, mask=m < end - r, other=0.0)
            begin = tl.load(start + r + m, mask=m < end - r, other=0) - n0
            own = tl.load(count + r + m, mask=m < end - r, other=0)
            sight = (n[:, None] >= begin[None, :]) & (n[:, None] < (begin + own)[None, :])
            weight, slope = turned_slopes(q, q_tail, g, keys, tail, values, sight, high, mean, scale, TAIL)
            values_total = tl.dot(weight, g, values_total, input_precision="ieee")
            keys_total = tl.dot(slope, q, keys_total, input_precision="ieee")
            if TAIL > 0:
                rest = tl.dot(slope, q_tail, rest, input_precision="ieee")
        live = n[:, None] < num_keys - n0
        place = (tl.cast(n0, tl.int64) + n[:, None]) * GROUPS + group
        tl.store(value_grad + place * VALUE + tl.arange(0, VALUE)[None, :],
                 values_total.to(value_grad.dtype.element_ty), mask=live)
        tl.store(key_grad + place * width + tl.arange(0, CHANNELS)[None, :],
                 keys_total.to(key_grad.dtype.element_ty), mask=live)
        if TAIL > 0:
            tl.store(key_grad + place * width + CHANNELS + tl.arange(0, TAIL)[None, :],
                     rest.to(key_grad.dtype.element_ty), mask=live)
