"""Simulated times of op calls by their kernels: each launch of a call, and of its gradients, timed on the virtual die.

Calls of many tokens are timed at two smaller numbers of them and continued along the straight line: kernels take their
tiles in turn. What the host does between kernels (sorting, joining, casts by torch) is not in the time. Times are kept
in the user's cache, by op, shapes, chip, compilers, rates and kernel sources.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..ascend import cache
from ..ascend.targets import Target
from ..ascend.timed_launch import LaunchTime, TimedLauncher
from ..ascend.toolchain import find_toolchain
from ..errors import InputError, KernelError, NotSupported
from ..kernels.ops import HOSTS, KernelOps
from ..ops import Keys, Ranges
from ..ops.trees import flat_tensors, map_tensors
from .kernel_calls import made_up, num_tokens
from .virtual_kernels import FP32_ARGUMENTS

FEW, MANY = 2048, 8192  # tokens at which a call of more than MANY is timed
REFUSALS = (NotSupported, KernelError, InputError)


@dataclass(frozen=True)
class CallTime:
    """Seconds of an op call forward and of its gradients (None: not asked), or why its kernels have no time."""

    forward_s: float | None = None
    backward_s: float | None = None
    reason: str = ""


@dataclass
class KernelTimes:
    """Times of calls on a chip, with tensors of `dtype` as its storage format."""

    target: Target
    dtype: torch.dtype
    _launcher: TimedLauncher = field(init=False)
    _ops: KernelOps = field(init=False)
    _versions: str = field(init=False)
    _known: dict[tuple[str, ...], CallTime] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._launcher = TimedLauncher(self.target)
        self._ops = KernelOps(self._launcher, ())
        self._versions = "\0".join([find_toolchain().versions, self.target.name, *_sources()])

    def time(self, op: str, arguments: tuple[Any, ...], named: dict[str, Any], *, backward: bool) -> CallTime:
        """Return the time of one call whose tensors may be on the meta device, from the cache where it is known."""
        if op not in HOSTS:
            return CallTime(reason="it has no kernel")
        if num_tokens(op, arguments) == 0:
            return CallTime(0.0, 0.0)  # no kernel is started
        folder = cache.cache_folder("times")
        call = (op, repr(_shape((arguments, named))), str(self.dtype), str(backward))
        if call not in self._known:
            key = cache.digest(self._versions, *call)
            entry = cache.load(folder, key)
            if entry is None:
                entry = vars(self._fresh(op, arguments, named, backward))
                cache.store(folder, key, entry)
            self._known[call] = CallTime(**entry)
        return self._known[call]

    def _fresh(self, op: str, arguments: tuple[Any, ...], named: dict[str, Any], backward: bool) -> CallTime:
        tokens = num_tokens(op, arguments)
        sizes = (tokens,) if tokens <= MANY else (FEW, MANY)
        try:
            found = [self._at(op, arguments, named, (size, backward)) for size in sizes]
        except REFUSALS as error:
            return CallTime(reason=str(error))
        if len(found) == 1:
            return CallTime(*found[0])
        forward_s, backward_s = (_continued(pair, tokens) for pair in zip(*found, strict=True))
        return CallTime(forward_s, backward_s)

    def _at(self, op: str, arguments: tuple[Any, ...], named: dict[str, Any],
            size: tuple[int, bool]) -> tuple[float, float | None]:
        """The times forward and backward at so many tokens."""
        tokens, backward = size
        call = made_up(op, arguments, named, tokens)
        kept = FP32_ARGUMENTS.get(op, ())
        given = tuple(self._stored(value, torch.float32 if place in kept else self.dtype, backward)
                      for place, value in enumerate(call.arguments))
        self._launcher.times.clear()
        with torch.set_grad_enabled(backward):
            result = self._ops.attempt(op, *given, **call.named)
        forward_s = _total(self._launcher.times, call.share)
        if not backward:
            return forward_s, None
        self._launcher.times.clear()
        outputs = [t for t in flat_tensors(result) if t.requires_grad]
        if outputs:
            torch.autograd.backward(outputs, [torch.empty_like(t) for t in outputs])
        return forward_s, _total(self._launcher.times, call.share)

    @staticmethod
    def _stored(value: Any, dtype: torch.dtype, gradient: bool) -> Any:
        """The same argument with floating tensors of `dtype`."""

        def change(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor
            made = tensor if tensor.dtype is dtype else torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype)
            return made.requires_grad_(gradient)

        return map_tensors(value, change)


def _sources() -> list[str]:
    """Every file that decides a time: kernels, machine, clock, rates."""
    root = Path(__file__).parent.parent
    files = sorted([*root.glob("kernels/*.py"), *root.glob("ascend/**/*.*"), *root.glob("chips/kernel_*.py")])
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files
            if path.suffix in (".py", ".h", ".cpp", ".toml")]


def _continued(pair: tuple[float | None, float | None], tokens: int) -> float | None:
    """The time at `tokens` on the line through the times at FEW and MANY; never less than at MANY."""
    few, many = pair
    return None if few is None or many is None else max(few + (many - few) * (tokens - FEW) / (MANY - FEW), many)


def _total(times: Sequence[LaunchTime], share: float) -> float:
    """The sum of launches; where a call is a share of the real one, all but the starts of the kernels count more."""
    return sum(time.launch_s + (time.time_s - time.launch_s) * share for time in times)


def _shape(value: Any) -> Any:
    """What decides a call's work: shapes, numbers of rows, numbers."""
    if isinstance(value, Tensor):
        return [list(value.shape), str(value.dtype), *([] if value.is_contiguous() else value.stride())]
    if isinstance(value, Ranges):
        return [list(value.start.shape), value.num_pairs, value.max_count]
    if isinstance(value, Keys):
        return [_shape(part) for part in (value.window_NC, value.window, value.compressed_MC, value.selected)]
    if isinstance(value, dict):
        return {name: _shape(part) for name, part in sorted(value.items())}
    if isinstance(value, tuple | list):
        return [_shape(part) for part in value]
    return value

