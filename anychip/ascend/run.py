"""Runs a compiled kernel on the virtual chip: every instruction of the final HIVM program, in the chip's arithmetic."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InputError, KernelError
from .compile import CompiledKernel
from .findings import Finding, RawFinding, describe
from .lower import lower
from .machine import Launch, Memory, RawRun, Scalar, library, run_program
from .opcodes import CORES
from .program import Program
from .uninitialised import Before, reached

Value = Any  # torch.Tensor, numpy.ndarray, int, float or bool
_TYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp64": "float64", "i1": "bool", "i8": "int8",
          "u8": "uint8", "i16": "int16", "i32": "int32", "i64": "int64", "fp8e4nv": "float8_e4m3fn",
          "fp8e5": "float8_e5m2"}
_SAME = {"i1": ("bool", "uint8", "int8"), "i8": ("int8", "uint8"), "u8": ("uint8", "int8")}


@dataclass(frozen=True)
class Run:
    """What a run found.

    findings: faults, none for a good kernel. suspects: reads of on-chip memory that nothing had written, by
    instructions whose result may not depend on them. steps: tile ops executed in `blocks` blocks (programs).
    used_bytes: on-chip memory touched, by core and memory, e.g. `("AIV0", "ub")`.
    """

    findings: tuple[Finding, ...]
    suspects: tuple[Finding, ...]
    steps: int
    blocks: int
    used_bytes: dict[tuple[str, str], int]


@functools.lru_cache(maxsize=256)
def program_of(hivm: str) -> Program:
    """The machine's program for the text of a HIVM module. Raises NotSupported, KernelError as `lower` does."""
    return lower(hivm)


def run_kernel(kernel: CompiledKernel, args: Mapping[str, Value], grid: Sequence[int], *, check: bool = True,
               blocks: Iterable[int] | None = None, observers: Sequence[int] = (), numerics: bool = True) -> Run:
    """Execute a kernel; its outputs are written in place into `args`.

    args: by name, all of `kernel.signature` (constants too, if you like; they are ignored): contiguous CPU tensors or
    arrays of the signature's types, ints, floats. grid: 1 to 3 sizes. check: also look for races and for reads of
    memory that nothing wrote (about half the speed); bounds and flags are always checked. blocks: only these programs.
    observers: addresses of further observers of the machine (the clock's recorder). numerics: False moves no data but
    loads, for kernels that are only timed and whose branches depend on no computed value (with check=False).
    Raises InputError for arguments that do not fit, NotSupported for an op that the machine lacks, KernelError where
    the program cannot be executed to its end.
    """
    sizes = _grid(grid)
    values = _arguments(kernel, args)
    program = program_of(kernel.hivm)
    if program.num_arguments != len(values):
        raise KernelError(f"{kernel.name}: the compiled program takes {program.num_arguments} arguments, the signature "
                          f"{len(values)}; compile it again")
    chosen = range(math.prod(sizes)) if blocks is None else list(blocks)
    if any(not 0 <= block < math.prod(sizes) for block in chosen):
        raise InputError(f"blocks must lie in [0, {math.prod(sizes)}), the programs of the grid {tuple(grid)}")
    chip = {space: kernel.target.memory_bytes(space) for space in ("ub", "l1", "l0a", "l0b", "l0c")}
    launch = Launch(values, sizes, chosen, chip, observers, numerics=numerics)
    raw, suspects = _checked(program, launch, kernel.target.is_950) if check else (run_program(program, launch), ())
    listing = _Listing(kernel, program, args, raw)
    if raw.error:
        at = raw.error_instruction
        raise KernelError(f"{kernel.name}, {listing.op(at)} at {listing.line(at)}: {raw.error}" if at >= 0
                          else f"{kernel.name}: {raw.error}")
    used = {(CORES[core], space): used for (core, space), used in raw.used.items()}
    return Run(describe(raw.findings, kernel.name, listing), describe(suspects, kernel.name, listing), raw.steps,
               raw.blocks, used)


def _checked(program: Program, launch: Launch, vector_in_order: bool) -> tuple[RawRun, tuple[RawFinding, ...]]:
    """Run with the race checker; its findings join the machine's."""
    lib = _checker()
    checker = lib.checker_new(int(vector_in_order))
    lib.checker_lock(checker, (ctypes.c_int32 * len(program.locked))(*program.locked), len(program.locked))
    try:
        observers, before = (*launch.observers, lib.checker_observer(checker)), Before.of(launch)
        raw = run_program(program, replace(launch, observers=observers))
        found, suspects = (_read(lib, checker, which) for which in (0, 1))
        if suspects and not raw.error:
            found += reached(program, launch, before, suspects)
        return RawRun((*raw.findings, *found), *list(vars(raw).values())[1:]), suspects
    finally:
        lib.checker_free(checker)


