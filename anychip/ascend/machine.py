"""The machine from Python: a program and its arguments in, findings and counts out."""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .findings import RawFinding
from .machine_build import load_library
from .opcodes import SPACES
from .program import Program

Scalar = int | float


@dataclass(frozen=True)
class Memory:
    """An argument in global memory: its address on the host and its size."""

    address: int
    bytes: int


@dataclass(frozen=True)
class RawRun:
    """What a run left. steps: tile ops executed; blocks: those that were run; used: bytes of on-chip memory by core.

    buffers: what a finding's buffer number stands for: an argument's index, `lock`, `workspace`, or (core, space).
    error: why the machine stopped early, "" if it did not, and the instruction.
    """

    findings: tuple[RawFinding, ...]
    steps: int
    blocks: int
    used: dict[tuple[int, str], int]
    buffers: tuple[int | str | tuple[int, str], ...]
    error: str
    error_instruction: int


class _Request(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_void_p), ("code_length", ctypes.c_int64),
        ("functions", ctypes.c_void_p), ("num_functions", ctypes.c_int64),
        ("workspace_bytes", ctypes.c_int64), ("chip_bytes", ctypes.c_int64 * 6),
        ("num_arguments", ctypes.c_int64), ("data", ctypes.c_void_p), ("bytes", ctypes.c_void_p),
        ("scalars", ctypes.c_void_p), ("grid", ctypes.c_int64 * 3),
        ("num_blocks", ctypes.c_int64), ("blocks", ctypes.c_void_p),
        ("num_observers", ctypes.c_int64), ("observers", ctypes.c_void_p), ("poison", ctypes.c_int32),
        ("numerics", ctypes.c_int32)]


@functools.cache
def library() -> ctypes.CDLL:
    """The machine's library with the types of its functions set. Raises NotSupported as `load_library` does."""
    lib = load_library()
    handle, index = ctypes.c_void_p, ctypes.c_int64
    for name, result, arguments in (
            ("machine_run", handle, [ctypes.POINTER(_Request)]), ("machine_free", None, [handle]),
            ("machine_error", ctypes.c_char_p, [handle]), ("machine_error_instruction", ctypes.c_int32, [handle]),
            ("machine_steps", index, [handle]), ("machine_blocks_done", index, [handle]),
            ("machine_used", index, [handle, ctypes.c_int32, ctypes.c_int32]),
            ("machine_num_findings", index, [handle]), ("machine_finding", None, [handle, index, handle])):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


@dataclass(frozen=True)
class Launch:
    """How a program is started: arguments in order, grid of three, the blocks to run, bytes of each on-chip memory.

    observers: addresses of the library's observers (checker, recorder); none: the fastest run. poison: the byte that
    fills memory which nothing has written. numerics: False moves no data but loads, for runs that are only timed.
    """

    arguments: Sequence[Memory | Scalar]
    grid: tuple[int, int, int]
    blocks: Sequence[int]
    chip_bytes: dict[str, int]
    observers: Sequence[int] = ()
    poison: int = 0xFF
    numerics: bool = True


def run_program(program: Program, launch: Launch) -> RawRun:
    """Run a program. Arguments' memory is read and written in place; it must stay alive during the call."""
    code, functions = _flat(program)
    arguments = launch.arguments
    data = np.array([a.address if isinstance(a, Memory) else 0 for a in arguments] or [0], np.uint64)
    sizes = np.array([a.bytes if isinstance(a, Memory) else -1 for a in arguments] or [0], np.int64)
    scalars = np.array([0 if isinstance(a, Memory) else _bits(a) for a in arguments] or [0], np.int64)
    blocks = np.asarray(launch.blocks, np.int64)
    observers = np.array(launch.observers or [0], np.uint64)
    request = _Request(
        code.ctypes.data, len(code), functions.ctypes.data, len(program.functions), program.workspace_bytes,
        (ctypes.c_int64 * 6)(*(launch.chip_bytes.get(space, 0) for space in SPACES)), len(arguments), data.ctypes.data,
        sizes.ctypes.data, scalars.ctypes.data, (ctypes.c_int64 * 3)(*launch.grid), len(blocks), blocks.ctypes.data,
        len(launch.observers), observers.ctypes.data, launch.poison, int(launch.numerics))
    lib = library()
    result = lib.machine_run(ctypes.byref(request))
    try:
        return RawRun(
            tuple(_finding(lib, result, i) for i in range(lib.machine_num_findings(result))),
            lib.machine_steps(result), lib.machine_blocks_done(result),
            {(core, space): used for core in range(3) for i, space in enumerate(SPACES)
             if i and (used := lib.machine_used(result, core, i))},
            _buffers(arguments), lib.machine_error(result).decode(), lib.machine_error_instruction(result))
    finally:
        lib.machine_free(result)


def _finding(lib: ctypes.CDLL, result: int, index: int) -> RawFinding:
    numbers = (ctypes.c_int64 * 13)()
    lib.machine_finding(result, index, numbers)
    return RawFinding(*numbers)


def _buffers(arguments: Sequence[Memory | Scalar]) -> tuple[int | str | tuple[int, str], ...]:
    memories: list[int | str | tuple[int, str]] = [i for i, a in enumerate(arguments) if isinstance(a, Memory)]
    return (*memories, "lock", "workspace", *((core, space) for core in range(3) for space in SPACES[1:]))


def _bits(value: Scalar) -> int:
    """A scalar register's 64 bits: integers as they are, floats as doubles."""
    if isinstance(value, float):
        return int(struct.unpack("<q", struct.pack("<d", value))[0])
    return int(value)


def _flat(program: Program) -> tuple[np.ndarray, np.ndarray]:
    flat: list[int] = []
    for f in program.functions:
        flat += [int(f.cube), f.entry, f.slots, f.views, f.registers, len(f.constants), len(f.parameters)]
        for register, bits in f.constants:
            flat += [register, _signed(bits & 0xFFFFFFFF), _signed(bits >> 32)]
        for parameter in f.parameters:
            flat += [parameter.source, parameter.register, parameter.element]
    return np.array(program.code, np.int32), np.array(flat, np.int32)


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word
