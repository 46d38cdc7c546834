"""The serving cache: V4's three kinds of state in two pools, so that many sequences share one memory.

A *slot* holds what one running sequence needs of its last tokens: for every layer a ring of window rows, and the
compressors' tails (rows of tokens whose windows are open, or overlap the next one). A *block* holds what 128 tokens
leave for ever: 32 CSA entries with their indexer keys and one HCA entry, for every layer. At a multiple of 128 tokens
the HCA tails are empty, so a *snapshot* of a slot without them, with the blocks so far, is all that another sequence
with the same tokens needs to go on from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import ModelConfig
from ..errors import InputError
from .rotary import angles, inverse_frequencies
from .state import CSA, HCA

BLOCK = 128  # tokens a block: lcm of the ratios
TAIL = {CSA: 2 * CSA, HCA: HCA}  # token rows that a compressor's ring keeps
Format = Literal["fp32", "fp8"]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Place:
    """Rows of one buffer of one layer: from `offset` floats into a slot or block, `rows` rows of `width` floats."""

    offset: int
    rows: int
    width: int

    @property
    def end(self) -> int:
        return self.offset + self.rows * self.width


class PagedCache:
    """Slots, blocks and snapshots of one model on one device, fp32. Uninitialised: what is read was written before.

    `format` fp8 rounds what is stored as the publisher's kernels do (entries E4M3 in blocks of 64 with a power-of-two
    scale and their rotated channels bf16, indexer keys E2M1 in blocks of 32); it is still kept in fp32.
    """

    def __init__(self, config: ModelConfig, *, num_blocks: int, num_slots: int, num_snapshots: int = 0,
                 max_tokens: int, device: torch.device | str = "cpu", format: Format = "fp32") -> None:
        if max_tokens > config.max_position_embeddings:
            raise InputError(f"{max_tokens} tokens were asked for; this model's context is "
                             f"{config.max_position_embeddings} (max_position_embeddings)")
        self.config, self.max_tokens, self.device, self.format = config, max_tokens, torch.device(device), format
        self.rings, snapshot, slot = _rings(config)
        self.entries, block = _entries(config)
        self.slots = torch.zeros(num_slots, slot, device=device)
        self.blocks = torch.zeros(num_blocks, block, device=device)
        self.snapshots = torch.empty(num_snapshots, snapshot, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes of the three pools, exactly."""
        return sum(t.numel() * t.element_size() for t in (self.slots, self.blocks, self.snapshots))

    @cached_property
    def angles(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """cos, sin of plain layers, cos, sin of compressed ones, for every position, each [max_tokens, R/2]."""
        positions = torch.arange(self.max_tokens)
        pairs = [angles(positions, inverse_frequencies(self.config, ratio)) for ratio in (0, CSA)]
        cos, sin, far_cos, far_sin = (t.to(self.device).contiguous() for pair in pairs for t in pair)
        return cos, sin, far_cos, far_sin

    def save(self, slot: int, snapshot: int) -> None:
        """Keep a slot whose sequence stands at a multiple of 128 tokens, or at most one beyond."""
        self.snapshots[snapshot].copy_(self.slots[slot, : self.snapshots.shape[1]])

    def restore(self, snapshot: int, slot: int) -> None:
        """Put a snapshot into a slot."""
        self.slots[slot, : self.snapshots.shape[1]].copy_(self.snapshots[snapshot])

    def copy_slot(self, source: int, target: int) -> None:
        """Copy a slot for a sequence that goes its own way from here."""
        self.slots[target].copy_(self.slots[source])

    def copy_block(self, source: int, target: int) -> None:
        """Copy a block that is not full yet."""
        self.blocks[target].copy_(self.blocks[source])


def _rings(config: ModelConfig) -> tuple[dict[tuple[int, str], Place], int, int]:
    """Places in a slot, the floats that a snapshot keeps (all before the HCA tails), and those of a slot."""
    wanted = [(layer, "window", config.sliding_window, config.head_dim) for layer in range(len(config.compress_ratios))]
    for ratio in (CSA, HCA):
        for layer in (i for i, own in enumerate(config.compress_ratios) if own == ratio):
            widths = {"compressor": config.head_dim} | ({"indexer": config.index_head_dim} if ratio == CSA else {})
            wanted += [(layer, f"{part}.{kind}", TAIL[ratio], width * (2 if ratio == CSA else 1))
                       for part, width in widths.items() for kind in ("value", "gate")]
    places, at, snapshot = {}, 0, 0
    for layer, name, rows, width in wanted:
        places[layer, name] = Place(at, rows, width)
        at = places[layer, name].end
        if config.compress_ratios[layer] != HCA or name == "window":
            snapshot = at
    return places, snapshot, at


def _entries(config: ModelConfig) -> tuple[dict[tuple[int, str], Place], int]:
    places, at = {}, 0
    for layer, ratio in enumerate(config.compress_ratios):
        widths = {"compressor.entry": config.head_dim} if ratio else {}
        widths |= {"indexer.entry": config.index_head_dim} if ratio == CSA else {}
        for name, width in widths.items():
            places[layer, name] = Place(at, BLOCK // ratio, width)
            at = places[layer, name].end
    return places, at


@dataclass(frozen=True)
class PagedBatch:
    """New tokens of several sequences, one sequence after the other, and where their state lies.

    `ids` [T]; `starts`, `lengths`, `slots` [S]: tokens cached, new tokens, and slot of each sequence; `tables` int32
    [S, B]: its blocks in order, for all positions up to the last new one; `wanted` [R]: tokens whose logits are wanted.
    """

    ids: Integers
    starts: Integers
    lengths: Integers
    slots: Integers
    tables: NDArray[np.int32]
    wanted: Integers

    def __post_init__(self) -> None:
        problems = []
        if len(self.ids) != self.lengths.sum() or not len(self.ids):
            problems.append(f"{len(self.ids)} ids for sequences of {self.lengths.tolist()} new tokens")
        if len(set(self.slots.tolist())) != len(self.slots):
            problems.append(f"slots {self.slots.tolist()} are not one a sequence")
        if (self.lengths < 1).any() or (self.starts < 0).any():
            problems.append(f"lengths {self.lengths.tolist()} must be 1 or more, starts {self.starts.tolist()} 0 on")
        ends = self.starts + self.lengths
        if self.tables.shape[0] != len(self.slots) or ((ends - 1) // BLOCK >= self.tables.shape[1]).any():
            problems.append(f"tables of {self.tables.shape} blocks do not reach the tokens {ends.tolist()}")
        if len(self.wanted) and not 0 <= self.wanted.min() <= self.wanted.max() < len(self.ids):
            problems.append(f"wanted rows {self.wanted.tolist()} lie outside the {len(self.ids)} tokens")
        if problems:
            raise InputError("this batch cannot be run: " + "; ".join(problems))
