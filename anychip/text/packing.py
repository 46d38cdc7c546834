"""Packed batches: rows of equal length filled with samples that do not see each other, in an order from a seed.

What a step holds depends on the seed and the step alone: not on ranks, not on the steps before. So the position in
the data is the step's number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from anychip.errors import InputError
from anychip.model import Layout
from anychip.text.store import TokenStore

Numbers = npt.NDArray[np.int64]


class Rows(Protocol):
    """Rows of `length` tokens that can be read in any order."""

    length: int
    digest: str

    def __len__(self) -> int: ...

    def at(self, row: int) -> tuple[Numbers, Numbers, list[int]]:
        """Return inputs and targets [length] (-1: no loss), and the lengths of the samples that fill the row."""
        ...


class PackedBatches:
    """`batch` rows a step. Every row comes once an epoch; each epoch has its own order."""

    def __init__(self, rows: Rows, batch: int, seed: int) -> None:
        if batch < 1:
            raise InputError(f"batch={batch} must be at least 1")
        self.rows, self.batch, self.seed = rows, batch, seed
        self._epoch, self._order = -1, np.empty(0, np.int64)  # the epoch last asked for, and its order

    @property
    def digest(self) -> str:
        """What the rows hold, as a hash."""
        return self.rows.digest

    def at(self, step: int) -> tuple[Tensor, Tensor, Layout]:
        """Return inputs and targets, int64 [batch, length], and where the samples lie. Raises InputError below 0."""
        if step < 0:
            raise InputError(f"there is no training step {step}; steps count from 0")
        drawn = [self.rows.at(self._row(step * self.batch + i)) for i in range(self.batch)]
        inputs, targets = (torch.from_numpy(np.stack([row[part] for row in drawn])) for part in (0, 1))
        return inputs, targets, Layout.whole([length for row in drawn for length in row[2]])

    def _row(self, number: int) -> int:
        """The number-th row that a run sees."""
        epoch, at = divmod(number, len(self.rows))
        if self._epoch != epoch:
            self._epoch, self._order = epoch, shuffled(len(self.rows), f"{self.seed}/{epoch}")
        return int(self._order[at])


class DocumentRows:
    """A store's documents, in an order from the seed, one after the other; a row ends where it ends.

    A document cut by the end of a row goes on in the next as a sample of its own. The last token of a document has no
    loss: what follows is another document.
    """

    def __init__(self, store: TokenStore, length: int, seed: int) -> None:
        """Raises InputError where the text is shorter than a row."""
        if length < 1 or len(store.tokens) <= length:
            raise InputError(f"length={length} needs at least {max(length, 1) + 1} tokens, the text has "
                             f"{len(store.tokens)}: give more text or a shorter length")
        self.store, self.length, self.digest = store, length, store.digest
        self._order = shuffled(len(store.ends), f"{seed}/documents")
        begins = np.concatenate((np.zeros(1, np.int64), store.ends[:-1]))
        self._begins = begins[self._order]
        self._ends = np.cumsum((store.ends - begins)[self._order])  # of the documents in their new order

    def __len__(self) -> int:
        return (len(self.store.tokens) - 1) // self.length

    def at(self, row: int) -> tuple[Numbers, Numbers, list[int]]:
        start = row * self.length
        tokens, cuts = self._read(start, start + self.length + 1)
        targets = tokens[1:].copy()
        targets[[cut - 1 for cut in cuts if cut <= self.length]] = -1
        inside = [cut for cut in cuts if cut < self.length]
        return tokens[:-1], targets, np.diff([0, *inside, self.length]).tolist()

    def _read(self, start: int, stop: int) -> tuple[Numbers, list[int]]:
        """Tokens start..stop of the reordered text, and where in them documents begin."""
        parts, cuts, at = [], [], start
        document = int(np.searchsorted(self._ends, start, side="right"))
        while at < stop:
            end = min(int(self._ends[document]), stop)
            first = int(self._ends[document - 1]) if document else 0
            if at > start:
                cuts.append(at - start)
            source = int(self._begins[document]) + at - first
            parts.append(np.asarray(self.store.tokens[source : source + end - at], np.int64))
            at, document = end, document + 1
        return np.concatenate(parts), cuts


class SampleRows:
    """Whole samples (inputs, targets) packed into rows, the longest first, each into the fullest row with room.

    What stays empty is a sample of its own, of token `filler`, without a loss.
    """

    def __init__(self, samples: Sequence[tuple[Numbers, Numbers]], length: int, filler: int) -> None:
        """Raises InputError with every sample that is longer than a row."""
        long = [f"{i} ({len(inputs)} tokens)" for i, (inputs, _) in enumerate(samples) if len(inputs) > length]
        if long or not samples:
            raise InputError("there are no samples" if not samples else
                             f"{len(long)} of {len(samples)} samples are longer than length={length}: number "
                             f"{', '.join(long[:5])}; give a greater length, or leave them out")
        self.samples, self.length, self._filler = samples, length, filler
        digest = hashlib.sha256()
        for inputs, targets in samples:
            digest.update(np.array([len(inputs)]).tobytes() + inputs.tobytes() + targets.tobytes())
        self.digest, self._rows = digest.hexdigest(), _packed([len(inputs) for inputs, _ in samples], length)

    def __len__(self) -> int:
        return len(self._rows)

    def at(self, row: int) -> tuple[Numbers, Numbers, list[int]]:
        chosen = [self.samples[i] for i in self._rows[row]]
        lengths = [len(inputs) for inputs, _ in chosen]
        rest = self.length - sum(lengths)
        filler = np.full(rest, self._filler, np.int64), np.full(rest, -1, np.int64)
        inputs, targets = (np.concatenate([sample[part] for sample in (*chosen, filler)]) for part in (0, 1))
        return inputs, targets, lengths + [rest] * (rest > 0)


def _packed(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Best fit, longest first (ties by number): the samples of each row."""
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # free tokens -> rows
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        free = min((left for left, of in by_room.items() if left >= lengths[i] and of), default=None)
        if free is None:
            rows.append([])
            row, free = len(rows) - 1, room
        else:
            row = by_room[free].pop(0)
        rows[row].append(i)
        by_room.setdefault(free - lengths[i], []).append(row)
    return rows


def shuffled(count: int, name: str) -> Numbers:
    """Return the numbers 0..count-1 in an order that depends on `name` alone, on every machine and version."""
    start = np.uint64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
    with np.errstate(over="ignore"):  # splitmix64: sums and products modulo 2^64
        x = start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(x ^ (x >> np.uint64(31)), kind="stable").astype(np.int64)
