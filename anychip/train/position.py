"""Which batch a step sees: the run's batches in order, without those that were skipped."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..model import Layout
from .inject import Injector


class Batches(Protocol):
    """Gives a batch by its number: `text.batches.TokenBatches`, or anything like it."""

    @property
    def digest(self) -> str:
        """What the batches are cut from, as a hash."""
        ...

    def at(self, step: int) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Layout]:
        """Return inputs and targets, int64 [batch, length], and how samples lie in them (left out: each row is one)."""
        ...


class Chosen:
    """Batches for the trainer, by step: step n takes the n-th batch that is not skipped."""

    def __init__(self, batches: Batches, skipped: tuple[int, ...], injector: Injector | None = None) -> None:
        self.skipped = skipped
        self._batches, self._injector = batches, injector

    def number(self, step: int) -> int:
        """Return the number of a step's batch."""
        number = step
        for skipped in sorted(self.skipped):
            number += skipped <= number
        return number

    def at(self, step: int) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Layout]:
        """Return a step's inputs, targets and, where the batches have one, layout."""
        inputs, targets, *layout = self._batches.at(self.number(step))
        if self._injector:
            targets = self._injector.targets(self.number(step), targets)
        return inputs, targets, *layout  # type: ignore[return-value]
