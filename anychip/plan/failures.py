"""How often large jobs are interrupted: published rates, or the user's own. Rates grow with the number of devices.

A rate is of unplanned interruptions of a synchronous job: any device's failure stops all. That it grows linearly with
the number of devices is an assumption; jobs below some thousand devices were seen to fail more often for other reasons
(arXiv:2410.21680: 7.9 h between failures at 1,024 devices where the fleet's rate gives 28.8 h).
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from typing import Any

from scipy import stats

from ..errors import InputError, nearest

DAY_S = 86400.0
_CORRUPTION = "silent data corruption"


@dataclass(frozen=True)
class Cause:
    """One kind of interruption: how many were counted, and whether the node leaves the job for repair."""

    name: str
    count: int
    swap: bool


@dataclass(frozen=True)
class FailureRate:
    """Interruptions a device and second. `count` is how many it rests on (None: the source gives a rate alone).

    `causes` is empty where the source has none; then every failure is taken to need another node.
    """

    name: str
    per_device_s: float
    devices_per_node: int
    source: str
    count: int | None = None
    causes: tuple[Cause, ...] = ()

    def mtbf_s(self, devices: int) -> float:
        """Return the mean time between interruptions of a job on so many devices, seconds."""
        return 1 / (self.per_device_s * devices)

    @property
    def per_1000_node_days(self) -> float:
        """The rate as fleets publish it."""
        return self.per_device_s * self.devices_per_node * DAY_S * 1000

    @property
    def swap_share(self) -> float:
        """Share of failures that take a node out of the job."""
        return self._share(lambda cause: cause.swap) if self.causes else 1.0

    @property
    def corruption_share(self) -> float | None:
        """Share of failures that were silent data corruption found in time; None where the source has no causes."""
        return self._share(lambda cause: cause.name == _CORRUPTION) if self.causes else None

    def interval(self, confidence: float = 0.95) -> tuple[float, float] | None:
        """Return the rate's exact Poisson interval a device and second, from its count alone; None without one."""
        if self.count is None:
            return None
        tail, unit = (1 - confidence) / 2, self.per_device_s / self.count
        low = stats.chi2.ppf(tail, 2 * self.count) / 2 if self.count else 0.0
        return low * unit, stats.chi2.ppf(1 - tail, 2 * self.count + 2) / 2 * unit

    def scaled(self, factor: float) -> FailureRate:
        """Return the same mix at another rate."""
        return replace(self, name=f"{self.name} x {factor:g}", per_device_s=self.per_device_s * factor, count=None)

    def _share(self, chosen: Any) -> float:
        return sum(cause.count for cause in self.causes if chosen(cause)) / sum(cause.count for cause in self.causes)


def given_rate(per_1000_node_days: float, devices_per_node: int = 8) -> FailureRate:
    """Return a rate that the user knows. Raises InputError where it is not above 0."""
    if not per_1000_node_days > 0:
        raise InputError(f"a failure rate of {per_1000_node_days} per 1,000 node-days was given; it must be above 0")
    if devices_per_node < 1:
        raise InputError(f"a node of {devices_per_node} devices was given; it has at least 1")
    return FailureRate("given", per_1000_node_days / (1000 * DAY_S * devices_per_node), devices_per_node,
                       "the user's own figure")


@lru_cache(maxsize=1)
def published_rates() -> dict[str, FailureRate]:
    """Return the published rates by name."""
    data = tomllib.loads((files("anychip.plan") / "failures.toml").read_text(encoding="utf-8"))
    return {name: _read(name, entry) for name, entry in data.items()}


def rate_of_chip(chip: str) -> FailureRate | None:
    """Return the first published rate for a chip, None where nobody published one (all Ascend chips, as of 2026)."""
    data = tomllib.loads((files("anychip.plan") / "failures.toml").read_text(encoding="utf-8"))
    names = [name for name, entry in data.items() if chip in entry["chips"]]
    return published_rates()[names[0]] if names else None


def find_rate(text: str, devices_per_node: int = 8) -> FailureRate:
    """Return a published rate by name, or one given as a number per 1,000 node-days.

    Raises InputError with the choices for anything else.
    """
    try:
        return given_rate(float(text), devices_per_node)
    except ValueError:
        pass
    rates = published_rates()
    if text not in rates:
        raise InputError(f"no failure rate {text!r}: give a number per 1,000 node-days, or one of {', '.join(rates)}."
                         + nearest(text, rates))
    return rates[text]


def _read(name: str, entry: dict[str, Any]) -> FailureRate:
    causes = tuple(Cause(**cause) for cause in entry.get("causes", ()))
    nodes = entry["devices_per_node"]
    if "count" in entry:
        rate = entry["count"] / (entry["device_days"] * DAY_S)
        return FailureRate(name, rate, nodes, entry["source"], entry["count"], causes)
    return replace(given_rate(entry["per_1000_node_days"], nodes), name=name, source=entry["source"], causes=causes)
