"""Gates for CI: `kl>0.001` fails a comparison whose KL divergence is larger."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import InputError, nearest
from .compare import Comparison
from .numerics import DISCRETE

_GATE = re.compile(r"\s*([a-z0-9_]+)\s*(>=|<=|>|<)\s*([-+0-9.eE]+)\s*")
_COMPARE: dict[str, Callable[[float, float], bool]] = {">": operator.gt, "<": operator.lt, ">=": operator.ge,
                                                        "<=": operator.le}
# Name -> what it is, with its unit.
METRICS = {
    "faults": "places where b is faulty, a count",
    "op": "largest relative rms difference of an op on equal inputs",
    "layer": "largest relative rms difference of the residual streams",
    "kl": "KL divergence of the next-token distributions, nats/token",
    "top1": "tokens for which both chips guess the same, percent",
    "loss": "teacher-forced loss, b less a, nats/token",
    "training": "loss after the training steps, b less a, paired over seeds, nats/token",
    "quality": "questions right, b less a, percentage points",
    "speed": "smallest ratio of b's simulated speed to a's",
}


@dataclass(frozen=True)
class Gate:
    """One condition that must not hold."""

    metric: str
    relation: str
    limit: float

    def fails(self, comparison: Comparison) -> str:
        """Return what is wrong, or an empty string. Raises InputError where the level was not compared."""
        value = metrics(comparison)[self.metric]
        if value is None:
            raise InputError(f"--fail-if {self.metric}: this comparison has no such figure; compared are the levels "
                             f"{', '.join(comparison.levels)}")
        wrong = math.isnan(value) or _COMPARE[self.relation](value, self.limit)
        return f"{self.metric} is {value:.6g}, and {self.relation} {self.limit:g} fails ({METRICS[self.metric]})" if (
            wrong) else ""


def parse_gates(texts: Sequence[str]) -> list[Gate]:
    """Read gates such as `kl>0.001`. Raises InputError for every one that cannot be read."""
    gates, problems = [], []
    for text in texts:
        match = _GATE.fullmatch(text)
        if match is None:
            problems.append(f"{text!r} is not NAME>NUMBER (or <, >=, <=)")
        elif match[1] not in METRICS:
            problems.append(f"{match[1]!r} is no figure of a comparison.{nearest(match[1], METRICS)}")
        else:
            try:
                gates.append(Gate(match[1], match[2], float(match[3])))
            except ValueError:
                problems.append(f"{match[3]!r} in {text!r} is not a number")
    if problems:
        raise InputError(f"--fail-if: {'; '.join(problems)}. Figures: {', '.join(METRICS)}")
    return gates


def metrics(comparison: Comparison) -> dict[str, float | None]:
    """Return every figure that a gate may name; None where its level was not compared or it is unknown."""
    found: dict[str, float | None] = dict.fromkeys(METRICS)
    rows = {row.name: None if row.gap is None else row.gap.value for row in comparison.model}
    found["kl"], found["top1"], found["loss"] = (
        rows.get(name) for name in ("KL divergence", "top-1 agreement", "loss (teacher-forced)"))
    if {"op", "layer"} & set(comparison.levels):
        found["faults"] = float(len(comparison.places))
    for name, table in (("op", comparison.ops), ("layer", comparison.layers)):
        values = [row.gap.value for row in table
                  if row.gap is not None and row.gap.value is not None and row.name not in DISCRETE]
        found[name] = max(values, key=lambda v: math.inf if math.isnan(v) else v) if values else None
    if comparison.train is not None:
        found["training"] = comparison.train.test.difference.value
    if comparison.quality is not None:
        found["quality"] = 100 * comparison.quality.test.difference.value
    ratios = [row.gap.value if row.a is not None and row.a.unit.endswith("/s") else 1 / row.gap.value
              for row in comparison.speed if row.gap is not None and row.gap.value]
    found["speed"] = min(ratios, default=None)
    return found
