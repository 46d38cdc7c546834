"""Examples of a kernel's use, written beside it: inputs, a grid, and a float64 reference for its outputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .load import load_file

Reference = Callable[[dict[str, Any]], dict[str, Tensor]]
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64",
         torch.int8: "i8", torch.uint8: "u8", torch.int16: "i16", torch.int32: "i32", torch.int64: "i64",
         torch.bool: "i1", torch.float8_e4m3fn: "fp8e4nv", torch.float8_e5m2: "fp8e5"}


@dataclass(frozen=True)
class Launch:
    """One start of a kernel: run-time arguments in signature order, the grid, constexpr constants, what is written.

    args: tensors (contiguous), ints (i32, or i64 where they need it), floats (fp32) and bools, by parameter name.
    grid: 1 to 3 sizes, each at least 1. outputs: the tensors among `args` that the kernel writes.
    Raises InputError with every fault at once.
    """

    args: dict[str, Tensor | int | float]
    grid: tuple[int, ...]
    constants: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        faults = list(self._faults())
        if faults:
            raise InputError("a kernel's Launch is wrong: " + "; ".join(faults))

    def _faults(self) -> Iterator[str]:
        for name, value in self.args.items():
            if isinstance(value, Tensor):
                if not value.is_contiguous():
                    yield f"argument {name!r} is not contiguous: call .contiguous(), or pass its strides as arguments"
                if value.dtype not in TYPES:
                    yield f"argument {name!r} is {value.dtype}; a kernel takes {', '.join(str(t) for t in TYPES)}"
            elif not isinstance(value, int | float):
                yield f"argument {name!r} is a {type(value).__name__}; it must be a Tensor, int, float or bool"
        if not isinstance(self.grid, tuple) or not 1 <= len(self.grid) <= 3 or any(
                not isinstance(n, int) or n < 1 for n in self.grid):
            yield f"grid={self.grid!r} must be a tuple of 1 to 3 ints, each at least 1"
        if both := sorted(self.args.keys() & self.constants.keys()):
            yield f"{', '.join(both)} stands in args and in constants"
        if not self.outputs:
            yield "outputs is empty: name the tensors among args that the kernel writes"
        for name in self.outputs:
            if not isinstance(self.args.get(name), Tensor):
                yield f"output {name!r} is not a tensor among args ({', '.join(self.args)})"


@dataclass(frozen=True)
class Example:
    """How to start a kernel with made-up inputs, and what its outputs must be.

    inputs: seed -> Launch; the same seed gives the same tensors.
    reference: (args and constants by name, floating tensors in float64) -> one tensor for each output; None: unknown.
    tolerance: the largest |difference| from the reference allowed for the outputs that it names. Every other
    floating output is held to the rule of `anychip.ascend.precision`, every other integer output must be equal.
    """

    name: str
    inputs: Callable[[int], Launch]
    reference: Reference | None = None
    tolerance: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Kernel:
    """A `@triton.jit` function with its examples (at least one)."""

    name: str
    fn: Any
    examples: tuple[Example, ...]

    def launch(self, example: Example, seed: int = 0) -> Launch:
        """Return the example's launch, its args in signature order and constants' defaults filled in.

        Raises InputError where it does not fit the function's parameters.
        """
        return fitted(self.fn, example.inputs(seed))


def example(inputs: Callable[[int], Launch], reference: Reference | None = None, *,
            tolerance: dict[str, float] | None = None, name: str | None = None) -> Callable[[Any], Any]:
    """Attach an example to the `@triton.jit` function below; several may be stacked, the upper one comes last.

    See `Example` for the parameters; `name` defaults to that of `inputs`. Returns the function itself.
    """
    made = Example(name or inputs.__name__.strip("_"), inputs, reference, tolerance or {})

    def attach(fn: Any) -> Any:
        inner = unwrapped(fn)
        if inner is None:
            raise InputError(f"@example stands above @triton.jit, and {getattr(fn, '__name__', fn)!r} is none: "
                             "write @example(...) on the line before @triton.jit")
        inner.examples = (*getattr(inner, "examples", ()), made)
        return fn

    return attach


def is_jit(value: object) -> bool:
    """Return whether a value is what `@triton.jit` returns, compiled or interpreted (triton is not imported)."""
    return type(value).__module__.startswith("triton.") and type(value).__name__ in ("JITFunction",
                                                                                     "InterpretedFunction")


def unwrapped(value: Any) -> Any | None:
    """Return the `@triton.jit` function itself, below @triton.autotune and @triton.heuristics; None for another value.

    An example's constants stand for what autotune would choose.
    """
    while type(value).__module__.startswith("triton.") and not is_jit(value) and hasattr(value, "fn"):
        value = value.fn
    return value if is_jit(value) else None


def find_kernels(source: ModuleType | str | Path) -> list[Kernel]:
    """Return the kernels with examples of a module, or of a Python file, in the order in which they are written.

    Raises InputError for a file that is not there, KernelError for one that does not run, and NotSupported where
    it needs a package that is not installed.
    """
    module = source if isinstance(source, ModuleType) else load_file(Path(source))
    found: list[Any] = [unwrapped(value) for value in vars(module).values()]
    unique = {id(fn): fn for fn in found
              if fn is not None and getattr(fn, "examples", None) and fn.fn.__module__ == module.__name__}
    return [Kernel(fn.fn.__name__, fn, fn.examples) for fn in unique.values()]


def signature(launch: Launch) -> dict[str, str]:
    """Return Triton's type of each run-time argument in order: `*bf16` for a tensor, `i32`, `i64`, `fp32` or `i1`."""
    return {name: _type(value) for name, value in launch.args.items()}


def parameters(fn: Any) -> dict[str, inspect.Parameter]:
    """Return the Python parameters of a `@triton.jit` function, in order."""
    return dict(inspect.signature(fn.fn).parameters)


def is_constexpr(parameter: inspect.Parameter) -> bool:
    """Return whether a parameter is annotated as `tl.constexpr`."""
    return "constexpr" in str(parameter.annotation)


def fitted(fn: Any, launch: Launch) -> Launch:
    """Return a launch with its args in the function's order and constants' defaults filled in.

    Raises InputError with every parameter that is missing, unknown or on the wrong side.
    """
    wanted = parameters(fn)
    constants = {n: p.default for n, p in wanted.items() if is_constexpr(p) and p.default is not p.empty}
    constants |= launch.constants
    faults = [f"{n!r} is no parameter" for n in (*launch.args, *launch.constants) if n not in wanted]
    for name, parameter in wanted.items():
        right, wrong = (constants, launch.args) if is_constexpr(parameter) else (launch.args, launch.constants)
        if name not in right:
            where = "constants" if is_constexpr(parameter) else "args"
            faults.append(f"{name!r} belongs in {where}" if name in wrong else f"{name!r} is missing in {where}")
    if faults:
        raise InputError(f"the Launch of kernel {fn.fn.__name__!r} does not fit its parameters "
                         f"({', '.join(wanted)}): {'; '.join(faults)}")
    return Launch({n: launch.args[n] for n in wanted if n in launch.args}, launch.grid, constants, launch.outputs)


def _type(value: Tensor | int | float) -> str:
    if isinstance(value, Tensor):
        return "*" + TYPES[value.dtype]
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int):
        return "i32" if -2**31 <= value < 2**31 else "i64"
    return "fp32"
