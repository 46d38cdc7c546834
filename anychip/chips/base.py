"""What a chip is to the rest of the project: a name, a device, its ops, and where its numbers come from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ChipError
from ..model import Transformer
from ..ops import Ops
from ..record import Event, Kind
from .facts import ChipFacts
from .timing import simulated


@dataclass(frozen=True)
class Chip:
    """A real or virtual chip, opened by name. Two chips live in one process without knowing of each other.

    `numerics` says whether results are the chip's own (measured) or its formats emulated elsewhere; `timing`
    whether times are measured or simulated. `precision` is the number format of its matrix products.
    """

    name: str
    device: torch.device
    precision: str
    numerics: Kind
    timing: Kind
    description: str
    facts: ChipFacts | None = None

    def ops(self) -> Ops:
        """Return the chip's ops."""
        raise NotImplementedError

    def prepare(self, model: Transformer) -> None:
        """Change a built and loaded model in place where this chip must; most chips leave it as it is."""

    def synchronize(self) -> None:
        """Wait until the device has done all that it was given."""

    def clock(self) -> float:
        """Return seconds of a monotonic clock, after all work given to the device is done."""
        self.synchronize()
        return time.perf_counter()

    def limits(self) -> ChipFacts | None:
        """Return what the chip could do at best: its facts, or limits measured here. None is unknown."""
        return self.facts

    def simulate(self, events: Sequence[Event], arguments: Sequence[tuple[Any, ...]] = ()) -> list[Event]:
        """Return the events with simulated times on this chip's limits (see `timing.simulated`).

        `arguments`, one of each event (positional ones, then a dict of named ones; meta tensors will do), let a chip
        that has kernels time these. Raises ChipError where the limits are unknown.
        """
        limits = self.limits()
        if limits is None:
            raise ChipError(f"no facts file describes {self.description!r}: its times cannot be simulated")
        return simulated(events, limits, self.precision)

    def sources(self) -> dict[str, str]:
        """Return what runs each op, by op, where a chip's ops are of several kinds; else nothing."""
        return {}

    def versions(self) -> dict[str, str]:
        """Return what this chip's results depend on, by name."""
        return {"torch": torch.__version__}


@dataclass(frozen=True)
class ChipStatus:
    """One line of `anychip chips`: `reason` says why a chip cannot be used here (empty: it can)."""

    name: str
    description: str
    numerics: Kind
    timing: Kind
    reason: str = ""
