"""One step's tokens, cut by rows into micro-batches. Shape suffixes: B rows, L tokens a row, T = B * L."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import InputError
from ..model import Layout


@dataclass(frozen=True)
class Batch:
    """Rows of tokens: `inputs_BL`, the token after each (`targets_BL`) and the one after that (`further_BL`).

    All are int64; a target of -1 has no loss. `layout` says where the samples packed in the rows begin and end; no
    sample crosses from one row to the next.
    """

    inputs_BL: Tensor
    targets_BL: Tensor
    further_BL: Tensor
    layout: Layout

    @classmethod
    def of(cls, inputs_BL: Tensor, targets_BL: Tensor, layout: Layout | None = None) -> Batch:
        """Build from inputs and targets; without a layout each row is one sample.

        What follows a sample's last target is not in the batch: there `further_BL` is -1.
        """
        layout = layout or Layout.whole([inputs_BL.shape[1]] * inputs_BL.shape[0])
        further = torch.full_like(targets_BL, -1).flatten()
        further[:-1] = targets_BL.flatten()[1:]
        further[layout.last_rows().to(further.device)] = -1
        return cls(inputs_BL, targets_BL, further.view_as(targets_BL), layout)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return replace(self, inputs_BL=self.inputs_BL.to(device), targets_BL=self.targets_BL.to(device),
                       further_BL=self.further_BL.to(device))

    @property
    def num_targets(self) -> Tensor:
        """Tokens that have a loss, int64 [] on the batch's device: reading it would make the host wait."""
        return (self.targets_BL >= 0).sum()

    def split(self, count: int) -> list[Batch]:
        """Return `count` micro-batches of equally many rows. Raises InputError where they do not come out even."""
        rows = self.inputs_BL.shape[0]
        if rows % count:
            raise InputError(f"micro_batches={count} does not divide batch={rows}")
        return [self.rows(at, at + rows // count) for at in range(0, rows, rows // count)]

    def rows(self, start: int, stop: int) -> Batch:
        """Return rows start..stop with the samples that lie in them."""
        if (start, stop) == (0, self.inputs_BL.shape[0]):
            return self
        span = slice(start, stop)
        return Batch(self.inputs_BL[span], self.targets_BL[span], self.further_BL[span], self._samples(start, stop))

    def _samples(self, start: int, stop: int) -> Layout:
        width, at, kept = self.inputs_BL.shape[1], 0, []
        for length in self.layout.lengths:
            if start * width <= at < stop * width:
                kept.append(length)
            at += length
        return Layout.whole(kept)
