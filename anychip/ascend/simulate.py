"""A launch executed with every check on, and timed: what `run_kernel`, the recorder and the clock say together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import NotSupported
from .compile import CompiledKernel
from .die import KernelTime, Launched
from .findings import Finding
from .machine import library
from .rates import Rates, load_rates
from .recording import Recording
from .run import program_of, run_kernel
from .trace import Span, chrome_trace, write_trace


@dataclass(frozen=True)
class Simulated:
    """Findings (empty: none), the simulated time (None for a chip without rates), executed tile ops."""

    findings: tuple[Finding, ...]
    time: KernelTime | None
    steps: int


def simulate(kernel: CompiledKernel, args: Mapping[str, Any], grid: tuple[int, ...],
             trace: Path | None = None) -> Simulated:
    """Execute every block of a launch, outputs in place in `args`, with all checks; then time it.

    trace: a file for the timeline (Chrome, Perfetto) of the first block and of the die. Raises KernelError where the
    program cannot be executed to its end, NotSupported for an instruction that the machine lacks.
    """
    recording = Recording(library())
    ran = run_kernel(kernel, args, grid, observers=(recording.observer,))
    try:
        rates = load_rates(kernel.target)
    except NotSupported:  # the chip's speed is unknown: so is the time
        return Simulated(ran.findings, None, ran.steps)
    argument_bytes = sum(value.nbytes for value in args.values() if isinstance(value, Tensor))
    time = Launched(kernel.name, kernel.target, kernel.core_type, math.prod(grid), argument_bytes,
                    recording).time(rates)
    if trace is not None:
        spans = _spans(kernel, recording, rates)
        write_trace(trace, chrome_trace(kernel.name, spans, time.schedule))
    return Simulated(ran.findings, time, ran.steps)


def _spans(kernel: CompiledKernel, recording: Recording, rates: Rates) -> list[Span]:
    """The first block's instructions, with the source line of each."""
    instructions = program_of(kernel.hivm).instructions
    hertz, found = rates.clock_hz, []
    for instruction, op, core, pipe, start, end in recording.spans(0, rates):
        place = instructions[instruction].location if instruction >= 0 else None
        line = f"{Path(place.file).name}:{place.line}" if place and place.line else "unknown"
        found.append(Span(op, line, core, pipe, start / hertz, end / hertz))
    return found
