"""Attention over window rows and selected entries (K = V, one head of keys), with a sink or none: the forward kernel.

One program works on one token and a block of its heads: heads are the rows of every product, so that a token reads
its keys once a block. It goes over the keys twice: first for the softmax's denominator, then for the weighted sum,
which so never needs to be rescaled and stays in the matrix unit's accumulator (with one running pass the [heads,
512] sum would cross 910B's memory between cube and vector cores at every step). A key's channels beyond its value
(MLA's rotated ones) are its tail: see attention_keys.py.
Shape suffixes: T query tokens, H heads, C head channels, N window rows, M entries, K selected rows.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import NotSupported
from ..ops import Keys, Ranges
from .attention_keys import add_up, list_keys, list_rows, logits, mix_in, run_keys, run_rows
from .attention_tiles import KEYS, head_block, whole_heads, whole_tile
from .example import Launch, example
from .grid import Args

# How a token's entries are given: there are none; a run of rows; a list of rows.
ABSENT, RUN, LIST = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


def plan_attention(query_THC: Tensor, keys: Keys, scale: float | None = None,
                   value_width: int | None = None) -> tuple[Args, dict[str, Any]]:
    """Return the args and constants that say which rows a token sees; the same for forward and backward.

    Raises NotSupported for values that are no power of two from 16 channels on, and tails of keys neither.
    """
    _, heads, channels = query_THC.shape
    value = value_width or channels
    for width in (value, channels - value or 16):
        if width < 16 or width & (width - 1):
            raise NotSupported("attention kernels take values, and parts of keys beyond them, of 16, 32, 64, ... "
                               f"channels; here they have {value} and {channels - value}")
    entries, selected, form = keys.compressed_MC, keys.selected, ABSENT.value
    start, count, chosen = keys.window.start, keys.window.count, keys.window.start
    if entries is None or selected is None or not entries.shape[0]:
        entries = keys.window_NC
    elif isinstance(selected, Ranges):
        form, start, count = RUN.value, selected.start, selected.count
    else:
        slot = torch.arange(1, selected.shape[1] + 1, device=selected.device)
        form, chosen, count = LIST.value, selected, ((selected >= 0) * slot).amax(1)  # slots up to the last real one
    rows = {"window_start": keys.window.start, "window_count": keys.window.count, "entry_start": start,
            "entry_count": count, "chosen": chosen}
    window, entries = whole_tile(keys.window_NC), whole_tile(entries)
    args: Args = {"window": window, "entries": entries}
    args |= {name: value.int().contiguous() for name, value in rows.items()}
    args |= {"heads": heads, "num_window": window.shape[0], "num_entries": entries.shape[0],
             "scale": channels**-0.5 if scale is None else scale,
             "num_chosen": chosen.shape[1] if form == LIST.value else 0}
    return args, {"FORM": form, "CHANNELS": value, "TAIL": channels - value}


def sinks(sink_H: Tensor | None, query_THC: Tensor) -> Tensor:
    """Return the sinks in fp32; where there are none, some that weigh nothing beside any key."""
    if sink_H is None:
        return query_THC.new_full((query_THC.shape[1],), -1e30, dtype=torch.float32)
    return sink_H.float().contiguous()


def attention_inputs(seed: int, shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Query, window, entries and sinks; one token's logits are large, one head's sink takes all, one's nothing."""
    tokens, heads, channels = shape
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(tokens, heads, channels, generator=generator)
    query[-1] *= 6
    window = torch.randn(131, channels, generator=generator)
    entries = torch.randn(75, channels, generator=generator)
    sink = torch.randn(heads, generator=generator)
    sink[0], sink[1] = 40.0, -40.0
    return query.to(dtype), window.to(dtype), entries.to(dtype), sink


