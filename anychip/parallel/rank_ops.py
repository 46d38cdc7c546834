"""A chip's ops on a rank that holds blocks of sequences, or some of the experts.

Each block is worked out by its own calls, so its bits do not depend on which other blocks a rank holds. Rows are
block by block; a weight's gradient is the tree sum of those of the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops import HyperWeights, Keys, Ops, Ranges
from .exchange import copies
from .expert import ExpertExchange

# What each op's positional arguments are: rows (cut by block), weight (copied by block), other (as it is).
_KINDS = {
    "linear": "rw", "grouped_linear": "rw", "embed": "rw", "rms_norm": "rwo", "layer_norm": "rwwo", "rope": "rrr",
    "norm_rope": "rworr", "mlp": "rwwwo", "route": "rwo", "router_scores": "rwo", "add": "rr", "hc_pre": "rwo",
    "hc_post": "rrrr", "hc_head": "rwo", "cross_entropy": "rwr",
}


class Copies:
    """The copies of the weights that one pass uses, a copy for each block held.

    `apart` says that sequences are cut into blocks, even where one block alone is held: then too each op gets rows of
    its own, so that an op's gradients are added up among themselves before they meet those of other ops.
    """

    def __init__(self, blocks: int, *, apart: bool) -> None:
        self.blocks, self.apart = blocks, apart
        self._found: dict[int, tuple[Tensor, tuple[Tensor, ...]]] = {}  # a weight is kept so that its id stays its own

    def clear(self) -> None:
        """Begin a pass."""
        self._found = {}

    def of(self, weight: Tensor | HyperWeights | None) -> Sequence[Any]:
        """Return a weight's copies, by block."""
        if weight is None:
            return (None,) * self.blocks
        if isinstance(weight, HyperWeights):
            return [HyperWeights(*parts) for parts in zip(*map(self.of, weight), strict=True)]
        if id(weight) not in self._found:
            self._found[id(weight)] = weight, copies(weight, self.blocks)
        return self._found[id(weight)][1]


class RankOps(Ops):
    """`inner`'s ops, block by block, with the experts where they are."""

    def __init__(self, inner: Ops, weights: Copies, experts: ExpertExchange | None) -> None:
        self._inner, self._weights, self._experts = inner, weights, experts
        for name, kinds in _KINDS.items():
            if weights.apart:
                setattr(self, name, _by_block(getattr(inner, name), kinds, weights, named=name == "route"))
            else:
                setattr(self, name, getattr(inner, name))

    def at(self, layer: str) -> Ops:
        return RankOps(self._inner.at(layer), self._weights, self._experts)

    def orthogonalize(self, stack_BMN: Tensor) -> Tensor:
        return self._inner.orthogonalize(stack_BMN)

    def muon(self, groups: Any, rule: Any) -> None:
        self._inner.muon(groups, rule)

    def experts(self, x_Td: Tensor, ids_TK: Tensor, weight_TK: Tensor, banks: tuple[Tensor, Tensor],  # type: ignore[override]
                limit: float) -> Tensor:
        rows = [_cut(t, self._weights.blocks) for t in (x_Td, ids_TK, weight_TK)]
        if self._experts is None:
            w13, w2 = map(self._weights.of, banks)
            return torch.cat([self._inner.experts(x, ids, weight, pair, limit)
                              for x, ids, weight, pair in zip(*rows, zip(w13, w2, strict=True), strict=True)])
        held = self._experts.copies(banks, self._weights.blocks)
        return torch.cat([self._experts.run(self._inner, tuple(block), held[at], limit)
                          for at, block in enumerate(zip(*rows, strict=True))])

    def attention(self, query_THC: Tensor, keys: Keys, sink_H: Tensor | None, **form: Any) -> Tensor:  # type: ignore[override]
        blocks = self._weights.blocks
        if not self._weights.apart:
            return self._inner.attention(query_THC, keys, sink_H, **form)
        parts = zip(_cut(query_THC, blocks), _cut_keys(keys, blocks), self._weights.of(sink_H), strict=True)
        return torch.cat([self._inner.attention(*part, **form) for part in parts])

    def grouped_attention(self, query_THC: Tensor, key_NGC: Tensor, value_NGV: Tensor,  # type: ignore[override]
                          ranges: Ranges, scale: float) -> Tensor:
        blocks, rows = self._weights.blocks, key_NGC.shape[0] // self._weights.blocks
        if not self._weights.apart:
            return self._inner.grouped_attention(query_THC, key_NGC, value_NGV, ranges, scale)
        cut = [_cut(t, blocks) for t in (query_THC, key_NGC, value_NGV)]
        parts = zip(*cut, _cut_ranges(ranges, rows, blocks), strict=True)
        return torch.cat([self._inner.grouped_attention(q, k, v, seen, scale) for q, k, v, seen in parts])

    def compress(self, value_NW: Tensor, gate_NW: Tensor, ape_mW: Tensor, first_E: Tensor,  # type: ignore[override]
                 previous_E: Tensor | None) -> Tensor:
        blocks, rows = self._weights.blocks, value_NW.shape[0] // self._weights.blocks
        if not self._weights.apart:
            return self._inner.compress(value_NW, gate_NW, ape_mW, first_E, previous_E)
        cut = [_cut(t, blocks) for t in (value_NW, gate_NW)]
        first = [part - at * rows for at, part in enumerate(_cut(first_E, blocks))]
        before = [None] * blocks if previous_E is None else [
            torch.where(part < 0, part, part - at * rows) for at, part in enumerate(_cut(previous_E, blocks))]
        parts = zip(*cut, self._weights.of(ape_mW), first, before, strict=True)
        return torch.cat([self._inner.compress(*part) for part in parts])

    def index_topk(self, query_THI: Tensor, weight_TH: Tensor, key_MI: Tensor, visible: Ranges,  # type: ignore[override]
                   topk: int) -> Tensor:
        blocks, rows = self._weights.blocks, key_MI.shape[0] // self._weights.blocks
        if not self._weights.apart:
            return self._inner.index_topk(query_THI, weight_TH, key_MI, visible, topk)
        cut = [_cut(t, blocks) for t in (query_THI, weight_TH, key_MI)]
        found = [self._inner.index_topk(query, weight, key, seen, topk)
                 for query, weight, key, seen in zip(*cut, _cut_ranges(visible, rows, blocks), strict=True)]
        return torch.cat([torch.where(part < 0, part, part + at * rows) for at, part in enumerate(found)])


