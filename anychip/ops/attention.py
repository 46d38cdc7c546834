"""Attention of many heads over one shared entry a row, which is key and value at once: V4's and absorbed MLA's.

V4 sees a sliding window and selected compressed entries, with a sink; MLA all entries before a token or selected ones.
All sequences of a batch lie one after the other in the token dimension; which rows a token sees is data.
Shape suffixes: T query tokens, H heads, C head channels, V value channels, N window rows, M compressed rows,
K selected rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..record import Cost
from .linear import nbytes

_BLOCK = 64  # query tokens worked on at once by the reference: memory stays linear in T


@dataclass(frozen=True)
class Ranges:
    """For each token, a run of consecutive rows: `start` and `count` are int32 [T].

    `num_pairs` is the sum of the counts and `max_count` the largest, known on the host without a copy.
    """

    start: Tensor
    count: Tensor
    num_pairs: int
    max_count: int


@dataclass(frozen=True)
class Keys:
    """What the queries attend to. Every entry is key, and its first channels are value.

    `window_NC` with `window` ranges; `compressed_MC` (None in sliding-window layers) with `selected`: Ranges
    where every visible entry is seen (HCA, or fewer entries than index_topk), else int32 rows [T, K], ascending,
    -1 where a token has fewer than K.
    """

    window_NC: Tensor
    window: Ranges
    compressed_MC: Tensor | None = None
    selected: Ranges | Tensor | None = None

    @staticmethod
    def chosen(entry_NC: Tensor, rows: Ranges | Tensor) -> Keys:
        """Return keys of which each token sees only the rows (as `selected`) that were chosen for it: no window."""
        like = rows.start if isinstance(rows, Ranges) else rows
        none = torch.zeros(like.shape[0], dtype=torch.int32, device=like.device)
        return Keys(entry_NC[:0], Ranges(none, none, 0, 0), entry_NC, rows)


def attention(query_THC: Tensor, keys: Keys, sink_H: Tensor | None, *, scale: float | None = None,
              value_width: int | None = None) -> Tensor:
    """Softmax attention with `scale` (None: C^-0.5); the sink adds exp(sink) to a head's denominator and no value.

    Returns [T, H, V]: V is `value_width`, the channels of an entry that are its value (None: all). fp32 inside.
    A token sees at least one row.
    """
    blocks = [_attend(query_THC, keys, sink_H, (at, scale, value_width))
              for at in range(0, query_THC.shape[0], _BLOCK)]
    return torch.cat(blocks) if blocks else query_THC[..., :value_width].clone()


def _attend(query_THC: Tensor, keys: Keys, sink_H: Tensor | None, form: tuple[int, float | None, int | None]) -> Tensor:
    at, scale, value_width = form
    prob_THK, entry_TKC = probabilities(query_THC, keys, sink_H, slice(at, at + _BLOCK), scale=scale)
    return (prob_THK @ entry_TKC[..., :value_width]).to(query_THC.dtype)


def probabilities(query_THC: Tensor, keys: Keys, sink_H: Tensor | None, span: slice, *,
                  scale: float | None = None) -> tuple[Tensor, Tensor]:
    """Return a block's probabilities [t, H, K], the sink's left out, and entries [t, K, C], fp32; 0 where unseen.

    The first `keys.window.max_count` of K are the window's rows, the others the compressed ones.
    """
    query = query_THC[span].float()
    rows, seen = range_rows(keys.window, span)
    entries, masks = [keys.window_NC[rows].float()], [seen]
    if keys.compressed_MC is not None and keys.compressed_MC.shape[0] and keys.selected is not None:
        rows, seen = selected_rows(keys.selected, span)
        entries.append(keys.compressed_MC[rows].float())
        masks.append(seen)
    entry_TKC, seen_TK = torch.cat(entries, 1), torch.cat(masks, 1)
    logit_THK = query @ entry_TKC.transpose(1, 2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    logit_THK = logit_THK.masked_fill(~seen_TK[:, None], float("-inf"))
    if sink_H is None:
        return logit_THK.softmax(-1), entry_TKC
    sink_TH1 = sink_H.float()[None, :, None].expand(query.shape[0], -1, 1)
    return torch.cat((logit_THK, sink_TH1), -1).softmax(-1)[..., :-1], entry_TKC


def range_rows(ranges: Ranges, span: slice) -> tuple[Tensor, Tensor]:
    """Return the rows [t, max_count] of a block of tokens and which of them are real (others point at row 0)."""
    step = torch.arange(ranges.max_count, device=ranges.start.device)
    seen = step < ranges.count[span, None]
    return torch.where(seen, ranges.start[span, None] + step, 0), seen


def selected_rows(selected: Ranges | Tensor, span: slice) -> tuple[Tensor, Tensor]:
    """Like `range_rows`, for either form of `Keys.selected`."""
    if isinstance(selected, Ranges):
        return range_rows(selected, span)
    rows = selected[span].long()
    return rows.clamp_min(0), rows >= 0


def attention_cost(query_THC: Tensor, keys: Keys, sink_H: Tensor | None, *, scale: float | None = None,
                   value_width: int | None = None) -> Cost:
    """2H(C + V) FLOPs for every (token, row) pair that is seen; rows move once, queries in and values out once."""
    _, heads, channels = query_THC.shape
    out = channels if value_width is None else value_width
    return Cost(
        2.0 * heads * (channels + out) * num_pairs(keys),
        nbytes(query_THC) * (1 + out / channels) + nbytes(keys.window_NC) + _compressed_bytes(keys),
    )


def num_pairs(keys: Keys) -> float:
    """Return how many (token, row) pairs are seen: exact for ranges; K for each token where rows were selected."""
    pairs = float(keys.window.num_pairs)
    if isinstance(keys.selected, Ranges):
        return pairs + keys.selected.num_pairs
    return pairs if keys.selected is None else pairs + keys.selected.numel()


def _compressed_bytes(keys: Keys) -> float:
    """Bytes of compressed rows that must be read: never more than the tokens select."""
    if keys.compressed_MC is None or keys.selected is None:
        return 0.0
    pairs = num_pairs(keys) - keys.window.num_pairs
    rows = min(float(keys.compressed_MC.shape[0]), pairs)
    return rows * keys.compressed_MC.shape[1] * keys.compressed_MC.element_size()
