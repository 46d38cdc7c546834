"""Anticipatory routing: for a while after a loss spike, tokens visit the experts that earlier weights chose for them.

DeepSeek-V4 report section 4.2: step t computes with the weights of step t, but routes by those of step t - delay; the
choice is made at step t - delay, by a forward pass over the batch of step t, and kept until then. The report gives no
delay and no duration: both are settings here (`Care`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from ..config import ModelConfig
from ..config.specs import Mixture
from ..model import Hidden
from ..parallel import Batch, Losses, Routes
from .objective import next_ids

EVENT = "anticipate"


@dataclass(frozen=True)
class Window:
    """Steps `first` to `end` (not included) of a run, routed by the weights of `delay` steps before, at most of step
    `first`."""

    first: int
    end: int
    delay: int

    def event(self) -> dict[str, Any]:
        """Return the fields of the event that notes it."""
        return {"event": EVENT, **asdict(self)}


def windows_of(events: Iterable[Mapping[str, Any]]) -> tuple[Window, ...]:
    """Return the windows of a run, from its events."""
    return tuple(Window(event["first"], event["end"], event["delay"]) for event in events if event["event"] == EVENT)


def has_routers(config: ModelConfig) -> bool:
    """Tell whether any layer's experts are chosen by scores."""
    ffns = (config.layer(index).ffn for index in range(config.num_blocks))
    return any(isinstance(ffn, Mixture) and not ffn.hashed for ffn in ffns)


class Anticipation:
    """Which steps are routed ahead, and the routes that are kept for them: part of a run's state.

    Routes are kept by the number of their batch, which `number` gives of a step: a batch that is skipped later moves
    the others to earlier steps.
    """

    def __init__(self, windows: Sequence[Window] = (), number: Callable[[int], int] = lambda step: step) -> None:
        self._windows, self._number = windows, number
        self._kept: dict[int, Routes] = {}

    def missing(self, step: int) -> list[int]:
        """Return the later steps whose routes the weights of `step` have to give."""
        found = {ahead for window in self._windows if window.first <= step
                 for ahead in range(step + 1, min(step + window.delay + 1, window.end))}
        return sorted(ahead for ahead in found if self._number(ahead) not in self._kept)

    def keep(self, step: int, routes: Routes) -> None:
        """Keep the routes of a later step."""
        self._kept[self._number(step)] = routes

    def take(self, step: int) -> Routes | None:
        """Return the routes of a step and forget them and all earlier ones; None where it is routed as it goes."""
        found = self._kept.get(self._number(step))
        self._kept = {batch: routes for batch, routes in self._kept.items() if batch > self._number(step)}
        return found

    def state(self) -> dict[str, Tensor]:
        """Return this rank's routes by "BATCH/LAYER/MICRO-BATCH/BLOCK"."""
        return {f"{batch}/{name}": ids for batch, routes in self._kept.items() for name, ids in routes.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` gave."""
        self._kept = {}
        for key, ids in state.items():
            batch, _, name = key.partition("/")
            self._kept.setdefault(int(batch), {})[name] = ids


@dataclass(frozen=True)
class Ahead:
    """No losses: it lets a pass reach every score router, the MTP block's (`mtp`) included."""

    mtp: bool

    def final(self, model: nn.Module, hidden: Hidden, part: Batch, whole: Batch) -> Losses:
        """Run the MTP block; return a loss of zero."""
        last: Any = model
        if self.mtp:
            last.predict_next(hidden.streams_Tnd, next_ids(part), part.layout)
        return Losses(hidden.hidden_Td.new_zeros(()))

    def layers(self, model: nn.Module, part: Batch, whole: Batch) -> None:
        """Return None."""
