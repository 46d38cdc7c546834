"""This machine's processor: `cpu` with the C++ ops, `cpu:reference` with the plain-torch definitions. fp32."""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from ...ops import Ops
from ...record import Kind
from ..base import Chip
from ..facts import ChipFacts
from .limits import measure_limits


def open_cpu(*, reference: bool) -> Chip:
    """Open the processor. Without `reference` the C++ library is built at first use.

    Raises ChipError where no compiler is found, with what to install and the name that works without.
    """
    ops = Ops()
    if not reference:
        from .ops import CpuOps  # builds and loads the library: only when asked for

        ops = CpuOps()
    name = "cpu:reference" if reference else "cpu"
    description = f"{processor_name()}, {torch.get_num_threads()} thread(s), fp32"
    return CpuChip(name, torch.device("cpu"), "fp32", Kind.MEASURED, Kind.MEASURED, description, None, ops)


@dataclass(frozen=True)
class CpuChip(Chip):
    """The processor that runs this program."""

    implementation: Ops | None = None

    def ops(self) -> Ops:
        assert self.implementation is not None
        return self.implementation

    def limits(self) -> ChipFacts:
        """Return this processor's limits, measured at the first call (about two seconds)."""
        return _limits(self.description)


@functools.cache
def _limits(description: str) -> ChipFacts:
    return measure_limits(description)


def processor_name() -> str:
    """Return the processor's model name, or the architecture where the system does not tell."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
