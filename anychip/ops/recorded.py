"""Ops that note every call: wraps any chip's ops and gives one Event a call, with its work and its time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from ..record import Event, Kind, Recorder
from .attention import Keys
from .seam import COSTS, Ops


class RecordedOps(Ops):
    """`inner`'s results, and an Event in `recorder` for each call.

    `clock` returns seconds after all work given to the chip is done (None: calls are not timed).
    """

    def __init__(self, inner: Ops, recorder: Recorder, kind: Kind, clock: Callable[[], float] | None = None,
                 layer: str = "") -> None:
        self._inner, self._recorder, self._kind, self._clock, self._layer = inner, recorder, kind, clock, layer
        for name in COSTS:
            setattr(self, name, partial(self._call, name))

    def at(self, layer: str) -> Ops:
        return RecordedOps(self._inner.at(layer), self._recorder, self._kind, self._clock, layer)

    def _call(self, name: str, *arguments: Any, **named: Any) -> Any:
        start = self._clock() if self._clock else 0.0
        result = getattr(self._inner, name)(*arguments, **named)
        time_s = self._clock() - start if self._clock else None
        cost = COSTS[name](*arguments, **named)
        tensors = flat_tensors(arguments)
        event = Event(name, self._layer, tuple(tuple(t.shape) for t in tensors), str(tensors[0].dtype).split(".")[1],
                      cost.flops, cost.bytes, time_s, self._kind)
        self._recorder.add(event, (*arguments, named), result)
        return result


def flat_tensors(values: object) -> list[Tensor]:
    """Return the tensors inside an op's arguments or result, in order."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, Keys):
        return flat_tensors((values.window_NC, values.compressed_MC, values.selected))
    if isinstance(values, dict):
        return flat_tensors(tuple(values.values()))
    if isinstance(values, (tuple, list)):
        return [tensor for value in values for tensor in flat_tensors(value)]
    return []