class _Finding(ctypes.Structure):  # struct Finding of step.h
    _fields_ = [*((name, ctypes.c_int32) for name in ("kind", "instruction", "other_instruction", "core", "pipe",
                                                      "other_core", "other_pipe", "buffer", "event")),
                *((name, ctypes.c_int64) for name in ("block", "low", "high", "count"))]


def _read(lib: ctypes.CDLL, checker: int, which: int) -> tuple[RawFinding, ...]:
    count = lib.checker_findings(checker, which, None)
    found = (_Finding * max(count, 1))()
    lib.checker_findings(checker, which, ctypes.byref(found))
    names = list(RawFinding.__dataclass_fields__)
    return tuple(RawFinding(*(getattr(found[i], name) for name in names)) for i in range(count))


@functools.cache
def _checker() -> ctypes.CDLL:
    lib = library()
    handle = ctypes.c_void_p
    for name, result, arguments in (("checker_new", handle, [ctypes.c_int32]), ("checker_free", None, [handle]),
                                    ("checker_lock", None, [handle, handle, ctypes.c_int64]),
                                    ("checker_observer", handle, [handle]),
                                    ("checker_findings", ctypes.c_int64, [handle, ctypes.c_int32, handle])):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


class _Listing:
    """Names of instructions and buffers for findings."""

    def __init__(self, kernel: CompiledKernel, program: Program, args: Mapping[str, Value], raw: RawRun) -> None:
        self.kernel, self.program, self.args, self.buffers = kernel, program, args, raw.buffers

    def op(self, instruction: int) -> str:
        return self.program.instructions[instruction].name if instruction >= 0 else "return"

    def line(self, instruction: int) -> str:
        place = self.program.instructions[instruction].location
        return f"{Path(place.file).name}:{place.line}" if place.line else "unknown"

    def buffer(self, buffer: int) -> tuple[str, int | None]:
        what = self.buffers[buffer]
        if isinstance(what, int):
            name = list(self.kernel.signature)[what]
            value = self.args[name]
            return f"argument {name}", value.nbytes
        if isinstance(what, str):
            return f"the {what}", self.program.workspace_bytes if what == "workspace" else None
        return what[1].upper(), self.kernel.target.memory_bytes(what[1])


def _grid(grid: Sequence[int]) -> tuple[int, int, int]:
    sizes = (*grid, 1, 1, 1)[:3]
    if not 1 <= len(grid) <= 3 or any(not isinstance(n, int) or n < 1 for n in sizes):
        raise InputError(f"grid={tuple(grid)} must be 1 to 3 ints, each at least 1")
    return (sizes[0], sizes[1], sizes[2])


def _arguments(kernel: CompiledKernel, args: Mapping[str, Value]) -> list[Memory | Scalar]:
    faults: list[str] = []
    if missing := [name for name in kernel.signature if name not in args]:
        faults.append(f"missing: {', '.join(missing)}")
    if surplus := [name for name in args if name not in kernel.signature and name not in kernel.constants]:
        faults.append(f"not in the kernel's signature: {', '.join(surplus)}")
    values: list[Memory | Scalar] = []
    for name, kind in kernel.signature.items():
        if name in args:
            value = _argument(kind, args[name])
            if isinstance(value, str):
                faults.append(f"{name} {value}")
            else:
                values.append(value)
    if faults:
        raise InputError(f"{kernel.name} cannot run with these arguments: {'; '.join(faults)}")
    return values


def _argument(kind: str, value: Value) -> Memory | Scalar | str:
    """The argument for the machine, or what is wrong with it."""
    if not kind.startswith("*"):
        if isinstance(value, torch.Tensor | np.ndarray) or not isinstance(value, int | float | np.number):
            return f"is a {type(value).__name__}, the kernel takes a number ({kind})"
        if kind.startswith(("fp", "bf")):
            return float(np.float32(value))
        return int(value) if float(value).is_integer() else f"is {value}, the kernel takes a whole number ({kind})"
    if not isinstance(value, torch.Tensor | np.ndarray):
        return f"is a {type(value).__name__}, the kernel takes a tensor ({kind})"
    found = str(value.dtype).removeprefix("torch.")
    if found not in _SAME.get(kind[1:], (_TYPES[kind[1:]],)):
        return f"has the type {found}, the kernel takes {_TYPES[kind[1:]]}"
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu":
            return f"is on {value.device}, the virtual chip takes tensors on the cpu"
        return Memory(value.data_ptr(), value.nbytes) if value.is_contiguous() else "is not contiguous"
    return Memory(value.ctypes.data, value.nbytes) if value.flags.c_contiguous else "is not contiguous"
