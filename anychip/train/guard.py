"""When a loss is a fault, and what is done about it: go back to the last save; then route ahead; then leave the batch
out.

A step that is repeated from the same save sees the same numbers. If its loss is sane the second time, the first was
an error of the machine and nothing is lost. If not, the next attempt goes on with anticipatory routing, where the model
has routers; a batch that spikes under that too, or whose loss is not finite twice, is skipped.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from .anticipate import Window, windows_of
from .fault import Fault, FaultKind, Stopped

WINDOW, FEWEST = 64, 16
MAX_SKIPS, MAX_CORRUPT = 5, 3


class SpikeGuard:
    """Watches the losses of a run. A spike is `spike_nats` and ten median deviations above the last losses' median."""

    def __init__(self, spike_nats: float, before: Iterable[float] = ()) -> None:
        """`before` are the losses of the steps taken; 0 nats turns the guard off."""
        self.spike_nats, self._losses = spike_nats, deque(before, maxlen=WINDOW)

    def check(self, step: int, loss: float) -> None:
        """Take a step's loss. Raises Fault where it is a spike."""
        if self.spike_nats and len(self._losses) >= FEWEST:
            middle = statistics.median(self._losses)
            deviation = statistics.median(abs(value - middle) for value in self._losses)
            if loss > middle + max(self.spike_nats, 10 * deviation):
                raise Fault(FaultKind.SPIKE, f"the loss of step {step} is {loss:.3f}, the median of the "
                            f"{len(self._losses)} before {middle:.3f}", step=step)
        self._losses.append(loss)


def skipped_batches(events: Iterable[Mapping[str, Any]]) -> tuple[int, ...]:
    """Return the numbers of the batches that a run leaves out, from its events."""
    return tuple(sorted({event["batch"] for event in events if event["event"] == "skip"}))


def decide(fault: Fault, batch: int, events: list[dict[str, Any]],
           window: Window | None = None) -> dict[str, Any] | None:
    """Return the event that notes what changes from now on, None where going back to the last save is enough.

    `events` are the run's before this fault; `window` is the anticipatory routing that could begin now (None: no use).
    Raises Stopped where going on is of no use.
    """
    same = [event for event in events if event["event"] == "fault" and event["kind"] == fault.kind.value]
    if fault.kind in (FaultKind.NOT_FINITE, FaultKind.SPIKE):
        if not any(event.get("batch") == batch for event in same):
            return None
        tried = any(known.first <= fault.step < known.end for known in windows_of(events))
        if fault.kind is FaultKind.SPIKE and window is not None and not tried:
            return window.event() | {"batch": batch, "step": fault.step}
        skips = len(skipped_batches(events))
        if skips >= MAX_SKIPS:
            raise Stopped(f"{fault.message}; {skips} batches were skipped already. Use a lower learning rate or a "
                          "longer warm-up, and look at the batches named in events.jsonl")
        return {"event": "skip", "batch": batch, "step": fault.step}
    for rank in fault.ranks:
        count = 1 + sum(rank in event.get("ranks", ()) for event in events
                        if event["event"] == "fault" and event["kind"] in ("weights", "gradient", "copies"))
        if len(fault.ranks) == 1 and fault.kind in CORRUPTION and count >= MAX_CORRUPT:
            raise Stopped(f"{fault.message}; rank {rank} was found corrupt {count} times: take its chip out of "
                          "service, then run the same command again")
    return None


CORRUPTION = (FaultKind.WEIGHTS, FaultKind.GRADIENT, FaultKind.COPIES)
