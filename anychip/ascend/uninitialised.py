"""Whether garbage matters: a kernel run twice, with other garbage in the memory that nothing has written.

Lanes beyond a mask are loaded short and computed on whatever lies in the buffer, which is right as long as nothing of
it reaches an output. Two runs that differ in nothing but the garbage tell, whatever the instructions in between.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .findings import UNINITIALISED, RawFinding
from .machine import Launch, Memory, run_program
from .program import Program

OTHER_GARBAGE = 0x4B  # large numbers in every format, where the first run has NaN and -1


@dataclass(frozen=True)
class Before:
    """The memory arguments as they were before the first run."""

    memory: tuple[np.ndarray | None, ...]

    @classmethod
    def of(cls, launch: Launch) -> Before:
        """Copy the arguments of a launch."""
        return cls(tuple(_bytes(a).copy() if isinstance(a, Memory) else None for a in launch.arguments))


def reached(program: Program, launch: Launch, before: Before, suspects: Sequence[RawFinding]) -> tuple[RawFinding, ...]:
    """Run again and return a finding for each argument that came out otherwise than in the first run.

    suspects: reads of unwritten memory in the first run; the first one is named as the cause.
    """
    copies = [m.copy() if m is not None else None for m in before.memory]
    arguments = [Memory(copy.ctypes.data, copy.nbytes) if copy is not None else argument
                 for copy, argument in zip(copies, launch.arguments, strict=True)]
    run_program(program, replace(launch, arguments=arguments, observers=(), poison=OTHER_GARBAGE))
    found, buffer = [], 0
    for copy, argument in zip(copies, launch.arguments, strict=True):
        if copy is None or not isinstance(argument, Memory):
            continue
        differs = np.flatnonzero(copy != _bytes(argument))
        if len(differs):
            found.append(replace(suspects[0], kind=UNINITIALISED, event=buffer, other_instruction=-1,
                                 count=len(differs)))
        buffer += 1
    return tuple(found)


def _bytes(memory: Memory) -> np.ndarray:
    if memory.bytes == 0:
        return np.zeros(0, np.uint8)
    return np.ctypeslib.as_array((ctypes.c_uint8 * memory.bytes).from_address(memory.address))
