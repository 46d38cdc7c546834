"""Sequences cut into blocks of tokens, held by one rank or several: V4's context parallelism as a model's state.

Report, section 3.4.3: a block needs the last tokens of the block before it (window entries, and the open tokens of
CSA's overlapping windows), and all blocks' compressed entries and indexer keys. To the model a block is a chunk that
continues a sequence, and what came before lies in a state: here the state fetches it from the neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ..config import DeepseekV4Config, ModelConfig, only
from ..config.specs import CSA, HCA
from ..errors import NotSupported
from ..model import Layout, State
from ..model.layout import visible_ranges
from ..model.plan import Plan
from ..ops import Ranges
from .batch import Batch
from .exchange import from_all, from_previous


@dataclass(frozen=True)
class Blocks:
    """Which blocks of every sequence this rank holds: `first` to `first + held` of `total`, and who has the others."""

    first: int
    held: int
    total: int
    group: dist.ProcessGroup | None = None

    @classmethod
    def of_rank(cls, total: int, group: dist.ProcessGroup) -> Blocks:
        """Deal the blocks to the ranks of a context group in order."""
        held = total // group.size()
        return cls(group.rank() * held, held, total, group)

    @property
    def range(self) -> range:
        """The numbers of this rank's blocks."""
        return range(self.first, self.first + self.held)

    def all(self) -> Blocks:
        """Return the same blocks as one rank would hold them."""
        return Blocks(0, self.total, self.total)

    def cut(self, batch: Batch) -> Batch:
        """Return this rank's blocks of a batch, block by block; each is a sequence of its own that starts later.

        Raises NotSupported where rows hold several samples.
        """
        if self.total == 1:
            return batch
        rows, length = batch.inputs_BL.shape
        if batch.layout != Layout.whole([length] * rows):
            raise NotSupported(f"context_blocks={self.total}: sequences of several packed samples cannot be cut into "
                               "blocks; use context_blocks=1, or unpacked samples")
        size = length // self.total
        starts = tuple(block * size for block in range(self.first, self.first + self.held) for _ in range(rows))

        def part(ids_BL: Tensor) -> Tensor:
            blocks = ids_BL.view(rows, self.total, size)[:, self.first : self.first + self.held]
            return blocks.transpose(0, 1).reshape(-1, size)

        return Batch(part(batch.inputs_BL), part(batch.targets_BL), part(batch.further_BL),
                     Layout(starts, (size,) * len(starts)))


class BlockState(State):
    """What the blocks of one pass read from before themselves. It holds nothing from pass to pass."""

    def __init__(self, config: ModelConfig, blocks: Blocks, layout: Layout) -> None:
        self.v4 = only(config, DeepseekV4Config, f"context_blocks={blocks.total}")
        self.blocks, self.layout = blocks, layout
        self.rows, self.size = len(layout.lengths) // blocks.held, layout.lengths[0]

    def row_of_zero(self, book: str) -> Tensor:
        """Row of position (or entry) 0 of each block's sequence in the buffers of this book."""
        index = torch.arange(len(self.layout.lengths))
        if book.startswith("entries"):
            return index * (self.size * self.blocks.total // int(book.removeprefix("entries")))
        tail = self._tail(book)
        return index * (tail + self.size) + tail - torch.tensor(self.layout.starts)

    def write(self, layer: int, name: str, rows: Tensor) -> Tensor:
        """Return this pass's rows with those before them: a tail of the block before, or all blocks' entries."""
        if name.endswith(".entry"):
            blocks = rows.view(self.blocks.held, self.rows, -1, rows.shape[-1])
            return from_all(blocks, self.blocks.group).transpose(1, 2).reshape(-1, rows.shape[-1])
        tail = self._tail("window" if name == "window" else f"tokens{self.v4.compress_ratios[layer]}")
        if not tail:
            return rows
        blocks = rows.view(self.blocks.held, self.rows, self.size, rows.shape[-1])
        before = from_previous(blocks[:, :, self.size - tail :], self.blocks.group)
        return torch.cat((before, blocks), 2).view(-1, rows.shape[-1])

    def _tail(self, book: str) -> int:
        return {"window": self.v4.sliding_window - 1, f"tokens{CSA}": CSA, f"tokens{HCA}": 0}[book]


class BlockPlan(Plan):
    """A plan whose bounds are the whole sequences', so that a block's arithmetic does not depend on who holds it."""

    def _visible(self, ratio: int) -> Ranges:
        assert isinstance(self.state, BlockState)
        found = visible_ranges(self.layout, self.positions_T, self.state.row_of_zero(f"entries{ratio}"), ratio)
        return Ranges(found.start, found.count, found.num_pairs, self.state.size * self.state.blocks.total // ratio)


def plan_of(config: ModelConfig, layout: Layout, blocks: Blocks, device: torch.device) -> Plan:
    """Return the plan of a pass over whole sequences, or over blocks of them."""
    if blocks.total == 1:
        return Plan(config, layout, None, device)
    return BlockPlan(config, layout, BlockState(config, blocks, layout), device)
