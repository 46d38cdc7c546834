"""Speed and cost in a matrix: rates that were timed in rounds, simulated rates, and what a million tokens cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...plan.cost import Price
from ...record import Kind, Quantity
from ..statistics import mean, ratio_of_positive
from .block import Block, as_ratio, weaker, with_ratios
from .grid import Grid, Key

STEPS = ("prefill", "decode", "training")
WORDS = {"prefill": "prefill", "decode": "decoding one sequence", "training": "training"}


def speed_blocks(grid: Grid) -> list[Block]:
    """Return measured and simulated rates of the models themselves, then simulated ones of their published models."""
    timed = [_measured(grid, step) for step in STEPS]
    own = [_simulated(grid, step, published=False) for step in STEPS]
    large = [_simulated(grid, step, published=True) for step in STEPS]
    return [block for block in (*timed, *own, *large) if block.cells]


def cost_blocks(grid: Grid, speeds: Sequence[Block], prices: Mapping[str, Price]) -> list[Block]:
    """Return what a million tokens cost at each speed, for chips with a price: the user's own, else a published one."""
    known = known_prices(grid, prices)
    one = f"{WORDS['decode']}, published model"  # a large model is not decoded for one user at a time: see the plan
    return [block for speed in speeds if speed.name != one and (block := cost_block(grid, speed, known)).cells]


def known_prices(grid: Grid, prices: Mapping[str, Price]) -> dict[Key, Price]:
    """Return each cell's price an hour: the user's own of its chip, else the published one; unknown ones are absent."""
    return {key: price for key, bundle in grid.bundles.items()
            if (price := prices.get(key[1]) or _published_price(bundle.tables["speed"])) is not None}


def sources(grid: Grid, prices: Mapping[str, Price]) -> dict[str, str]:
    """Return for each chip where its price is from, or that none is known."""
    found = {}
    for (_, chip), bundle in grid.bundles.items():
        price = prices.get(chip) or _published_price(bundle.tables["speed"])
        found[chip] = "no price is known: give one with --price" if price is None else (
            f"{price.low:g} to {price.high:g} {price.currency} a device-hour ({price.source})" if
            price.high > price.low else f"{price.low:g} {price.currency} a device-hour ({price.source})")
    return found


def _measured(grid: Grid, step: str) -> Block:
    rounds = {key: bundle.tables["speed"]["rounds"] for key, bundle in grid.bundles.items()
              if bundle.tables["speed"].get("rounds")}
    cells = {key: as_ratio(mean(np.array(one[step])), Kind.MEASURED, unit="tokens/s") for key, one in rounds.items()}

    def ratio(first: Key, second: Key) -> Quantity:
        a, b = rounds[first], rounds[second]
        return as_ratio(ratio_of_positive(np.array(a[step]), np.array(b[step]), paired=a["session"] == b["session"]),
                        Kind.MEASURED)

    sizes = {"prefill": "one prompt of {probe_tokens} tokens", "decode": "after {probe_tokens} tokens",
             "training": "steps of {train_batch} x {train_length} tokens"}
    note = f"{_size(grid, sizes[step])}; measured in rounds over all that is here"
    block = Block("Speed", WORDS[step], "tokens/s", note, cells, said=f"its speed of {WORDS[step]}")
    return with_ratios(block, grid.models, grid.chips, chip_ratio=ratio, model_ratio=ratio)


def _size(grid: Grid, text: str) -> str:
    return text.format(**next(iter(grid.bundles.values())).about["settings"])


def _simulated(grid: Grid, step: str, *, published: bool) -> Block:
    tables = {key: bundle.tables["speed"] for key, bundle in grid.bundles.items()}
    times = {key: _published(speed, step) if published else (speed["own"] or {}).get(step)
             for key, speed in tables.items()}
    cells = {key: Quantity(time["tokens"] / time["time_s"], "tokens/s", Kind.SIMULATED)
             for key, time in times.items() if time}
    name, note = f"{WORDS[step]}, simulated", "the same work as is measured where a chip is here; from a chip's limits"
    block = Block("Speed", name, "tokens/s", note, cells, said=f"its speed of {WORDS[step]}")
    return _published_block(grid, block, step) if published else with_ratios(block, grid.models, grid.chips)


def _published_block(grid: Grid, block: Block, step: str) -> Block:
    """The published model of each model's family, once where several share it."""
    names = {model: bundle.tables["speed"]["model"] for (model, _), bundle in grid.bundles.items()}
    first: dict[str, str] = {}
    for model, name in names.items():
        first.setdefault(name, model)
    shown = {key: value for key, value in block.cells.items() if first[names[key[0]]] == key[0]}
    why = {(model, chip): name if first[name] == model else f"{name}, see {first[name]}"
           for model, name in names.items() for chip in grid.chips}
    work = {"prefill": "16 prompts of 4096 tokens", "decode": "after 4096 tokens", "training": "16 x 4096 tokens"}
    note = f"{work[step]}; of the published model of each family, all weights in one chip's memory"
    return with_ratios(Block("Speed", f"{WORDS[step]}, published model", "tokens/s", note, shown, why=why), grid.models,
                       grid.chips)


def _published(speed: Mapping[str, Any], step: str) -> Mapping[str, Any] | None:
    if step == "decode":
        return speed["decode"][0] if speed["decode"] else None
    found: Mapping[str, Any] | None = speed["train" if step == "training" else "prefill"]
    return found


def _published_price(speed: Mapping[str, Any]) -> Price | None:
    return None if speed["price"] is None else Price(**speed["price"])


def cost_block(grid: Grid, speed: Block, prices: Mapping[Key, Price]) -> Block:
    """One chip's rent for the time that a million tokens take; the interval is the range of its rents."""
    cells, currencies = {}, dict[Key, str]()
    for key, rate in speed.cells.items():
        price = prices.get(key)
        if price is None or not rate.value:
            continue
        hours = 1e6 / rate.value / 3600
        ends = (None, None) if price.low == price.high else (price.low * hours, price.high * hours)
        cells[key] = Quantity(price.middle * hours, f"{price.currency}/Mtoken", rate.kind, *ends)
        currencies[key] = price.currency
    note = "rent of one chip for the time; brackets: its lowest and highest rent"
    units = {cell.unit for cell in cells.values()}
    unit = units.pop() if len(units) == 1 else "a million tokens"
    block = Block("Plan" if speed.topic == "Plan" else "Cost", f"cost of {speed.name}", unit, note, cells, lower=True,
                  said=speed.said.replace("its speed of", "its cost of"))

    def ratio(first: Key, second: Key) -> Quantity | None:
        a, b = block.cells[first], block.cells[second]
        if currencies[first] != currencies[second] or not a.value or b.value is None:
            return None
        if first[1] == second[1]:  # one chip: its rent cancels
            other = speed.across_models.get(second)
            return None if other is None or not other.value else Quantity(
                1 / other.value, "x", other.kind, other.high and 1 / other.high, other.low and 1 / other.low)
        low, high = ((q.value if q.low is None else q.low, q.value if q.high is None else q.high) for q in (a, b))
        ends = low[1] / high[0], high[1] / low[0]  # type: ignore[operator]
        return Quantity(b.value / a.value, "x", weaker(a.kind, b.kind), *ends)

    return with_ratios(block, grid.models, grid.chips, chip_ratio=ratio, model_ratio=ratio)

