"""Speed and memory of two bundles side by side: simulated for the published model, measured where a chip is here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..record import Kind, Quantity
from .bundle import Bundle
from .planned_rows import planned_rows
from .row import Row
from .shortfall import Cause, causes, joined, reached

TOP = 10  # costliest ops that are shown


@dataclass(frozen=True)
class Step:
    """One timed step of b: `ops` joined with a's by op and shapes, what share of the possible it reaches, and why not
    more (see `shortfall`)."""

    name: str
    kind: Kind
    ops: list[dict[str, Any]]
    reached: Quantity
    causes: list[Cause]


def speed_rows(a: Bundle, b: Bundle) -> list[Row]:
    """Simulated times of the published model; measured times of the small one where the chip is here."""
    left, right = a.tables["speed"], b.tables["speed"]
    model = left["model"]
    found = [_times(f"{model}: training", "tokens/s", (left["train"], right["train"]), inverse=True,
                    note=f"forward and backward over {left['train']['tokens']} tokens" if left["train"] else "")]
    for i, row in enumerate(left["decode"] or right["decode"]):
        pair = tuple(side["decode"][i] if side["decode"] else None for side in (left, right))
        found.append(_times(f"{model}: decode step at {row['context']} tokens", "ms", pair, inverse=False,
                            note="one sequence"))
    if left["facts"] and right["facts"]:
        found += planned_rows(model, (left["facts"]["name"], right["facts"]["name"]))
    sides = [_measured(bundle) for bundle in (a, b)]
    for name in sorted({*sides[0], *sides[1]}):
        found.append(Row(f"{a.about['model']}: {name}", sides[0].get(name), sides[1].get(name), None,
                         "median of the run; in brackets its smallest and largest value"))
    return found


def _times(name: str, unit: str, pair: tuple[Any, ...], *, inverse: bool, note: str) -> Row:
    sides = []
    for side in pair:
        value = None if side is None else side["tokens"] / side["time_s"] if inverse else 1e3 * side["time_s"]
        sides.append(Quantity(value, unit, Kind.SIMULATED))
    ratio = None
    if sides[0].value and sides[1].value:
        ratio = Quantity(sides[1].value / sides[0].value, "x", Kind.SIMULATED)
    return Row(name, sides[0], sides[1], ratio, note)


def _measured(bundle: Bundle) -> dict[str, Quantity]:
    """Median times of the small model on a real chip; a virtual chip's wall time means nothing and is left out."""
    if bundle.about["timing"] != Kind.MEASURED.value:
        return {}
    texts, runs = bundle.tables.get("generation", []), bundle.tables.get("training", [])
    decode = torch.tensor([1e3 * row["token_s"] for row in texts if row["token_s"]]).double()
    rates = torch.tensor([run["tokens"] / time for run in runs for time in run["time_s"][1:]])
    found = (("decode step", "ms", decode), ("training step", "tokens/s", rates.double()))
    return {name: Quantity(float(v.median()), unit, Kind.MEASURED, float(v.min()), float(v.max()))
            for name, unit, v in found if len(v)}


def costliest(bundle: Bundle, *, decode: bool = False) -> list[dict[str, Any]]:
    """Return the costliest ops of the training step, or of a decode step at the longest context."""
    speed = bundle.tables["speed"]
    if decode:
        return speed["decode"][-1]["groups"][:TOP] if speed["decode"] else []
    return [] if speed["train"] is None else speed["train"]["groups"][:TOP]


def timed_steps(a: Bundle, b: Bundle) -> list[Step]:
    """Every step that b timed: its ops joined with a's by op and shapes, and the causes of what it lacks."""
    sides = [_timed(bundle) for bundle in (a, b)]
    measured = sides[1].keys() - {"training step", "decode step"}
    return [Step(name, Kind.MEASURED if name in measured else Kind.SIMULATED, joined(sides[0].get(name, ()), rows),
                 reached(rows, Kind.MEASURED if name in measured else Kind.SIMULATED),
                 causes(rows, sides[0].get(name, ())))
            for name, rows in sides[1].items()]


def _timed(bundle: Bundle) -> dict[str, list[dict[str, Any]]]:
    """Step -> its (op, shapes) groups: simulated ones of the published model, measured ones of the small model."""
    speed, found = bundle.tables["speed"], {}
    if speed["train"] is not None:
        found = {"training step": speed["train"]["groups"], "decode step": speed["decode"][-1]["groups"]}
    measured, model = speed["measured"] or {}, bundle.about["model"]
    return found | {f"{model}: {name}": one["groups"] for name, one in measured.items()}


def memory_rows(a: Bundle, b: Bundle) -> list[Row]:
    """Memory of the published model on both chips."""
    left, right = (bundle.tables["speed"]["memory"] for bundle in (a, b))
    model = a.tables["speed"]["model"]

    def row(name: str, values: tuple[float | None, float | None], unit: str, scale: float = 1.0) -> Row:
        sides = [Quantity(None if v is None else v / scale, unit, Kind.SIMULATED) for v in values]
        return Row(name, sides[0], sides[1])

    rows = [row(f"{model}: weights", (left["weights_bytes"], right["weights_bytes"]), "GB", 1e9)]
    rows += [row(f"{model}: cache of one sequence of {context} tokens",
                 (size, right["cache_bytes"][context]), "GB", 1e9) for context, size in left["cache_bytes"].items()]
    rows.append(Row("memory of the chip", _chip_memory(a), _chip_memory(b)))
    rows.append(row("chips that hold the weights", (left["chips_for_weights"], right["chips_for_weights"]), ""))
    return rows


def _chip_memory(bundle: Bundle) -> Quantity:
    """The chip's own memory: published in its facts, or counted where this machine's limits were measured."""
    speed = bundle.tables["speed"]
    size, limits = speed["memory"]["chip_bytes"], speed["facts"]
    kind = Kind.MEASURED if limits and limits["name"] == "cpu" else Kind.PUBLISHED
    return Quantity(None if size is None else size / 1e9, "GB", kind)
