"""Scores of systems on the same questions: shares, differences, and one as a percentage of the other.

The relative score is the ratio of two paired shares with the hybrid score interval of Bonett and Price (Journal of
Educational and Behavioral Statistics 31, 2006); a share alone has Wilson's interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import special

from ..errors import InputError
from ..gap.statistics import LEVEL, Interval, Test, mcnemar, needed, resolvable


def share(right: int, num: int, level: float = LEVEL) -> Interval:
    """Return right / num with Wilson's score interval."""
    low, high = _wilson(right, num, float(special.ndtri(0.5 + level / 2)))
    return Interval(right / num, low, high)


def ratio(both: int, only_a: int, only_b: int) -> Interval:
    """Return b's share right over a's, paired, with Bonett and Price's interval.

    `both` questions were right on both sides, the others on one. The upper end is infinite where a got none right.
    Raises InputError where neither side got any right: then no ratio exists.
    """
    a, b, num = both + only_a, both + only_b, both + only_a + only_b
    if num == 0:
        raise InputError("neither system got a single question right: one cannot be said in per cent of the other")
    z = float(special.ndtri(0.5 + LEVEL / 2))
    spread = math.sqrt((only_a + only_b + 2) / ((a + 1) * (b + 1)))
    parts = [math.sqrt((1 - (x + 1) / (num + 2)) / (x + 1)) for x in (a, b)]
    low_a, high_a = _wilson(a, num, z * spread / sum(parts))
    low_b, high_b = _wilson(b, num, z * spread / sum(parts))
    return Interval(b / a if a else math.inf, low_b / high_a, high_b / low_a if low_a > 0 else math.inf)


def _wilson(right: int, num: int, z: float) -> tuple[float, float]:
    middle = (right + z * z / 2) / (num + z * z)
    half = z * math.sqrt(right * (num - right) / num + z * z / 4) / (num + z * z)
    return max(middle - half, 0.0), min(middle + half, 1.0)


@dataclass(frozen=True)
class Relative:
    """System b against a on the same questions. `ratio` is b's score over a's (None where a got none right or both
    none), `difference` b's share less a's with McNemar's test, `seen` the smallest difference that so many questions
    show (power 0.8), `wanted` how many would show a difference of one point."""

    num: int
    shares: tuple[Interval, Interval]
    only: tuple[int, int]
    ratio: Interval | None
    difference: Test
    seen: float
    wanted: float


def compare(a: Sequence[bool], b: Sequence[bool]) -> Relative:
    """Compare two systems' answers to the same questions, in the same order. Raises InputError for none or unequal."""
    if len(a) != len(b) or not a:
        raise InputError(f"paired questions are needed; one system has {len(a)} answers, the other {len(b)}")
    both = sum(x and y for x, y in zip(a, b, strict=True))
    only_a, only_b, num = sum(a) - both, sum(b) - both, len(a)
    changed = (only_a + only_b + 1) / num  # one more than seen: with none at all the share is small, not zero
    return Relative(num, (share(sum(a), num), share(sum(b), num)), (only_a, only_b),
                    ratio(both, only_a, only_b) if sum(a) else None, mcnemar(only_a, only_b, num),
                    resolvable(num, changed), needed(0.01, changed))
