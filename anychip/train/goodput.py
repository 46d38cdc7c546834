"""How much of a run's time was training: productive time over wall time, and what each kind of fault has cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .fault import FaultKind
from .folder import EVENTS, METRICS, read_lines, read_losses

# Which kind of fault an injected one is found as.
FOUND_AS = {"kill": FaultKind.KILLED, "hang": FaultKind.HANG, "freeze": FaultKind.HANG, "nan": FaultKind.NOT_FINITE,
            "spike": FaultKind.SPIKE, "bitflip:weight": FaultKind.WEIGHTS,
            "bitflip:optimizer": FaultKind.WEIGHTS, "bitflip:gradient": FaultKind.GRADIENT,
            "slow": FaultKind.SLOW, "disk_full": FaultKind.DISK, "bad_shard": FaultKind.UNREADABLE}
NO_RESTART = (FaultKind.SLOW, FaultKind.DISK)


@dataclass(frozen=True)
class Median:
    """The median of some seconds, its 95 % interval by order statistics (None: fewer than six), and their number."""

    value: float
    low: float | None
    high: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Median | None:
        """Return the median of values, None of none."""
        if not values:
            return None
        ordered, n = sorted(values), len(values)
        place = _order(n)
        low, high = (None, None) if place is None else (ordered[place], ordered[n - 1 - place])
        return cls(statistics.median(ordered), low, high, n)

    def text(self) -> str:
        """Return the median with its interval."""
        spread = "" if self.low is None or self.high is None else f" [{self.low:.2g}, {self.high:.2g}]"
        return f"{self.value:.2g}{spread} s (n={self.n})"


def _order(n: int) -> int | None:
    """Return the largest k for which the k-th smallest and k-th largest of n bound the median with 95 % certainty."""
    total, best = 0.0, None
    for k in range(n // 2):
        total += math.comb(n, k) / 2.0**n
        if total > 0.025:
            break
        best = k
    return best


@dataclass(frozen=True)
class FaultCost:
    """One kind of fault: how often, and how long until it was noticed and until a step was taken again."""

    count: int
    detect: Median | None
    recover: Median | None


@dataclass(frozen=True)
class Goodput:
    """A run's account. `share` is productive time over wall time; times are of this machine (measured).

    Productive is the time of the steps that the run consists of, each counted once. `failures_per_hour` has an exact
    95 % Poisson interval.
    """

    steps: int
    wall_s: float
    productive_s: float
    share: float
    restarts: int
    lost_steps: int
    failures_per_hour: tuple[float, float, float]
    faults: dict[str, FaultCost]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the statement in words."""
        rate, low, high = self.failures_per_hour
        head = [f"goodput {100 * self.share:.1f} % (measured): {self.productive_s:.1f} s of training in "
                f"{self.wall_s:.1f} s; {self.restarts} restarts, {self.lost_steps} steps taken again",
                f"restarts an hour: {rate:.3g} [{low:.3g}, {high:.3g}]"]
        return head + [f"{kind}: {cost.count}, detected in {_text(cost.detect)}, recovered in {_text(cost.recover)}"
                       for kind, cost in self.faults.items()]


def _text(median: Median | None) -> str:
    return "unknown" if median is None else median.text()


def goodput(out: Path, began: Mapping[int, float] | None = None) -> Goodput | None:
    """Return the account of a run's folder, None where it has not begun.

    `began`: for faults made from outside, when the n-th `fault` event's cause happened (seconds since 1970), where
    known; injected faults say so themselves.
    """
    events, metrics, losses = read_lines(out / EVENTS), read_lines(out / METRICS), read_losses(out)
    starts = [event for event in events if event["event"] == "begin"]
    if not starts or not metrics:
        return None
    wall = max(events[-1]["time"], metrics[-1]["time"]) - starts[0]["time"]
    productive, restarts = sum(line["time_s"] for line in losses), len(starts) - 1
    return Goodput(len(losses), wall, productive, productive / wall, restarts, sum(e["lost_steps"] for e in starts),
                   _rate(restarts, wall / 3600), _costs(events, [line["time"] for line in metrics], began or {}))


def _rate(count: int, hours: float) -> tuple[float, float, float]:
    from scipy.stats import chi2

    low = chi2.ppf(0.025, 2 * count) / 2 if count else 0.0
    return count / hours, float(low) / hours, float(chi2.ppf(0.975, 2 * count + 2)) / 2 / hours


def _costs(events: list[dict[str, Any]], steps: list[float], began: Mapping[int, float]) -> dict[str, FaultCost]:
    counts: dict[str, int] = {}
    detect: dict[str, list[float]] = {}
    recover: dict[str, list[float]] = {}
    faults = [(at, event) for at, event in enumerate(events) if event["event"] == "fault"]
    for number, (at, fault) in enumerate(faults):
        kind = fault["kind"]
        counts[kind] = counts.get(kind, 0) + 1
        cause = began.get(number, _cause(events[:at], kind))
        if cause is not None:
            detect.setdefault(kind, []).append(fault["time"] - cause)
        after = None if kind in NO_RESTART else _next_step(events[at:], steps)
        if after is not None:
            recover.setdefault(kind, []).append(after - fault["time"])
    return {kind: FaultCost(count, Median.of(detect.get(kind, [])), Median.of(recover.get(kind, [])))
            for kind, count in counts.items()}


def _cause(before: list[dict[str, Any]], kind: str) -> float | None:
    """Return when the injected fault happened that is found as this kind, where none was found since."""
    for event in reversed(before):
        if event["event"] == "fault" and event["kind"] == kind:
            return None
        if event["event"] == "injected" and FOUND_AS[event["kind"]].value == kind:
            return float(event["time"])
    return None


def _next_step(after: list[dict[str, Any]], steps: list[float]) -> float | None:
    """Return when the first step ended after the next beginning."""
    begin = next((event["time"] for event in after if event["event"] == "begin"), None)
    return None if begin is None else next((time for time in steps if time > begin), None)
