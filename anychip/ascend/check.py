"""One example of a kernel on one Ascend chip: compiled, executed, checked, held to its reference, timed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import InputError, KernelError, NotSupported
from ..kernels.example import Example, Kernel, Launch, signature
from .compile import CompiledKernel, compile_kernel
from .diagnose import definition
from .die import KernelTime
from .findings import Finding
from .machine import library
from .memory import MemoryUse
from .precision import Precision, SameFormat, judge, within
from .simulate import simulate

Status = Literal["pass", "fail", "error"]
FORMATS = (torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16)  # coarsest first


@dataclass(frozen=True)
class Settings:
    """How examples are checked: the seed of their inputs, the precision level, where traces are written."""

    seed: int = 0
    level: str = "L1"
    trace: Path | None = None


@dataclass(frozen=True)
class Checked:
    """What was found for one example on one chip.

    status: `pass`; `fail` (it compiles, but has findings or wrong outputs); `error` (it does not compile or run: see
    `error`, of kind `error_kind` at `error_place`). outputs: each output against the reference (none without one);
    native: each against the native path. steps: tile ops executed. seconds: wall time of each stage on this machine.
    """

    kernel: str
    example: str
    target: str
    place: str
    status: Status = "pass"
    error: str = ""
    error_kind: str = ""
    error_place: str = ""
    core_type: str = ""
    memory: dict[str, MemoryUse] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    outputs: dict[str, Precision] = field(default_factory=dict)
    native: dict[str, Precision] = field(default_factory=dict)
    native_error: str = ""
    has_reference: bool = True
    time: KernelTime | None = None
    steps: int = 0
    trace: str = ""
    seconds: dict[str, float] = field(default_factory=dict)


def check_example(kernel: Kernel, example: Example, target: str, settings: Settings | None = None) -> Checked:
    """Check one example. What is wrong with the kernel is in the result; never raises KernelError or InputError.

    Raises NotSupported where the compilers are not installed.
    """
    settings = settings or Settings()
    path, line = definition(kernel.fn)
    checked = Checked(kernel.name, example.name, target, f"{path}:{line}", has_reference=example.reference is not None)
    seconds: dict[str, float] = {}
    try:
        with _timed(seconds, "inputs"):
            launch = kernel.launch(example, settings.seed)
        with _timed(seconds, "compile"):
            compiled = compile_kernel(kernel.fn, signature(launch), launch.constants, target)
        checked = replace(checked, core_type=compiled.core_type, memory=compiled.memory, notes=compiled.notes)
        checked = _executed(checked, compiled, launch, example, settings, seconds)
    except KernelError as error:
        checked = replace(checked, status="error", error=str(error), error_kind=error.kind, error_place=error.place)
    except InputError as error:
        checked = replace(checked, status="error", error=str(error), error_kind="input", error_place=checked.place)
    return replace(checked, seconds=seconds)


def _executed(checked: Checked, compiled: CompiledKernel, launch: Launch, example: Example, settings: Settings,
              seconds: dict[str, float]) -> Checked:
    """Run the compiled kernel, compare its outputs with the reference and with the native path, and time it."""
    args = _copied(launch)
    name = f"{checked.kernel}-{checked.example}-{checked.target}.json"
    trace = settings.trace / name if settings.trace else None
    library()  # without a C++ compiler: NotSupported, and no kernel's fault
    with _timed(seconds, "run"):
        try:
            ran = simulate(compiled, args, launch.grid, trace)
        except NotSupported as error:
            raise KernelError(f"kernel {checked.kernel!r} compiles for {compiled.target.name} but cannot be executed: "
                              f"{error}", kind="unsupported") from error
    checked = replace(checked, findings=ran.findings, time=ran.time, steps=ran.steps, trace=str(trace or ""))
    golden: dict[str, Tensor] = {}
    benchmark: dict[str, Tensor] = {}
    if example.reference is not None:
        with _timed(seconds, "reference"):
            golden, benchmark = _references(launch, example)
    outputs = {name: _judged(args[name], golden[name], benchmark[name], example.tolerance.get(name), settings.level)
               for name in launch.outputs if name in golden}
    checked = replace(checked, outputs=outputs)
    if not any(f.kind.startswith("outside") for f in ran.findings):  # natively it would touch this process's memory
        with _timed(seconds, "native"):
            checked = _compared(checked, compiled, launch, args, golden, benchmark)
    good = not checked.findings and all(p.passed for p in (*outputs.values(), *checked.native.values()))
    return replace(checked, status="pass" if good else "fail")


def _compared(checked: Checked, compiled: CompiledKernel, launch: Launch, args: dict[str, Any],
              golden: dict[str, Tensor], benchmark: dict[str, Tensor]) -> Checked:
    """Hold the executed outputs to the native path's: both round, so at level L0 of the benchmark's error."""
    from .native import native

    other = _copied(launch)
    try:
        native(compiled)(other, launch.grid, threads=1)
    except KernelError as error:
        return replace(checked, native_error=str(error))
    found = {}
    for name in launch.outputs:
        was, now = other[name], args[name]
        if not now.is_floating_point():
            found[name] = judge(now, was, was)
            continue
        noise = ((benchmark[name].double() - golden[name].double()).abs() if name in golden
                 else was.double().abs() * torch.finfo(now.dtype).eps / 2)
        found[name] = judge(now, was.double(), was.double() + noise.nan_to_num(), "L0")
    return replace(checked, native=found)


def _references(launch: Launch, example: Example) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The reference in float64, and the same formula in the kernel's formats, each output in its own format."""
    assert example.reference is not None
    golden = example.reference(_wide(launch))
    missing = [name for name in launch.outputs if name not in golden]
    if missing:
        raise KernelError(f"the reference of example {example.name!r} gives no {', '.join(missing)}; it must return "
                          f"every output: {', '.join(launch.outputs)}", kind="input")
    formats = {value.dtype for value in launch.args.values() if isinstance(value, Tensor)}
    products = next((dtype for dtype in FORMATS if dtype in formats), torch.float32)
    with SameFormat(products):
        coarse = example.reference(_wide(launch))
    dtypes = {name: launch.args[name].dtype for name in launch.outputs}  # type: ignore[union-attr]
    return golden, {name: coarse[name].to(dtype) for name, dtype in dtypes.items()}


def _judged(got: Tensor, golden: Tensor, benchmark: Tensor, tolerance: float | None, level: str) -> Precision:
    return judge(got, golden, benchmark, level) if tolerance is None else within(got, golden, tolerance)


def _wide(launch: Launch) -> dict[str, Any]:
    """Copies of the arguments with floating tensors in float64, and the constants."""
    wide = {name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
            for name, value in _copied(launch).items()}
    return {**wide, **launch.constants}


def _copied(launch: Launch) -> dict[str, Any]:
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in launch.args.items()}


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = time.perf_counter() - start