def _example(query: Tensor, keys: Keys, sink: Tensor | None, *width: float) -> Launch:
    tokens, heads, _ = query.shape
    args, constants = plan_attention(query, keys, *width)  # type: ignore[arg-type]
    block = head_block("ascend", query)
    out, lse = query.new_full((tokens, heads, constants["CHANNELS"]), 7.0), torch.full((tokens, heads), 7.0)
    args |= {"query": whole_heads(query, block), "sink": sinks(sink, query), "out": out, "lse": lse}
    return Launch(args, (tokens, triton.cdiv(heads, block)), constants | {"BLOCK_H": block, "BLOCK_N": KEYS},
                  ("out", "lse"))


def ranges(start: list[int], count: list[int]) -> Ranges:
    """Return Ranges from plain lists."""
    return Ranges(torch.tensor(start, dtype=torch.int32), torch.tensor(count, dtype=torch.int32),
                  sum(count), max(count, default=0))


def _window_inputs(seed: int) -> Launch:
    """V4's head of 512 channels; one token sees one row, one a full window at the buffer's very end."""
    query, window, _, sink = attention_inputs(seed, (3, 40, 512), torch.bfloat16)
    return _example(query, Keys(window, ranges([0, 60, 3], [1, 67, 128])), sink)


def _run_inputs(seed: int) -> Launch:
    """HCA: window rows and a run of entries (none for the first token); few narrow heads, as in small models."""
    query, window, entries, sink = attention_inputs(seed, (3, 4, 64), torch.float32)
    keys = Keys(window, ranges([0, 3, 2], [5, 128, 1]), entries, ranges([0, 2, 40], [0, 73, 3]))
    return _example(query, keys, sink)


def _list_inputs(seed: int) -> Launch:
    """CSA: listed entries; a token without any, a gap of -1 inside a list, and the last entry of all."""
    query, window, entries, sink = attention_inputs(seed, (3, 24, 512), torch.bfloat16)
    chosen = torch.arange(67, dtype=torch.int32).repeat(3, 1) + torch.tensor([[0], [5], [8]], dtype=torch.int32)
    chosen[0], chosen[1, 20:], chosen[2, 3] = -1, -1, -1
    return _example(query, Keys(window, ranges([0, 1, 129], [17, 3, 2]), entries, chosen), sink)


def latent_keys(entries: Tensor) -> Keys:
    """MLA behind an indexer: listed entries alone, for two tokens; one sees a single entry, one has gaps of -1."""
    chosen = torch.arange(67, dtype=torch.int32).repeat(2, 1)
    chosen[0, 1:], chosen[1, 3] = -1, -1
    return Keys(entries[:0], ranges([0, 0], [0, 0]), entries, chosen)


def _latent_inputs(seed: int) -> Launch:
    query, _, entries, _ = attention_inputs(seed, (2, 24, 576), torch.bfloat16)
    return _example(query, latent_keys(entries), None, 192**-0.5, 512)


def rows_seen(args: dict[str, Any], t: int) -> tuple[Tensor, Tensor]:
    """Return the window rows and the entry rows (int64) that token t sees, in an example's args."""
    start, count = int(args["window_start"][t]), int(args["window_count"][t])
    window = torch.arange(start, start + count)
    if args["FORM"] == ABSENT.value:
        return window, window[:0]
    if args["FORM"] == LIST.value:
        return window, args["chosen"][t][args["chosen"][t] >= 0].long()
    start, count = int(args["entry_start"][t]), int(args["entry_count"][t])
    return window, torch.arange(start, start + count)


def _attention_reference(args: dict[str, Any]) -> dict[str, Tensor]:
    out, lse = torch.zeros_like(args["out"]), torch.zeros_like(args["lse"])
    for t in range(out.shape[0]):
        window, entries = rows_seen(args, t)
        keys = torch.cat((args["window"][window], args["entries"][entries]))
        logit = torch.cat((args["query"][t, : out.shape[1]] @ keys.T * args["scale"], args["sink"][:, None]), 1)
        out[t], lse[t] = logit.softmax(1)[:, :-1] @ keys[:, : out.shape[2]], logit.logsumexp(1)
    return {"out": out, "lse": lse}


