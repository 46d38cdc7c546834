"""Which blocks, slots and snapshots of the paged cache are whose, and which hold a prefix that may come again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..model.paged import BLOCK


@dataclass
class CacheBook:
    """The books of one cache. A block is free, held by `holders[b]` answers, or idle: held by none, but its prefix is
    known and it is taken only where no free one is left, least recently used first.

    A prefix of whole blocks is named by the digest of its tokens. Where a snapshot of the slot was kept at its end,
    another answer can go on from there.
    """

    num_blocks: int
    num_slots: int
    num_snapshots: int
    free: list[int] = field(init=False)
    slots: list[int] = field(init=False)
    holders: list[int] = field(init=False)
    idle: OrderedDict[int, None] = field(init=False, default_factory=OrderedDict)
    known: dict[bytes, int] = field(init=False, default_factory=dict)
    names: dict[int, bytes] = field(init=False, default_factory=dict)
    snapshots: OrderedDict[bytes, int] = field(init=False, default_factory=OrderedDict)
    spare: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.free, self.slots = list(range(self.num_blocks))[::-1], list(range(self.num_slots))[::-1]
        self.spare, self.holders = list(range(self.num_snapshots)), [0] * self.num_blocks

    @property
    def available(self) -> int:
        """Blocks that can be taken now."""
        return len(self.free) + len(self.idle)

    def take(self) -> int | None:
        """Return a block for one holder, forgetting an idle prefix where none is free; None where all are held."""
        if self.free:
            block = self.free.pop()
        elif self.idle:
            block, _ = self.idle.popitem(last=False)
            self._forget(block)
        else:
            return None
        self.holders[block] = 1
        return block

    def share(self, blocks: Sequence[int]) -> None:
        """Add a holder to each block."""
        for block in blocks:
            self.holders[block] += 1
            self.idle.pop(block, None)

    def release(self, blocks: Sequence[int]) -> None:
        """Take a holder away. The ends of prefixes become idle first, so that they are forgotten first."""
        for block in reversed(blocks):
            self.holders[block] -= 1
            if self.holders[block] == 0:
                if block in self.names:
                    self.idle[block] = None
                else:
                    self.free.append(block)

    def name(self, block: int, digest: bytes) -> None:
        """Note that a full block ends the prefix `digest`; a second block of the same prefix stays nameless."""
        if digest not in self.known:
            self.known[digest], self.names[block] = block, digest

    def keep_snapshot(self, digest: bytes) -> int | None:
        """Return where to save the slot at the end of a known prefix; None where it is kept or has no block."""
        if digest in self.snapshots or digest not in self.known or not self.num_snapshots:
            return None
        self.snapshots[digest] = self.spare.pop() if self.spare else self.snapshots.popitem(last=False)[1]
        return self.snapshots[digest]

    def match(self, digests: Sequence[bytes]) -> tuple[list[int], int | None]:
        """Return the blocks of the longest known prefix with a snapshot, and the snapshot; ([], None) without one."""
        blocks, best = list[int](), 0
        for digest in digests:
            if digest not in self.known:
                break
            blocks.append(self.known[digest])
            if digest in self.snapshots:
                best = len(blocks)
        if not best:
            return [], None
        self.snapshots.move_to_end(digests[best - 1])
        return blocks[:best], self.snapshots[digests[best - 1]]

    def _forget(self, block: int) -> None:
        digest = self.names.pop(block)
        del self.known[digest]
        if digest in self.snapshots:
            self.spare.append(self.snapshots.pop(digest))

    def check(self) -> None:
        """Raise AssertionError where the books do not add up. For tests and debugging: its cost is linear."""
        held = [block for block, holders in enumerate(self.holders) if holders]
        assert sorted([*self.free, *self.idle, *held]) == list(range(self.num_blocks)), "a block is lost or twice there"
        assert all(holders >= 0 for holders in self.holders), "a block has fewer than no holders"
        assert {digest: block for block, digest in self.names.items()} == self.known, "names and known prefixes differ"
        assert set(self.snapshots) <= set(self.known), "a snapshot has no block"
        assert sorted([*self.spare, *self.snapshots.values()]) == list(range(self.num_snapshots)), "a snapshot is lost"


def digests(tokens: Sequence[int], known: Sequence[bytes] = ()) -> list[bytes]:
    """Return the digest of every prefix of whole blocks; `known` are the first ones."""
    found = list(known)
    for at in range(len(found) * BLOCK, len(tokens) // BLOCK * BLOCK, BLOCK):
        part = np.asarray(tokens[at : at + BLOCK], np.int64).tobytes()
        found.append(hashlib.blake2b((found[-1] if found else b"") + part, digest_size=16).digest())
    return found
