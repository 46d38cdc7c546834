"""The serving cache: all kinds of state in two pools, so that many sequences share one memory.

A *slot* holds what one running sequence needs of its last tokens: in V4, for every layer, a ring of window rows, and
the compressors' tails (rows of tokens whose windows are open, or overlap the next one); elsewhere nothing. A *block*
holds what 128 tokens leave for ever, for every layer: in V4 32 CSA entries with their indexer keys or one HCA entry,
elsewhere a row a token; the pool keeps each buffer's rows of all blocks together, so that a scan over blocks in order
reads memory in order. At a multiple of 128 tokens the HCA tails are empty, so a *snapshot* of a slot without them, with
the blocks so far, is all that another sequence with the same tokens needs to go on from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import DeepseekV4Config, ModelConfig, only
from ..config.specs import CSA, HCA, Buffer, Rope
from ..errors import InputError
from .rotary import turns

BLOCK = 128  # tokens a block: lcm of the ratios
_RINGS = ("window", f"tokens{CSA}", f"tokens{HCA}")  # in a slot's order; a snapshot has all but the last
Format = Literal["fp32", "fp8"]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Place:
    """Rows of one buffer of one layer: `rows` rows of `width` floats, `offset` floats behind the first buffer."""

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
        if format != "fp32":
            only(config, DeepseekV4Config, f"a cache in {format}")
        self.config, self.max_tokens, self.device, self.format = config, max_tokens, torch.device(device), format
        self._turned: dict[Rope, tuple[Tensor, Tensor]] = {}
        self.rings, snapshot, slot = _rings(config)
        self.entries, block = _entries(config)
        self.slots = torch.zeros(num_slots, slot, device=device)
        self.blocks = torch.zeros(num_blocks * block, device=device)
        self.num_blocks = num_blocks
        self.snapshots = torch.empty(num_snapshots, snapshot, device=device)
        self.beside: dict[str, Tensor] = {}  # a chip's working copies [blocks, ..] of what blocks hold, not in nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of the three pools, exactly."""
        return sum(t.numel() * t.element_size() for t in (self.slots, self.blocks, self.snapshots))

    def turns(self, rope: Rope) -> tuple[Tensor, Tensor]:
        """Return cos and sin for every position, each [max_tokens, R/2]; kept."""
        if rope not in self._turned:
            cos, sin = turns(torch.arange(self.max_tokens), rope)
            self._turned[rope] = cos.to(self.device).contiguous(), sin.to(self.device).contiguous()
        return self._turned[rope]

    def save(self, slot: int, snapshot: int) -> None:
        """Keep a slot whose sequence stands at a multiple of 128 tokens, or at most one beyond."""
        self.snapshots[snapshot].copy_(self.slots[slot, : self.snapshots.shape[1]])

    def restore(self, snapshot: int, slot: int) -> None:
        """Put a snapshot into a slot."""
        self.slots[slot, : self.snapshots.shape[1]].copy_(self.snapshots[snapshot])

    def copy_slot(self, source: int, target: int) -> None:
        """Copy a slot for a sequence that goes its own way from here."""
        self.slots[target].copy_(self.slots[source])

    def held(self, layer: int, name: str) -> Tensor:
        """Return one buffer's rows in all blocks, a view [blocks, rows, width]."""
        place = self.entries[layer, name]
        shape = self.num_blocks, place.rows, place.width
        return self.blocks[self.num_blocks * place.offset : self.num_blocks * place.end].view(shape)

    def copy_block(self, source: int, target: int) -> None:
        """Copy a block that is not full yet."""
        for layer, name in self.entries:
            held = self.held(layer, name)
            held[target].copy_(held[source])
        for derived in self.beside.values():
            derived[target].copy_(derived[source])


def _rings(config: ModelConfig) -> tuple[dict[tuple[int, str], Place], int, int]:
    """Places in a slot, the floats that a snapshot keeps (all before the HCA tails), and those of a slot."""
    places: dict[tuple[int, str], Place] = {}
    at = snapshot = 0
    for book in _RINGS:
        for layer, buffer in _buffers(config):
            if buffer.keep is not None and buffer.book == book:
                place = places[layer, buffer.name] = Place(at, buffer.keep + 1, buffer.width)
                at = place.end
                snapshot = snapshot if book == _RINGS[-1] else at
    return places, snapshot, at


def _entries(config: ModelConfig) -> tuple[dict[tuple[int, str], Place], int]:
    places, at = {}, 0
    for layer, buffer in _buffers(config):
        if buffer.keep is None:
            places[layer, buffer.name] = Place(at, BLOCK // buffer.ratio, buffer.width)
            at = places[layer, buffer.name].end
    return places, at


def _buffers(config: ModelConfig) -> Iterator[tuple[int, Buffer]]:
    for layer in range(config.num_blocks):
        yield from ((layer, buffer) for buffer in config.layer(layer).attention.buffers)


@dataclass(frozen=True)
class PagedBatch:
    """New tokens of several sequences, one sequence after the other, and where their state lies.

    `ids` [T]; `starts`, `lengths`, `slots` [S]: tokens cached, new tokens, and slot of each sequence; `tables` int32
    [S, B]: its blocks in order, for all positions up to the last new one; `wanted` [R]: tokens whose logits are wanted,
    of the first `vocab` ids (None: all).
    """

    ids: Integers
    starts: Integers
    lengths: Integers
    slots: Integers
    tables: NDArray[np.int32]
    wanted: Integers
    vocab: int | None = None

    def __post_init__(self) -> None:
        # lists: a pass of one token may take less time than these checks would on arrays
        starts, lengths, slots, wanted = (a.tolist() for a in (self.starts, self.lengths, self.slots, self.wanted))
        problems, tokens = [], len(self.ids)
        if tokens != sum(lengths) or not tokens:
            problems.append(f"{tokens} ids for sequences of {lengths} new tokens")
        if len(set(slots)) != len(slots):
            problems.append(f"slots {slots} are not one a sequence")
        if min(lengths) < 1 or min(starts) < 0:
            problems.append(f"lengths {lengths} must be 1 or more, starts {starts} 0 on")
        ends = [start + length for start, length in zip(starts, lengths, strict=True)]
        if self.tables.shape[0] != len(slots) or (max(ends) - 1) // BLOCK >= self.tables.shape[1]:
            problems.append(f"tables of {self.tables.shape} blocks do not reach the tokens {ends}")
        if wanted and not 0 <= min(wanted) <= max(wanted) < tokens:
            problems.append(f"wanted rows {wanted} lie outside the {tokens} tokens")
        if problems:
            raise InputError("this batch cannot be run: " + "; ".join(problems))
