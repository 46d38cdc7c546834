"""Ops that note every call: wraps any chip's ops and gives one Event a call, with its work and its time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ..record import Event, Kind, Recorder
from .seam import COSTS, Ops
from .trees import flat_tensors


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

