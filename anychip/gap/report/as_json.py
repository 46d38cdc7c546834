"""The gap report as JSON with stable keys; every number is finite, null (unknown) or a string such as "NaN"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from ...record import Kind, Quantity
from ..compare import Comparison
from ..compare_speed import Step
from ..quality import quality_row
from ..row import Row
from .marks import Verdict
from .verdict import headline, verdicts
from .words import coarser_format, command

SCHEMA = "anychip-gap-report/2"  # schema.json beside this file
TABLES = ("ops", "layers", "model", "noise", "training", "speed", "memory")


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Return the report as values that strict JSON can hold.

    A quantity is {value, unit, kind, low, high}; null is unknown, or a quantity that the row does not have. A
    number that is not finite is one of the strings "NaN", "Infinity", "-Infinity".
    """
    document = {
        "schema": SCHEMA,
        "chips": {"a": comparison.about_a, "b": comparison.about_b},
        "command": command(comparison),
        "headline": headline(comparison),
        "verdict": [verdict_json(line) for line in verdicts(comparison)],
        "explained": {"format": coarser_format(comparison), "value": comparison.explained,
                      "layers": comparison.explained_layers},
        "departs": {"op": comparison.departs_op, "layer": comparison.departs_layer},
        "faulty": [{"part": place.part, "kind": place.kind, "text": place.text, "size": place.size}
                   for place in comparison.places],
        "hard_cases": comparison.hard_cases,
        **{name: _rows(getattr(comparison, name)) for name in TABLES},
        "kl_by_position": {"unit": "nats/token", "kind": comparison.kind.value,
                           "positions": comparison.kl_positions, "values": comparison.kl_by_position},
        "losses": _losses(comparison),
        "quality": None if comparison.quality is None else quality_row(comparison.quality),
        "levels": comparison.levels,
        "generation": comparison.generation,
        "costliest": {side: {"training": _costliest(training), "decode": _costliest(decode)}
                      for side, training, decode in zip("ab", comparison.costliest, comparison.costliest_decode,
                                                        strict=True)},
        "steps": [_step(step) for step in comparison.steps],
        "limits": dict(zip("ab", comparison.limits, strict=True)),
    }
    found: dict[str, Any] = strict(document)
    return found


def _losses(comparison: Comparison) -> dict[str, Any] | None:
    """Losses of each chip, [seeds][steps]."""
    if comparison.train is None:
        return None
    abouts = comparison.about_a, comparison.about_b
    return {side: {"unit": "nats/token", "kind": about["numerics"], "values": values}
            for side, about, values in zip("ab", abouts, comparison.train.losses, strict=True)}


def quantity_json(quantity: Quantity | None) -> dict[str, Any] | None:
    """Return {value, unit, kind, low, high}; None for None."""
    if quantity is None:
        return None
    return {field.name: getattr(quantity, field.name) for field in fields(quantity)} | {"kind": quantity.kind.value}


def _rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [{"name": row.name, "a": quantity_json(row.a), "b": quantity_json(row.b), "gap": quantity_json(row.gap),
             "note": row.note} for row in rows]


def verdict_json(line: Verdict) -> dict[str, Any]:
    """Return one line of a verdict, its sentence and the quantities in it."""
    return {"mark": line.mark.value, "about": line.about, "text": line.text(),
            "quantities": [quantity_json(part) for part in line.parts if isinstance(part, Quantity)]}


def _costliest(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"op": row["op"], "shape": row["shape"], "calls": row["calls"], "source": row.get("source", "roofline"),
             "time": quantity_json(Quantity(row["time_s"], "s", Kind.SIMULATED)),
             "share": quantity_json(Quantity(100 * row["share"], "%", Kind.SIMULATED))} for row in rows]


def _step(step: Step) -> dict[str, Any]:
    return {"name": step.name, "kind": step.kind.value, "reached": quantity_json(step.reached), "ops": step.ops,
            "causes": [{"kind": cause.kind, "text": cause.text,
                        "lost": quantity_json(Quantity(cause.lost_s, "s", step.kind))} for cause in step.causes]}


def strict(value: Any) -> Any:
    """Copy nested values; numbers that JSON lacks become their names."""
    if isinstance(value, dict):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
