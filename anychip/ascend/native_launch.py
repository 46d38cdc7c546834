"""A launcher for machines without an Ascend: kernels are compiled for the target, and run on this processor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..kernels.example import Launch, fitted, signature
from ..kernels.launch import Family
from .compile import CompiledKernel, compile_kernel
from .native import Native, native
from .targets import OnTarget, Target

Observer = Callable[[CompiledKernel, dict[str, Any], tuple[int, ...]], None]


@dataclass(frozen=True)
class NativeLauncher(OnTarget):
    """Compiles each kernel for `target` by Huawei's compiler and runs its linalg stage as machine code.

    `observe(kernel, args, grid)` is told of every launch before it runs. Raises KernelError for a kernel that the
    target's compiler refuses: what runs here is what would run there.
    """

    target: Target
    observe: Observer | None = None
    family: Family = "ascend"

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ready", {})

    def __call__(self, fn: Any, grid: tuple[int, ...], args: dict[str, Tensor | int | float],
                 constants: dict[str, Any], *, warps: int = 4, stages: int = 2) -> None:
        """Run a kernel; `warps` and `stages` have no meaning on Ascend."""
        if 0 in grid:
            return
        kernel, run = self.prepared(fn, args, constants)
        if self.observe is not None:
            self.observe(kernel, args, grid)
        run({name: args[name] for name in kernel.signature}, grid)

    def prepared(self, fn: Any, args: dict[str, Tensor | int | float],
                 constants: dict[str, Any]) -> tuple[CompiledKernel, Native]:
        """Return a kernel compiled for these types and constants, in both forms; kept by this launcher."""
        ready: dict[Any, tuple[CompiledKernel, Native]] = self._ready  # type: ignore[attr-defined]
        types = tuple(value.dtype if isinstance(value, Tensor) else _kind(value) for value in args.values())
        key = (fn, tuple(args), types, tuple(constants.items()))
        if key not in ready:
            launch = fitted(fn, Launch(dict(args), (1,), constants, _any_tensor(args)))
            kernel = compile_kernel(fn, signature(launch), launch.constants, self.target)
            ready[key] = kernel, native(kernel)
        return ready[key]


def _kind(value: int | float) -> str:
    """What decides a number's type in the signature: ints beyond 32 bits are i64."""
    if isinstance(value, int) and not isinstance(value, bool):
        return "i32" if -2**31 <= value < 2**31 else "i64"
    return type(value).__name__


def _any_tensor(args: dict[str, Tensor | int | float]) -> tuple[str, ...]:
    return tuple(name for name, value in args.items() if isinstance(value, Tensor))[:1]