@example(_latent_inputs, _attention_reference)
@example(_list_inputs, _attention_reference)
@example(_run_inputs, _attention_reference)
@example(_window_inputs, _attention_reference)
@triton.jit
def attention_forward(
    query, window, window_start, window_count, entries, entry_start, entry_count, chosen, sink, out, lse,
    heads, num_window, num_entries, num_chosen, scale,
    FORM: tl.constexpr, CHANNELS: tl.constexpr, TAIL: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr,
):
    """out [T, H, CHANNELS] and lse [T, H]; query has heads up to a whole block. `*_count` of a listed token counts
    slots, of which negative ones are absent."""
    t = tl.program_id(0)
    h0 = tl.program_id(1) * BLOCK_H
    h = tl.arange(0, BLOCK_H)
    width: tl.constexpr = CHANNELS + TAIL
    q, q_tail = run_keys(query, t.to(tl.int64) * tl.num_programs(1) * BLOCK_H + h0, width, CHANNELS, TAIL, BLOCK_H)
    start = tl.load(window_start + t)
    count = tl.load(window_count + t)
    entry_from = tl.load(entry_start + t)
    entry_left = tl.load(entry_count + t)
    chosen += t.to(tl.int64) * num_chosen

    peak = tl.load(sink + h0 + h, mask=h < heads - h0, other=0.0)
    total = tl.full((BLOCK_H,), 1.0, tl.float32)
    for first in range(0, count, BLOCK_N):
        row, seen = run_rows(num_window, start, count, first, BLOCK_N)
        keys, tail = run_keys(window, row, width, CHANNELS, TAIL, BLOCK_N)
        peak, total = add_up(logits(q, q_tail, keys, tail, seen[None, :], scale, TAIL), peak, total)
    if FORM == RUN:
        for first in range(0, entry_left, BLOCK_N):
            row, seen = run_rows(num_entries, entry_from, entry_left, first, BLOCK_N)
            keys, tail = run_keys(entries, row, width, CHANNELS, TAIL, BLOCK_N)
            peak, total = add_up(logits(q, q_tail, keys, tail, seen[None, :], scale, TAIL), peak, total)
    if FORM == LIST:
        for first in range(0, entry_left, BLOCK_N):
            listed, seen = list_rows(chosen + first, num_entries, entry_left - first, BLOCK_N)
            keys, tail = list_keys(entries, listed, entry_left - first, CHANNELS, TAIL)
            peak, total = add_up(logits(q, q_tail, keys, tail, seen[None, :], scale, TAIL), peak, total)
    denominator = peak + tl.log(total)
    tl.store(lse + t * heads + h0 + h, denominator, mask=h < heads - h0)

    mixed = tl.zeros((BLOCK_H, CHANNELS), tl.float32)
    for first in range(0, count, BLOCK_N):
        row, seen = run_rows(num_window, start, count, first, BLOCK_N)
        keys, tail = run_keys(window, row, width, CHANNELS, TAIL, BLOCK_N)
        mixed = mix_in(logits(q, q_tail, keys, tail, seen[None, :], scale, TAIL), denominator, keys, mixed)
    if FORM == RUN:
        for first in range(0, entry_left, BLOCK_N):
            row, seen = run_rows(num_entries, entry_from, entry_left, first, BLOCK_N)
            keys, tail = run_keys(entries, row, width, CHANNELS, TAIL, BLOCK_N)
            mixed = mix_in(logits(q, q_tail, keys, tail, seen[None, :], scale, TAIL), denominator, keys, mixed)
    if FORM == LIST:
        for first in range(0, entry_left, BLOCK_N):
            listed, seen = list_rows(chosen + first, num_entries, entry_left - first, BLOCK_N)
            keys, tail = list_keys(entries, listed, entry_left - first, CHANNELS, TAIL)
            mixed = mix_in(logits(q, q_tail, keys, tail, seen[None, :], scale, TAIL), denominator, keys, mixed)
    hc = h[:, None] * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    tl.store(out + (t.to(tl.int64) * heads + h0) * CHANNELS + hc, mixed.to(out.dtype.element_ty),
             mask=h[:, None] < heads - h0)
