"""The train level: the same seeds, batches and order on both chips, paired by seed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..record import Kind, Quantity
from .bundle import Bundle
from .row import Row
from .statistics import Interval, Test, paired_t, reference_convergence

TAIL = 0.25  # share of the steps, at the end, whose mean loss stands for a run
FIRST_STEP = 1e-5  # relative difference of the first step's loss that fp32 explains: the same weights, one pass


@dataclass(frozen=True)
class Training:
    """Both chips' runs. `test` is the paired difference of the runs' last losses, b less a, over the seeds.

    `losses` are [seeds][steps]; `limit` is the loss up to which b would be accepted by MLPerf's rule on a's runs (NaN
    with one seed); `norms` is the largest relative difference of a tensor's gradient norm at the first step, with
    its name; `load` the largest difference of an expert's share in any router.
    """

    seeds: int
    steps: int
    losses: tuple[list[list[float]], list[list[float]]]
    first: float
    test: Test
    limit: float
    accepted: bool | None
    norms: tuple[str, float]
    load: float
    kind: Kind

    def gap(self) -> Quantity:
        """Return the paired difference as a quantity."""
        d = self.test.difference
        known = not math.isnan(d.low)
        return Quantity(d.value, "nats/token", self.kind, d.low if known else None, d.high if known else None)


def judge_training(a: Bundle, b: Bundle, kind: Kind) -> Training:
    """Compare two chips' training runs, seed by seed."""
    runs = [np.array([run["loss"] for run in bundle.tables["training"]]) for bundle in (a, b)]
    steps = runs[0].shape[1]
    last = [run[:, -max(1, round(TAIL * steps)) :].mean(1) for run in runs]
    first = float(np.max(np.abs(runs[1][:, 0] - runs[0][:, 0]) / runs[0][:, 0]))
    limit, accepted = (math.nan, None) if len(last[0]) < 2 else reference_convergence(*last)
    return Training(len(runs[0]), steps, (runs[0].tolist(), runs[1].tolist()), first, paired_t(*last), limit, accepted,
                    _norms(a, b), _load(a, b), kind)


def training_rows(a: Bundle, b: Bundle, training: Training) -> list[Row]:
    """Return the training table: the first step, the last losses, gradient norms, router load."""
    kinds = [Kind(bundle.about["numerics"]) for bundle in (a, b)]
    seeds, steps = training.seeds, training.steps

    def row(name: str, values: list[float], unit: str, note: str, gap: Quantity | None = None) -> Row:
        left, right = values
        return Row(name, Quantity(left, unit, kinds[0]), Quantity(right, unit, kinds[1]),
                   gap or Quantity(right - left, unit, training.kind), note)

    first = [float(np.mean([run[0] for run in side])) for side in training.losses]
    norms = [float(np.mean([run["grad_norm"][0] for run in bundle.tables["training"]])) for bundle in (a, b)]
    largest = float(np.max(np.abs(np.subtract(training.losses[1], training.losses[0]))))
    name, size = training.norms
    return [
        row("loss of the first step", first, "nats/token", f"mean of {seeds} seeds; same weights, same batches"),
        row(f"loss after {steps} steps", [mean_loss(training, side).value for side in (0, 1)], "nats/token",
            f"mean of each run's last steps, {seeds} seeds; the gap is paired by seed", training.gap()),
        row("gradient norm of the first step", norms, "", "before clipping"),
        Row("largest loss difference", None, None, Quantity(largest, "nats/token", training.kind),
            f"over {steps} steps and {seeds} seeds"),
        Row("largest difference of a tensor's gradient norm", None, None, Quantity(100 * size, "%", training.kind),
            f"first step, relative; {name}"),
        Row("largest difference of an expert's load", None, None, Quantity(100 * training.load, "%", training.kind),
            f"after {steps} steps, of a router's token-expert pairs"),
    ]


def spread(training: Training) -> float:
    """Return the standard deviation of a's last losses over its seeds: what another seed alone would do."""
    runs = np.array(training.losses[0])
    last = runs[:, -max(1, round(TAIL * runs.shape[1])) :].mean(1)
    return float(np.std(last, ddof=1)) if len(last) > 1 else math.nan


def mean_loss(training: Training, side: int) -> Interval:
    """Return a chip's mean last loss over the seeds (no interval: seeds are paired, see `test`)."""
    runs = np.array(training.losses[side])
    value = float(runs[:, -max(1, round(TAIL * runs.shape[1])) :].mean())
    return Interval(value, math.nan, math.nan)


def _norms(a: Bundle, b: Bundle) -> tuple[str, float]:
    left, right = a.tables["grad_norms"], b.tables["grad_norms"]
    gaps = {name: abs(right.get(name, 0.0) - norm) / norm if norm else 0.0 for name, norm in left.items()}
    worst = max(gaps, key=lambda name: gaps[name])
    return worst, gaps[worst]


def _load(a: Bundle, b: Bundle) -> float:
    pairs = [(a.tables["router_load"][name], b.tables["router_load"][name]) for name in a.tables["router_load"]]
    return max((float(np.max(np.abs(np.subtract(*pair)))) for pair in pairs), default=0.0)
