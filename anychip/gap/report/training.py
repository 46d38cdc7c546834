"""The verdict on training: the first step before the curves, then gradient norms and router loads, tested."""

from __future__ import annotations

import math

from ...record import Quantity
from ..compare import Comparison
from ..statistics import LEVEL
from ..train_level import Family, Training, spread
from .marks import Mark, Verdict
from .words import number

_NAMED = 3  # figures of a family that are named


def training_verdicts(comparison: Comparison) -> list[Verdict]:
    """Return the lines of the train level: first step, losses, gradient norms, router load."""
    train = comparison.train
    assert train is not None
    return [_first(train), _losses(train),
            _family("gradient norms", "of the first step, relative", train.norms, train),
            _family("router load", f"after {train.steps} steps, of a router's pairs", train.load, train)]


def _first(train: Training) -> Verdict:
    """The same weights and the same batch: nothing can have built up, so what departs here departs everywhere."""
    gap = Quantity(100 * train.first, "%", train.kind)
    said = ("the first step's loss, same weights and batch, is apart by at most ", gap, f" over {train.seeds} seeds")
    if train.first == 0:
        return Verdict(Mark.SAME, "first step", (*said, ": equal bit by bit"))
    bound = f"; the format explains {number(100 * train.allowed)} %"
    if train.first <= train.allowed:
        return Verdict(Mark.NOISE, "first step", (*said, bound))
    return Verdict(Mark.GAP, "first step", (*said, bound, ": the curves after it say nothing more"))


def _losses(train: Training) -> Verdict:
    """Paired by seed. A gap is real where the interval of the difference leaves out 0 and is not format noise."""
    gap, other = train.gap(), Quantity(spread(train), "nats/token", train.kind)
    said = (f"loss after {train.steps} steps, B less A, paired over {train.seeds} seeds: ", gap)
    if not math.isfinite(train.test.difference.value):
        return Verdict(Mark.GAP, "training", said)
    if gap.value == 0 and train.first == 0:
        return Verdict(Mark.SAME, "training", said)
    tail = (f" (p {number(train.test.p)}); another seed alone moves it by ", other)
    if train.seeds < 2:
        return Verdict(Mark.FACT, "training", (*said, "; one seed allows no interval"))
    if train.test.p >= 1 - LEVEL:
        return Verdict(Mark.NOISE, "training", (*said, *tail))
    if abs(train.test.difference.value) <= spread(train):
        return Verdict(Mark.NOISE, "training", (*said, *tail, ": more"))
    return Verdict(Mark.GAP, "training", (*said, *tail))


def _family(about: str, what: str, family: Family, train: Training) -> Verdict:
    size = Quantity(100 * abs(family.largest.difference), "%", train.kind)
    said = (f"{family.tested} {about} {what}: largest mean difference ", size, f", {family.largest.name}")
    if family.gaps:
        named = ", ".join(member.name for member in family.gaps[:_NAMED])
        more = f" and {len(family.gaps) - _NAMED} more" if len(family.gaps) > _NAMED else ""
        return Verdict(Mark.GAP, about, (*said, f"; {len(family.gaps)} differ (Student's t over {train.seeds} seeds, "
                                         f"Holm over all, and above {number(100 * family.allowed)} %): {named}{more}"))
    if family.largest.difference == 0:
        return Verdict(Mark.SAME, about, (*said, ": equal"))
    if train.seeds < 2:
        return Verdict(Mark.FACT, about, (*said, "; one seed allows no test"))
    return Verdict(Mark.NOISE, about, (*said, f"; none differs (Student's t over {train.seeds} seeds, Holm over all, "
                                       f"and above {number(100 * family.allowed)} %)"))
