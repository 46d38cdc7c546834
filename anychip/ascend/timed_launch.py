"""A launcher that runs a few programs of each kernel on the virtual chip to time the launch; it computes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..kernels.example import Launch, fitted, signature
from ..kernels.launch import Family
from .compile import compile_kernel
from .die import record
from .rates import load_rates
from .targets import OnTarget, Target

BUDGET = 20_000  # instructions executed of a launch; programs beyond that take the time of their neighbours


@dataclass(frozen=True)
class LaunchTime:
    """The simulated time of one launch; launch_s of it is the start of the kernel."""

    kernel: str
    time_s: float
    launch_s: float
    bound: str


@dataclass
class TimedLauncher(OnTarget):
    """Times launches on `target` and adds them to `times`. Outputs are not computed: only some programs write theirs.

    Arguments that decide how much is done (counts, rows, offsets) must hold true values; the others may hold anything.
    Equal launches (kernel, grid, shapes, numbers) are timed once. Raises KernelError, NotSupported as
    `compile_kernel` and `run_kernel` do, and NotSupported for a chip whose speed is unknown.
    """

    target: Target
    times: list[LaunchTime] = field(default_factory=list)
    _known: dict[Any, LaunchTime] = field(default_factory=dict)
    family: Family = "ascend"

    def __call__(self, fn: Any, grid: tuple[int, ...], args: dict[str, Tensor | int | float],
                 constants: dict[str, Any], *, warps: int = 4, stages: int = 2) -> None:
        """Time a launch; `warps` and `stages` have no meaning on Ascend."""
        if 0 in grid:
            return
        shapes = tuple((v.dtype, tuple(v.shape)) if isinstance(v, Tensor) else v for v in args.values())
        key = (fn, grid, shapes, tuple(constants.items()))
        if key not in self._known:
            self._known[key] = self._timed(fn, grid, args, constants)
        self.times.append(self._known[key])

    def _timed(self, fn: Any, grid: tuple[int, ...], args: dict[str, Any], constants: dict[str, Any]) -> LaunchTime:
        tensors = tuple(name for name, value in args.items() if isinstance(value, Tensor))
        launch = fitted(fn, Launch(dict(args), grid, constants, tensors[:1]))
        kernel = compile_kernel(fn, signature(launch), launch.constants, self.target)
        time = record(kernel, launch.args, grid, numerics=False, budget=BUDGET).time(load_rates(self.target))
        return LaunchTime(kernel.name, time.time_s, time.launch_s, time.bound)

