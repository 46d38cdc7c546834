"""What running a cluster costs: rent and energy, a token trained or served, and one cluster against another.

Prices are a chip's published rents (a range), or the user's own. An unknown price stays unknown: no stand-in.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..chips.facts import ChipFacts
from ..errors import InputError

_BUY_HOURS = 4 * 365 * 24  # what a bought device is written off over


@dataclass(frozen=True)
class Price:
    """Rent of one device an hour, lowest and highest, in `currency`, and where the figures are from."""

    low: float
    high: float
    currency: str
    source: str

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise InputError(f"a price from {self.low} to {self.high} {self.currency}/h was given; it must be above 0 "
                             "and not fall")

    @property
    def middle(self) -> float:
        """Geometric mean of the range: rents differ by factors."""
        return (self.low * self.high) ** 0.5


def given_price(amount: float, currency: str = "USD") -> Price:
    """Return a price that the user knows, an hour and device."""
    return Price(amount, amount, currency, "the user's own figure")


def price_of(facts: ChipFacts) -> Price | None:
    """Return a chip's published rent; where there is none, its purchase price over four years; else None."""
    rents = [fact for key in ("rent_low", "rent_high") if (fact := facts.fact(f"price.{key}"))]
    if rents:
        amounts = sorted(fact.value for fact in rents)
        return Price(amounts[0], amounts[-1], rents[0].unit.removesuffix("/h"), rents[0].source)
    bought = facts.fact("price.buy")
    if bought is None:
        return None
    hourly = bought.value / _BUY_HOURS
    return Price(hourly, hourly, bought.unit, f"{bought.source}; written off over four years, without power or hosts")


@dataclass(frozen=True)
class Cost:
    """Money and energy of `device_hours`. `money` is None where the price is unknown, `energy_kwh` where power is."""

    device_hours: float
    price: Price | None
    power_w: float | None
    power_source: str

    @property
    def money(self) -> tuple[float, float] | None:
        """Lowest and highest, in the price's currency."""
        return None if self.price is None else (self.price.low * self.device_hours, self.price.high * self.device_hours)

    @property
    def energy_kwh(self) -> float | None:
        """Energy, kWh."""
        return None if self.power_w is None else self.power_w * self.device_hours / 1000


def cost_of(facts: ChipFacts, device_hours: float, price: Price | None = None) -> Cost:
    """Return what so many hours of one device cost, with its published price where none is given.

    Power is the whole system's share where that is published (`power.all_in`), else the device's thermal design power.
    """
    for path, meaning in (("power.all_in", "whole system"), ("power.tdp", "the device alone, at its design power")):
        power = facts.number(path)
        if power is not None:
            return Cost(device_hours, price or price_of(facts), power, meaning)
    return Cost(device_hours, price or price_of(facts), None, "unknown")


@dataclass(frozen=True)
class Spent:
    """A run's time and cost on one cluster: what the founding question compares."""

    name: str
    hours: float
    failures_per_day: float | None
    cost: Cost


@dataclass(frozen=True)
class Against:
    """`second` against `first`, as ratios (1.2: 20 % more). `money` is a range, None where a price is unknown or the
    currencies differ; `why` then says so. `energy` is None unless both powers are of the same scope."""

    first: Spent
    second: Spent
    time: float
    money: tuple[float, float] | None
    energy: float | None
    why: str = ""

    def sentence(self, what: str = "this training") -> str:
        """Answer in one sentence, e.g. `on 64 x ascend910c this training takes 61 % more time ...`.

        Equal quality is taken, not planned: the same tokens and batch. `anychip gap` is what measures it.
        """
        parts = [f"on {self.second.name} {what} takes {_more(self.time)} time"]
        parts.append(f"{_range(self.money)} money" if self.money else f"unknown money ({self.why})")
        if self.energy is not None:
            parts.append(f"{_more(self.energy)} energy")
        text = ", ".join(parts[:-1]) + f" and {parts[-1]}" + f" than on {self.first.name}, at equal quality"
        failures = self.second.failures_per_day
        return text + (f", with {failures:.2g} failures a day (simulated)" if failures is not None
                       else ", with an unknown number of failures: no rate of this chip is published")


def compare(first: Spent, second: Spent) -> Against:
    """Compare two runs of the same work."""
    before, after = first.cost.energy_kwh, second.cost.energy_kwh
    same_scope = first.cost.power_source == second.cost.power_source
    energy = after / before if before is not None and after is not None and same_scope else None
    money, why = _money_ratio(first.cost, second.cost)
    return Against(first, second, second.hours / first.hours, money, energy, why)


def _money_ratio(first: Cost, second: Cost) -> tuple[tuple[float, float] | None, str]:
    if first.money is None or second.money is None or first.price is None or second.price is None:
        return None, "a price is unknown: give one"
    if first.price.currency != second.price.currency:
        return None, f"prices in {first.price.currency} and {second.price.currency}: give both in one currency"
    return (second.money[0] / first.money[1], second.money[1] / first.money[0]), ""


def _more(ratio: float) -> str:
    change = 100 * (ratio - 1)
    return "the same" if abs(change) < 0.5 else f"{abs(change):.0f} % {'more' if change > 0 else 'less'}"


def _range(ratios: tuple[float, float]) -> str:
    low, high = ratios
    if high / low < 1.01:
        return _more(low)
    return f"{low:.2g} to {high:.2g} times the"
