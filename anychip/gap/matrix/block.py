"""One figure of every model on every chip, with its ratios along both axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ...record import Kind, Quantity
from ..statistics import Interval
from .grid import Key

ORDER = (Kind.MEASURED, Kind.EMULATED, Kind.SIMULATED, Kind.PUBLISHED)


@dataclass(frozen=True)
class Block:
    """A figure by model and chip, and how it changes along each axis.

    `across_chips[m, c]` is chip c's value over the first chip's, of model m; `across_models[m, c]` model m's over the
    first model's, on chip c. `why` holds remarks on cells, and the reason where one has no value. `lower` tells that
    less is better; `said` ends a ratio in the verdict's sentences ("its cost") where it is part of them. `topic` is the
    report's section.
    """

    topic: str
    name: str
    unit: str
    note: str
    cells: dict[Key, Quantity]
    across_chips: dict[Key, Quantity] = field(default_factory=dict)
    across_models: dict[Key, Quantity] = field(default_factory=dict)
    why: dict[Key, str] = field(default_factory=dict)
    lower: bool = False
    said: str = ""


Ratio = Callable[[Key, Key], Quantity | None]  # of the second cell over the first


def with_ratios(block: Block, models: Sequence[str], chips: Sequence[str], *, chip_ratio: Ratio | None = None,
                model_ratio: Ratio | None = None) -> Block:
    """Fill in a block's ratios. By default both are plain quotients of its cells."""
    plain = quotient_of(block)
    for ratio, into, pairs in (
            (chip_ratio or plain, block.across_chips, [((m, chips[0]), (m, c)) for m in models for c in chips[1:]]),
            (model_ratio or plain, block.across_models, [((models[0], c), (m, c)) for m in models[1:] for c in chips])):
        for first, second in pairs:
            found = ratio(first, second) if first in block.cells and second in block.cells else None
            if found is not None:
                into[second] = found
    return block


def quotient_of(block: Block) -> Ratio:
    """Return the rule of a plain quotient: of two values whose interval, if any, is not one of chance."""
    def ratio(first: Key, second: Key) -> Quantity | None:
        a, b = block.cells[first], block.cells[second]
        return Quantity(b.value / a.value, "x", weaker(a.kind, b.kind)) if a.value and b.value is not None else None

    return ratio


def as_ratio(interval: Interval, kind: Kind, scale: float = 1.0, unit: str = "x") -> Quantity:
    """Return an interval as a quantity; NaN ends are none."""
    known = not math.isnan(interval.low)
    return Quantity(scale * interval.value, unit, kind, scale * interval.low if known else None,
                    scale * interval.high if known else None)


def weaker(*kinds: Kind) -> Kind:
    """Return the weakest of some kinds: what a figure made of them is."""
    return max(kinds, key=ORDER.index)


@dataclass(frozen=True)
class Line:
    """One line of a block's table: a value for each column, None where there is none, and a remark."""

    name: str
    values: list[Quantity | None]
    remark: str = ""
    ratio: bool = False


def columns(block: Block, chips: Sequence[str]) -> list[str]:
    """Return the columns of a block's table: the chips, then each further one against the first where it has ratios."""
    return [*chips, *(f"{chip} / {chips[0]}" for chip in _against(block, chips))]


def _against(block: Block, chips: Sequence[str]) -> list[str]:
    return [chip for chip in chips[1:] if any(key[1] == chip for key in block.across_chips)]


def lines(block: Block, models: Sequence[str], chips: Sequence[str]) -> list[Line]:
    """Return a block's table: a line a model, then a line for each further model against the first."""
    further = _against(block, chips)
    found = [Line(model, [block.cells.get((model, chip)) for chip in chips]
                  + [block.across_chips.get((model, chip)) for chip in further], _remark(block, model, chips))
             for model in models]
    against = [Line(f"{model} / {models[0]}", [block.across_models.get((model, chip)) for chip in chips]
                    + [None] * len(further), ratio=True) for model in models[1:]]
    return found + [line for line in against if any(value is not None for value in line.values)]


def _remark(block: Block, model: str, chips: Sequence[str]) -> str:
    said = {chip: block.why[model, chip] for chip in chips if (model, chip) in block.why}
    if len(set(said.values())) == 1 and len(said) == len(chips):
        return next(iter(said.values()))
    return "; ".join(f"{chip}: {text}" for chip, text in said.items())
