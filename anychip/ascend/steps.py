"""Every step of a small run as the machine told it, for proofs and for looking at: what, where, which bytes."""

from __future__ import annotations

import ctypes
import functools
import itertools
import weakref
from dataclasses import dataclass
from typing import Any

from .machine import library
from .opcodes import PIPES

KINDS = ("vector", "dma", "load_l0", "mad", "fixpipe", "scalar", "set_flag", "wait_flag", "barrier", "sync_set",
         "sync_wait")
_MAX_DIMS, _MAX_ACCESSES = 6, 8


class _Access(ctypes.Structure):  # struct Access of machine/step.h
    _fields_ = [("buffer", ctypes.c_int32), ("space", ctypes.c_uint8), ("write", ctypes.c_bool),
                ("scratch", ctypes.c_bool), ("outside", ctypes.c_bool), ("dims", ctypes.c_int32),
                ("first", ctypes.c_int64), ("run", ctypes.c_int64), ("count", ctypes.c_int64 * _MAX_DIMS),
                ("stride", ctypes.c_int64 * _MAX_DIMS)]


class _Step(ctypes.Structure):  # struct Step of machine/step.h
    _fields_ = [("instruction", ctypes.c_int32), ("op", ctypes.c_int16), ("kind", ctypes.c_uint8),
                ("core", ctypes.c_int8), ("pipe", ctypes.c_uint8), ("peer", ctypes.c_uint8), ("event", ctypes.c_int16),
                ("scalar_ops", ctypes.c_int32), ("accesses", ctypes.c_int32), ("access", _Access * _MAX_ACCESSES),
                ("element_bytes", ctypes.c_int32), ("scalar_operand", ctypes.c_bool), ("atomic", ctypes.c_bool),
                ("rows", ctypes.c_int64), ("row_bytes", ctypes.c_int64), ("elements", ctypes.c_int64),
                ("m", ctypes.c_int32), ("k", ctypes.c_int32), ("n", ctypes.c_int32), ("chained", ctypes.c_bool),
                ("fused", ctypes.c_bool)]


@dataclass(frozen=True)
class Touched:
    """Bytes of one buffer that a step reads or writes: half-open intervals, in order."""

    buffer: int
    write: bool
    intervals: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Step:
    """One executed instruction: kind (see KINDS), core, pipe and the waiting pipe of a flag, event, bytes touched.

    ordered: the hardware orders it after its pipe's instruction before it (a chain of products, a vector function).
    """

    instruction: int
    kind: str
    core: int
    pipe: str
    peer: str
    event: int
    touched: tuple[Touched, ...]
    ordered: bool


class StepLog:
    """Pass `observer` to a run, then read `blocks()`. Holds about a kilobyte a step."""

    def __init__(self) -> None:
        self._library = _declared()
        self._handle: int = self._library.log_new()
        self._finalizer = weakref.finalize(self, self._library.log_free, self._handle)

    @property
    def observer(self) -> int:
        """The address of the C++ observer."""
        return int(self._library.log_observer(self._handle))

    def blocks(self) -> list[list[Step]]:
        """Return the steps of each block that ran."""
        found = []
        for index in range(self._library.log_blocks(self._handle)):
            count = ctypes.c_int64()
            first = self._library.log_block(self._handle, index, ctypes.byref(count))
            raw = (_Step * count.value).from_address(first) if count.value else ()
            found.append([_step(step) for step in raw])
        return found


def _step(raw: Any) -> Step:
    touched = tuple(Touched(a.buffer, bool(a.write), _intervals(a)) for a in raw.access[: raw.accesses])
    return Step(raw.instruction, KINDS[raw.kind], raw.core, PIPES[raw.pipe], PIPES[raw.peer], raw.event, touched,
                bool(raw.chained or raw.fused))


def _intervals(access: Any) -> tuple[tuple[int, int], ...]:
    steps = [[i * access.stride[d] for i in range(access.count[d])] for d in range(access.dims)]
    starts = sorted(access.first + sum(offset) for offset in itertools.product(*steps))
    merged: list[list[int]] = []
    for start in starts:
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], start + access.run)
        else:
            merged.append([start, start + access.run])
    return tuple((low, high) for low, high in merged)


@functools.cache
def _declared() -> ctypes.CDLL:
    lib = library()
    handle, number = ctypes.c_void_p, ctypes.c_int64
    types: dict[str, tuple[Any, list[Any]]] = {
        "log_new": (handle, []), "log_free": (None, [handle]), "log_observer": (handle, [handle]),
        "log_step_bytes": (number, []), "log_blocks": (number, [handle]),
        "log_block": (handle, [handle, number, ctypes.POINTER(number)])}
    for name, (result, arguments) in types.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    if lib.log_step_bytes() != ctypes.sizeof(_Step):
        raise RuntimeError("steps.py and machine/step.h disagree about struct Step")
    return lib
