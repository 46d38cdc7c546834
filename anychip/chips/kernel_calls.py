"""Made-up arguments for timing an op's kernels: a recorded call's shapes, with fewer tokens, and true row numbers.

What decides the work is as in the call: how many rows each token sees (the same for every token, their mean), equal
use of the experts. Values of the other tensors are whatever lies in fresh memory: time does not depend on them.
Shape suffixes: T tokens, R rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops import Keys, Ranges
from ..ops.trees import map_tensors

# positions of the arguments with one row a token (or a window); the others keep their size
TOKEN_ARGUMENTS = {
    "linear": (0,), "grouped_linear": (0,), "embed": (0,), "rms_norm": (0,), "layer_norm": (0,), "rope": (0, 1, 2),
    "norm_rope": (0, 3, 4), "attention": (0,), "grouped_attention": (0,), "compress": (3, 4), "index_topk": (0, 1),
    "route": (0,), "mlp": (0,), "experts": (0, 1, 2), "add": (0, 1), "hc_pre": (0,), "hc_post": (0, 1, 2, 3),
    "hc_head": (0,), "cross_entropy": (0, 2),
}
VOCABULARY = 8192  # rows of a vocabulary that the loss is timed with; its time is proportional to them
LOOKED_UP = 4096  # rows of an embedding that its lookup is timed with; its time does not depend on them


class Call(NamedTuple):
    """One op call to be timed: positional arguments, named ones, and how many times its work the real one is."""

    arguments: tuple[Any, ...]
    named: dict[str, Any]
    share: float = 1.0


def num_tokens(op: str, arguments: tuple[Any, ...]) -> int:
    """Return how many tokens (for `compress`: windows) a call works on."""
    return int(arguments[TOKEN_ARGUMENTS[op][0]].shape[0])


def made_up(op: str, arguments: tuple[Any, ...], named: dict[str, Any], tokens: int) -> Call:
    """Return a call of `tokens` tokens like the given one, whose tensors may be on the meta device."""
    fraction = tokens / num_tokens(op, arguments)
    kept = list(arguments)
    for at in TOKEN_ARGUMENTS[op]:
        kept[at] = map_tensors(kept[at], lambda t: t.new_empty(tokens, *t.shape[1:], device="meta"))
    change = _CHANGES.get(op, _same)
    call = change(Call(tuple(kept), dict(named)), fraction)
    return call._replace(arguments=map_tensors(call.arguments, _real), named=map_tensors(call.named, _real))


def _real(tensor: Tensor) -> Tensor:
    """The tensor itself where it holds values; else fresh memory, zeros for whole numbers."""
    if tensor.device.type != "meta":
        return tensor
    if tensor.is_floating_point():
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    return torch.zeros(tensor.shape, dtype=tensor.dtype)


def _same(call: Call, fraction: float) -> Call:
    return call


def _mean_ranges(ranges: Ranges, tokens: int, rows: int) -> Ranges:
    """The same number of rows for every token, the mean of the call's; they end at the token's own row."""
    count = min(max(1, round(ranges.num_pairs / max(ranges.start.shape[0], 1))), rows)
    start_T = torch.arange(tokens, dtype=torch.int32).clamp(max=rows - 1) - (count - 1)
    return Ranges(start_T.clamp(min=0), torch.full((tokens,), count, dtype=torch.int32), count * tokens, count)


def _from_first(ranges: Ranges, tokens: int, rows: int) -> Ranges:
    """The mean number of rows for every token, of one sequence: all from the first row on."""
    mean = _mean_ranges(ranges, tokens, rows)
    return replace(mean, start=torch.zeros_like(mean.start))


def _attention(call: Call, fraction: float) -> Call:
    query, keys, sink = call.arguments
    tokens = query.shape[0]
    selected = keys.selected
    if isinstance(selected, Ranges):
        selected = _from_first(selected, tokens, keys.compressed_MC.shape[0])
    elif selected is not None:
        rows = torch.arange(selected.shape[1], dtype=torch.int32).clamp(max=keys.compressed_MC.shape[0] - 1)
        selected = rows.expand(tokens, -1).contiguous()
    window = _mean_ranges(keys.window, tokens, keys.window_NC.shape[0])
    return call._replace(arguments=(query, Keys(keys.window_NC, window, keys.compressed_MC, selected), sink))


def _grouped_attention(call: Call, fraction: float) -> Call:
    """Fewer keys for fewer tokens, too: but for those that every token sees."""
    query, key, value, ranges, scale = call.arguments
    seen = _from_first(ranges, query.shape[0], key.shape[0])
    rows = max(seen.max_count, round(key.shape[0] * fraction))
    key, value = (kept.new_empty(rows, *kept.shape[1:]) for kept in (key, value))
    return call._replace(arguments=(query, key, value, seen, scale))


def _index_topk(call: Call, fraction: float) -> Call:
    query, weight, key, visible, topk = call.arguments
    ranges = _from_first(visible, query.shape[0], key.shape[0])
    return call._replace(arguments=(query, weight, key, ranges, topk))


def _compress(call: Call, fraction: float) -> Call:
    value, gate, ape, first, previous = call.arguments
    first = torch.arange(first.shape[0], dtype=torch.int32) * ape.shape[0]
    before = None if previous is None else torch.where(first > 0, first - ape.shape[0], -1).int()
    return call._replace(arguments=(value, gate, ape, first, before))


def _experts(call: Call, fraction: float) -> Call:
    """Fewer experts for fewer tokens, so that each has as many rows as in the call."""
    x, ids_TK, weight, banks, limit = call.arguments
    count = min(max(1, round(banks[0].shape[0] * fraction)), ids_TK.numel())
    ids = (torch.arange(ids_TK.numel()) % count).view(ids_TK.shape)
    fewer = tuple(bank.new_empty(count, *bank.shape[1:]) for bank in banks)
    return call._replace(arguments=(x, ids, weight, fewer, limit))


def _route(call: Call, fraction: float) -> Call:
    ids_TK = call.named.get("ids_TK")
    if ids_TK is None:
        return call
    tokens, topk = call.arguments[0].shape[0], ids_TK.shape[1]
    ids = torch.arange(tokens * topk).view(tokens, topk) % call.arguments[1].shape[0]
    return call._replace(named={**call.named, "ids_TK": ids})


def _cross_entropy(call: Call, fraction: float) -> Call:
    hidden, head, target = call.arguments
    rows = min(VOCABULARY, head.shape[0])
    return Call((hidden, head.new_empty(rows, head.shape[1]), target), call.named, head.shape[0] / rows)


def _embed(call: Call, fraction: float) -> Call:
    ids, weight = call.arguments
    return call._replace(arguments=(ids, weight.new_empty(min(LOOKED_UP, weight.shape[0]), weight.shape[1])))


_CHANGES: dict[str, Callable[[Call, float], Call]] = {
    "attention": _attention, "grouped_attention": _grouped_attention, "index_topk": _index_topk, "compress": _compress,
    "experts": _experts, "route": _route, "cross_entropy": _cross_entropy, "embed": _embed,
}
