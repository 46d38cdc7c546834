"""What some blocks of a kernel executed, kept by the machine's recorder, and timed at any rates without a new run."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .rates import Rates

CAUSES = ("cube", "vector", "memory", "move", "scalar", "sync")
NUM_CORES, NUM_PIPES = 3, 7


class _Timeline(ctypes.Structure):
    _fields_ = [("end", ctypes.c_double), ("by", ctypes.c_double * len(CAUSES)),
                ("busy", ctypes.c_double * NUM_PIPES * NUM_CORES), ("core_end", ctypes.c_double * NUM_CORES)]


class _Timed(ctypes.Structure):  # the head of struct Timed in machine/costs.h
    _fields_ = [("instruction", ctypes.c_int32), ("scalar_ops", ctypes.c_int32), ("op", ctypes.c_int16),
                ("event", ctypes.c_int16), ("kind", ctypes.c_uint8), ("pipe", ctypes.c_uint8), ("peer", ctypes.c_uint8),
                ("path", ctypes.c_uint8), ("core", ctypes.c_int8)]


@dataclass(frozen=True)
class BlockInfo:
    """One recorded block: its program number, instructions, and bytes read from and written to global memory."""

    block: int
    instructions: int
    touches: int
    read_bytes: int
    written_bytes: int


@dataclass(frozen=True)
class BlockTime:
    """One block timed, in cycles: its end; busy cycles of each pipe of each core; the causes of its critical path."""

    cycles: float
    busy: tuple[tuple[float, ...], ...]
    causes: dict[str, float]


@dataclass(frozen=True)
class Use:
    """Uses of sampled sectors of global memory by recorded blocks, and how many missed the L2."""

    reads: int
    read_misses: int
    writes: int
    write_misses: int


class Recording:
    """A recorder for one run: pass `observer` to the machine, then ask for times.

    sampled: follow one in so many sectors of global memory (a power of two) for the cache model.
    """

    def __init__(self, library: ctypes.CDLL, sampled: int = 1) -> None:
        self._library = _declare(library)
        self.sampled = sampled
        self._handle: int = library.recorder_new(sampled)
        self._finalizer = weakref.finalize(self, library.recorder_free, self._handle)
        self.sector_bytes: int = library.cache_sector_bytes()
        self._rate_names = library.clock_rate_names().decode().rstrip(",").split(",")
        self._op_names = library.machine_op_names().decode().split()

    @property
    def observer(self) -> int:
        """The address of the C++ observer."""
        return int(self._library.recorder_observer(self._handle))

    def blocks(self) -> list[BlockInfo]:
        """Return what was recorded, in the order of execution."""
        out = (ctypes.c_int64 * 5)()
        found = []
        for index in range(self._library.recorder_blocks(self._handle)):
            self._library.recorder_block(self._handle, index, out)
            found.append(BlockInfo(*out))
        return found

    def times(self, rates: Rates) -> list[BlockTime]:
        """Time every block of `blocks()`."""
        count = self._library.recorder_blocks(self._handle)
        lines = (_Timeline * count)()
        self._library.clock_run_all(self._handle, self._packed(rates), lines)
        return [BlockTime(line.end, tuple(tuple(pipes) for pipes in line.busy),
                          dict(zip(CAUSES, line.by, strict=True))) for line in lines]

    def spans(self, index: int, rates: Rates) -> list[tuple[int, str, int, int, float, float]]:
        """Return (instruction, op, core, pipe, start cycle, end cycle) of each executed instruction of a block."""
        count = self.blocks()[index].instructions
        line, spans = _Timeline(), (ctypes.c_double * (2 * count))()
        self._library.clock_run(self._handle, index, self._packed(rates), ctypes.byref(line), spans)
        first, size = self._library.recorder_events(self._handle, index), self._library.clock_event_bytes()
        found = []
        for i in range(count):
            event = _Timed.from_address(first + i * size)
            waits = self._op_names[event.op] in ("wait_flag", "sync_block_wait")
            pipe = event.peer if waits else event.pipe
            found.append((event.instruction, self._op_names[event.op], event.core, min(pipe, NUM_PIPES - 1),
                          spans[2 * i], spans[2 * i + 1]))
        return found

    def cache(self, rates: Rates, indexes: Sequence[int], starts: Sequence[float], rounds: int) -> Use:
        """Let blocks use the L2 together, block i from cycle starts[i] on, `rounds` times; return the last round."""
        capacity = int(rates.die["l2"].value * 2**20) // self.sector_bytes // self.sampled
        out, n = (ctypes.c_int64 * 4)(), len(indexes)
        self._library.cache_run(self._handle, self._packed(rates), (ctypes.c_int64 * n)(*indexes),
                                (ctypes.c_double * n)(*starts), n, capacity, rounds, out)
        return Use(*out)

    def _packed(self, rates: Rates) -> ctypes.Array[ctypes.c_double]:
        return rates.packed(self._rate_names, self._op_names)


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Give the library's functions their types (again each time: it is cheap, and needs no state)."""
    handle, number = ctypes.c_void_p, ctypes.c_int64
    types: dict[str, tuple[Any, list[Any]]] = {
        "recorder_new": (handle, [number]), "recorder_free": (None, [handle]), "recorder_observer": (handle, [handle]),
        "recorder_blocks": (number, [handle]), "recorder_block": (None, [handle, number, ctypes.POINTER(number)]),
        "recorder_events": (handle, [handle, number]), "clock_event_bytes": (number, []),
        "cache_sector_bytes": (number, []), "clock_rate_names": (ctypes.c_char_p, []),
        "machine_op_names": (ctypes.c_char_p, []),
        "clock_run": (None, [handle, number, handle, ctypes.POINTER(_Timeline), handle]),
        "clock_run_all": (None, [handle, handle, handle]),
        "cache_run": (None, [handle, handle, handle, handle, number, number, number, handle]),
    }
    for name, (result, arguments) in types.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