def _by_block(op: Callable[..., Any], kinds: str, weights: Copies, *, named: bool) -> Callable[..., Any]:
    """Return the op with its rows cut by block. `named`: it has rows among its named arguments (route's ids)."""
    def run(*arguments: Any, **options: Any) -> Any:
        columns = [_cut(value, weights.blocks) if kind == "r" else
                   weights.of(value) if kind == "w" else (value,) * weights.blocks
                   for kind, value in zip(kinds, arguments, strict=False)]
        choices = [options] * weights.blocks
        if named and options.get("ids_TK") is not None:
            choices = [options | {"ids_TK": ids} for ids in _cut(options["ids_TK"], weights.blocks)]
        found = [op(*block, **choice) for *block, choice in zip(*columns, choices, strict=True)]
        return tuple(map(torch.cat, zip(*found, strict=True))) if isinstance(found[0], tuple) else torch.cat(found)

    return run


def _cut(rows: Tensor, blocks: int) -> tuple[Tensor, ...]:
    return rows.split(rows.shape[0] // blocks) if rows.shape[0] else (rows,) * blocks


def _cut_ranges(ranges: Ranges, rows: int, blocks: int) -> list[Ranges]:
    """Cut ranges by block; block b's point into its own `rows` rows."""
    parts = zip(_cut(ranges.start, blocks), _cut(ranges.count, blocks), strict=True)
    return [Ranges(start - at * rows, count, ranges.num_pairs // blocks, ranges.max_count)
            for at, (start, count) in enumerate(parts)]


def _cut_keys(keys: Keys, blocks: int) -> list[Keys]:
    window_rows = keys.window_NC.shape[0] // blocks
    window = zip(_cut(keys.window_NC, blocks), _cut_ranges(keys.window, window_rows, blocks), strict=True)
    if keys.compressed_MC is None or keys.selected is None:
        return [Keys(*part) for part in window]
    rows, selected = keys.compressed_MC.shape[0] // blocks, keys.selected
    chosen: Sequence[Ranges | Tensor]
    if isinstance(selected, Ranges):
        chosen = _cut_ranges(selected, rows, blocks)
    else:
        chosen = [torch.where(part < 0, part, part - at * rows) for at, part in enumerate(_cut(selected, blocks))]
    return [Keys(*part, entries, rows_TK)
            for part, entries, rows_TK in zip(window, _cut(keys.compressed_MC, blocks), chosen, strict=True)]
