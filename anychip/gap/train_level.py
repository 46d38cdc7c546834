"""The train level: the same seeds, batches and order on both chips, paired by seed.

The first step is judged before the curves: the same weights and batch, so fp32 leaves it next to nothing. Gradient
norms by tensor and router loads by expert are many figures of few runs: Student's t on the pairs, Holm's correction
over all of them, and a gap only where a difference is also larger than the format or a near tie explains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..record import Kind, Quantity
from .bundle import Bundle
from .proof import EXPLAINED, FLOORS, GRADIENT
from .row import Row
from .statistics import LEVEL, Interval, Test, holm, paired_t, paired_t_each, reference_convergence

TAIL = 0.25  # share of the steps, at the end, whose mean loss stands for a run
FIRST_STEP = 1e-5  # relative difference of the first step's loss that fp32 explains: the same weights, one pass
LOAD = 0.01  # share of a router's token-expert pairs that near ties may move from or to an expert


@dataclass(frozen=True)
class Member:
    """One figure of a family: its name, the mean paired difference over the seeds, and its p after Holm."""

    name: str
    difference: float
    p: float


@dataclass(frozen=True)
class Family:
    """Many figures of the same paired runs. `largest` by size; `gaps` are those that the test accuses, worst first.

    A gap needs an adjusted p below 0.05 and a difference above `allowed`. `tested` counts the figures.
    """

    tested: int
    allowed: float
    largest: Member
    gaps: tuple[Member, ...] = ()


@dataclass(frozen=True)
class Training:
    """Both chips' runs. `test` is the paired difference of the runs' last losses, b less a, over the seeds.

    `losses` are [seeds][steps]; `limit` is the loss up to which b would be accepted by MLPerf's rule on a's runs (NaN
    with one seed). `first` is the largest relative difference of a first step's loss over the seeds, `allowed` what the
    coarser format explains of it. `norms` and `load` are the tests of gradient norms and of router loads.
    """

    seeds: int
    steps: int
    losses: tuple[list[list[float]], list[list[float]]]
    first: float
    test: Test
    limit: float
    accepted: bool | None
    norms: Family
    load: Family
    kind: Kind
    allowed: float = FIRST_STEP

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
                    _norms(a, b), _load(a, b), kind, _first_allowed(a, b))


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
    equal = sum(left[0] == right[0] for left, right in zip(*training.losses, strict=True))
    return [
        row("loss of the first step", first, "nats/token",
            f"mean of {seeds} seeds; same weights, same batches; equal bit by bit in {equal} of {seeds}"),
        row(f"loss after {steps} steps", [mean_loss(training, side).value for side in (0, 1)], "nats/token",
            f"mean of each run's last steps, {seeds} seeds; the gap is paired by seed", training.gap()),
        row("gradient norm of the first step", norms, "", "before clipping"),
        Row("largest loss difference", None, None, Quantity(largest, "nats/token", training.kind),
            f"over {steps} steps and {seeds} seeds"),
        _family_row("largest difference of a tensor's gradient norm", training.norms, training,
                    "first step, relative to both"),
        _family_row("largest difference of an expert's load", training.load, training,
                    f"after {steps} steps, of a router's token-expert pairs"),
    ]


def _family_row(name: str, family: Family, training: Training, what: str) -> Row:
    p = "no test with one seed" if math.isnan(family.largest.p) else f"p {family.largest.p:.2g} after Holm"
    return Row(name, None, None, Quantity(100 * abs(family.largest.difference), "%", training.kind),
               f"{what}, mean of {training.seeds} seeds; {family.largest.name}; {p}; {len(family.gaps)} of "
               f"{family.tested} differ")


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


def _first_allowed(a: Bundle, b: Bundle) -> float:
    formats = [EXPLAINED[bundle.about["precision"]] for bundle in (a, b)]
    return max(FIRST_STEP, *formats)


def _norms(a: Bundle, b: Bundle) -> Family:
    """The first step's gradient norm of every tensor, as the difference relative to the mean of both: from -2 to 2.

    Sums that cancel (mHC's scales; the HC head while its streams are equal, whose gradient is 0 but for rounding) have
    no digits of their own. So a difference is never taken relative to less than what the format moves of the whole
    gradient; the guided gradients judge such tensors by themselves.
    """
    names = list(a.tables["training"][0]["grad_norms"])
    left, right = (np.array([[run["grad_norms"].get(name, 0.0) for name in names] for run in bundle.tables["training"]])
                   for bundle in (a, b))
    explained = max(EXPLAINED[bundle.about["precision"]] for bundle in (a, b))
    whole = np.sqrt((left**2 + right**2).sum(1, keepdims=True) / 2)
    middle = np.maximum(np.maximum((left + right) / 2, explained * whole), np.finfo(float).tiny)
    return _family(names, left / middle, right / middle, max(GRADIENT, FLOORS * explained))


def _load(a: Bundle, b: Bundle) -> Family:
    """Each expert's share of its router's pairs."""
    first = a.tables["training"][0]["router_load"]
    names = [f"{router} expert {i}" for router, shares in first.items() for i in range(len(shares))]
    left, right = (np.array([[share for router in first for share in run["router_load"][router]]
                             for run in bundle.tables["training"]]) for bundle in (a, b))
    return _family(names, left, right, LOAD)


def _family(names: list[str], left: np.ndarray, right: np.ndarray, allowed: float) -> Family:
    """Test every column of [runs, figures]; a figure that is not finite is a gap whatever its p."""
    difference, p = paired_t_each(left, right)
    members = [Member(*row) for row in zip(names, difference.tolist(), holm(p).tolist(), strict=True)]
    if not members:
        return Family(0, allowed, Member("none", 0.0, math.nan))

    def size(member: Member) -> float:
        return math.inf if math.isnan(member.difference) else abs(member.difference)

    members.sort(key=size, reverse=True)
    gaps = [m for m in members if math.isnan(m.difference) or (m.p < 1 - LEVEL and size(m) > allowed)]
    return Family(len(members), allowed, members[0], tuple(gaps))
