"""A pass over paged state: by the chip's own form of it, else through the ops one by one.

The ops want each sequence's rows side by side, so `PagedState` gathers them for every layer: right on every chip, at
the price of one copy of what is visible.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..ops.formats import fake_quantize_fp4, fake_quantize_fp8, round_to
from .layout import Layout
from .paged import BLOCK, Integers, PagedBatch, PagedCache
from .plan import Plan
from .state import State
from .transformer import Transformer


class PassResult(NamedTuple):
    """Logits [R, V] of the wanted tokens and the streams [T, n, d] of all, before the HC head."""

    logits_RV: Tensor
    streams_Tnd: Tensor


def run_pass(model: Transformer, cache: PagedCache, batch: PagedBatch) -> PassResult:
    """Run the batch's tokens and leave their state in the cache."""
    if (done := model.ops.batch_pass(model, cache, batch, None)) is not None:
        return PassResult(*done)
    with torch.inference_mode():
        hidden = model(_ids(cache, batch), _layout(batch), PagedState(cache, batch))
        return PassResult(_logits(model, cache, batch, hidden.hidden_Td), hidden.streams_Tnd)


def run_draft(model: Transformer, cache: PagedCache, batch: PagedBatch, streams_Tnd: Tensor) -> Tensor:
    """Run the MTP block on tokens whose `streams_Tnd` (overwritten) `run_pass` gave; `batch.ids` are the tokens after
    them. Returns the wanted tokens' logits [R, V] for the token after that."""
    if (done := model.ops.batch_pass(model, cache, batch, streams_Tnd)) is not None:
        return done[0]
    with torch.inference_mode():
        ids, plan = _ids(cache, batch), Plan(model.config, _layout(batch), PagedState(cache, batch), cache.device)
        embed = model.ops.at("mtp.0").embed(ids, model.embed.weight)
        hidden = model.mtp[0].predict(streams_Tnd, embed, ids, plan, model.ops)  # type: ignore[union-attr,operator]
        return _logits(model, cache, batch, hidden)


def _ids(cache: PagedCache, batch: PagedBatch) -> Tensor:
    return torch.from_numpy(batch.ids).to(cache.device)


def _logits(model: Transformer, cache: PagedCache, batch: PagedBatch, hidden_Td: Tensor) -> Tensor:
    return model.logits(hidden_Td[torch.from_numpy(batch.wanted).to(cache.device)])[:, : batch.vocab]


def _layout(batch: PagedBatch) -> Layout:
    return Layout(tuple(batch.starts.tolist()), tuple(batch.lengths.tolist()))


class _Ring(NamedTuple):
    """Where a pass's rows come from and go to: a gathered buffer holds each sequence's old rows, then its new ones."""

    zero: list[int]  # row of position 0 of each sequence
    old_to: Tensor
    old_slot: Tensor
    old_row: Tensor
    new_to: Tensor
    kept: Tensor  # new rows that the ring keeps
    kept_slot: Tensor
    kept_row: Tensor


class _Entries(NamedTuple):
    zero: list[int]
    new_block: Tensor
    new_row: Tensor
    block: Tensor
    row: Tensor


class PagedState(State):
    """A pass's view of the cache, as the model's layers want it. Good for one pass."""

    def __init__(self, cache: PagedCache, batch: PagedBatch) -> None:
        self.cache, self.batch, self.config = cache, batch, cache.config
        pairs = zip(batch.starts.tolist(), batch.lengths.tolist(), strict=True)
        self.spans = [(s, start, start + length) for s, (start, length) in enumerate(pairs)]
        self.rings: dict[str, _Ring] = {}
        self.lists: dict[str, _Entries] = {}
        for attention in self.config.kinds.values():
            for buffer in attention.buffers:
                if buffer.keep is None and buffer.book not in self.lists:
                    self.lists[buffer.book] = self._list(buffer.ratio)
                elif buffer.keep is not None and buffer.book not in self.rings:
                    self.rings[buffer.book] = self._ring(buffer.keep + 1, buffer.keep)

    def begin(self, layout: Layout) -> None:
        """Nothing to make room for: the batch has its blocks."""

    def commit(self) -> None:
        """Nothing to note: who runs the batch knows what it held."""

    def row_of_zero(self, book: str) -> Tensor:
        return torch.tensor((self.rings.get(book) or self.lists[book]).zero)

    def write(self, layer: int, name: str, rows: Tensor) -> Tensor:
        buffers = self.config.layer(layer).attention.buffers
        book = next(buffer.book for buffer in buffers if buffer.name == name)
        if book in self.lists:
            return self._write_entries(layer, name, self._stored(name, rows), self.lists[book])
        return self._write_ring(layer, name, self._stored(name, rows), self.rings[book])

    def _stored(self, name: str, rows: Tensor) -> Tensor:
        """What the cache's format leaves of entries; the compressors' tails stay fp32."""
        if self.cache.format == "fp32" or name.endswith((".value", ".gate")):
            return rows
        if name == "indexer.entry":
            return fake_quantize_fp4(rows)
        plain = rows.shape[1] - self.config.layer(0).attention.rope.channels
        return torch.cat((fake_quantize_fp8(rows[:, :plain], (1, 64)), round_to(rows[:, plain:].float(), "bf16")), 1)

    def _write_ring(self, layer: int, name: str, rows: Tensor, ring: _Ring) -> Tensor:
        place = self.cache.rings[layer, name]
        held = self.cache.slots[:, place.offset : place.end].unflatten(1, (place.rows, place.width))
        found = rows.new_empty(len(ring.old_to) + len(rows), place.width)
        found[ring.old_to] = held[ring.old_slot, ring.old_row].to(rows.dtype)
        found[ring.new_to] = rows
        held[ring.kept_slot, ring.kept_row] = rows[ring.kept].to(held.dtype)
        return found

    def _write_entries(self, layer: int, name: str, rows: Tensor, entries: _Entries) -> Tensor:
        held = self.cache.held(layer, name)
        held[entries.new_block, entries.new_row] = rows.to(held.dtype)
        return held[entries.block, entries.row].to(rows.dtype)

    def _ring(self, size: int, keep: int) -> _Ring:
        at, new, columns, zero = 0, 0, [list[int]() for _ in range(7)], []
        for s, start, end in self.spans:
            slot, old = int(self.batch.slots[s]), range(max(0, start - keep), start)
            kept = range(max(start, end - size), end)
            zero.append(at + len(old) - start)
            for column, values in zip(columns, (
                range(at, at + len(old)), [slot] * len(old), [p % size for p in old],
                range(at + len(old), at + len(old) + end - start),
                [new + p - start for p in kept], [slot] * len(kept), [p % size for p in kept]), strict=True):
                column.extend(values)
            at, new = at + len(old) + end - start, new + end - start
        return _Ring(zero, *(self._rows(column) for column in columns))

    def _list(self, ratio: int) -> _Entries:
        zero, at, new, seen = list[int](), 0, list[Integers](), list[Integers]()
        for s, start, end in self.spans:
            block, row = np.divmod(np.arange(end // ratio), BLOCK // ratio)
            places = np.stack((self.batch.tables[s, block], row))
            zero.append(at)
            at += end // ratio
            new.append(places[:, start // ratio :])
            seen.append(places)
        return _Entries(zero, *(self._rows(row) for places in (new, seen) for row in np.concatenate(places, 1)))

    def _rows(self, numbers: Sequence[int] | Integers) -> Tensor:
        return torch.as_tensor(numbers, dtype=torch.int64, device=self.cache.device)
