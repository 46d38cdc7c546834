"""Guided runs: the tested chip's model code, fed the reference's result after every op, so that nothing builds up.

The reference runs a scenario and keeps every op call. The tested chip's model then runs the same scenario; each op
call is compared with the reference's call of the same number (which op, and every argument by name), and returns the
reference's result. What differs is then the doing of the model code right before that call: a window off by one, an
angle, a table, a cache. The ops themselves are judged apart (`op_level`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..chips import Chip
from ..model import Transformer
from ..ops import COSTS, Ops
from ..ops.trees import flat_tensors, map_tensors
from .op_level import relative

Scenario = Callable[[Transformer], None]


@dataclass(frozen=True)
class Call:
    """One op call of the reference: `arguments` by the seam's names."""

    op: str
    layer: str
    arguments: dict[str, Any]
    result: Any


@dataclass(frozen=True)
class Departure:
    """A call whose op or argument is not the reference's: `argument` is its path, `error` a relative difference.

    `feeds` is, where a call is missing, the op that takes its result in the reference ("": none takes it as it is).
    """

    scenario: str
    call: int
    layer: str
    op: str
    argument: str
    error: float
    before: str  # the op called before, by which the place is known
    feeds: str = ""


class _Watched(Ops):
    """Ops that hand every call to `see(op, layer, arguments by name, run it)` and return what that returns."""

    def __init__(self, inner: Ops, see: Callable[[str, str, dict[str, Any], Callable[[], Any]], Any],
                 layer: str = "") -> None:
        self._inner, self._see, self._layer = inner, see, layer
        for name in COSTS:
            setattr(self, name, partial(self._call, name))

    def at(self, layer: str) -> Ops:
        return _Watched(self._inner.at(layer), self._see, layer)

    def _call(self, name: str, *arguments: Any, **named: Any) -> Any:
        bound = inspect.signature(getattr(Ops, name)).bind(*arguments, **named)
        bound.apply_defaults()
        run = partial(getattr(self._inner, name), *arguments, **named)
        return self._see(name, self._layer, bound.arguments, run)


def trace(model: Transformer, scenario: Scenario) -> list[Call]:
    """Run a scenario on the reference's model and return its op calls."""
    calls: list[Call] = []

    def see(op: str, layer: str, arguments: dict[str, Any], run: Callable[[], Any]) -> Any:
        result = run()
        calls.append(Call(op, layer, map_tensors(arguments, _kept), result))
        return result

    _run(model, scenario, see)
    return calls


def _kept(t: Tensor) -> Tensor:
    """A tensor as it is now: a cache is written over later, a parameter is not."""
    return t.detach() if isinstance(t, nn.Parameter) else t.detach().clone()


def guide(name: str, model: Transformer, chip: Chip, scenario: Scenario, calls: list[Call],
          allowed: float) -> list[Departure]:
    """Run a scenario on the tested chip's model, guided by the reference's calls; return where it departs.

    `allowed` is the relative difference of a value that a number format explains.
    """
    found: list[Departure] = []
    step = iter(enumerate(calls))

    def see(op: str, layer: str, arguments: dict[str, Any], run: Callable[[], Any]) -> Any:
        number, wanted = next(step, (len(calls), None))
        before = calls[number - 1].op if number else ""
        if wanted is None or wanted.op != op:
            called = "none" if wanted is None else wanted.op
            found.append(Departure(name, number, layer, op, f"called where the reference calls {called}", 1.0, before,
                                   _consumer(calls, number)))
            raise _Lost
        for path, error in _differences(wanted.arguments, map_tensors(arguments, lambda t: t.detach().cpu())):
            if not error <= allowed:
                found.append(Departure(name, number, layer, op, path, error, before))
        return map_tensors(wanted.result, lambda t: t.to(chip.device))

    try:
        _run(model, scenario, see)
    except _Lost:
        return found
    left = next(step, None)
    if left is not None:
        found.append(Departure(name, left[0], left[1].layer, left[1].op, "never called", 1.0, calls[left[0] - 1].op,
                               _consumer(calls, left[0])))
    return found


def _consumer(calls: list[Call], number: int) -> str:
    """The op of the first later call that takes a call's very result as an argument."""
    result = calls[number].result if number < len(calls) else None
    if not isinstance(result, Tensor):
        return ""
    for call in calls[number + 1 :]:
        for value in flat_tensors(call.arguments):
            if value.numel() == result.numel() and torch.equal(value.flatten(), result.flatten()):
                return call.op
    return ""


class _Lost(Exception):
    """The tested model calls other ops than the reference: nothing after can be compared."""


def _run(model: Transformer, scenario: Scenario, see: Any) -> None:
    ops, model.ops = model.ops, _Watched(model.ops, see)
    try:
        with torch.no_grad():
            scenario(model)
    finally:
        model.ops = ops


def _differences(wanted: Any, got: Any, path: str = "") -> list[tuple[str, float]]:
    """Return (path, relative difference) of every leaf that is not equal; of other kinds of leaf, 1."""
    if isinstance(wanted, Tensor) and isinstance(got, Tensor):
        if wanted.shape == got.shape and torch.equal(wanted, got.to(wanted.dtype)):
            return []
        if wanted.is_floating_point() or wanted.shape != got.shape:
            return [(path, relative(got, wanted))]
        return [(path, float((wanted != got).double().mean()))]
    if type(wanted) is not type(got):
        return [(path, 1.0)]
    if is_dataclass(wanted) and not isinstance(wanted, type):
        named = {f.name: (getattr(wanted, f.name), getattr(got, f.name)) for f in fields(wanted)}
    elif isinstance(wanted, dict):
        named = {name: (value, got.get(name)) for name, value in wanted.items()}
    elif isinstance(wanted, tuple):
        names = getattr(wanted, "_fields", None) or [str(i) for i in range(len(wanted))]
        named = dict(zip(names, zip(wanted, got, strict=True), strict=True))
    else:
        return [] if wanted == got else [(path, 1.0)]
    return [found for name, (a, b) in named.items() for found in _differences(a, b, f"{path}.{name}" if path else name)]
