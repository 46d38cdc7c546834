"""What a run can and cannot tell: intervals of means, paired runs, paired questions, and how many would be needed.

Student's t for means of few independent values and for pairs; a log-normal form where values are positive and heavy-
tailed (KL by position); McNemar's exact test and the score interval of paired shares for questions answered by both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special  # scipy.stats' distributions are the same functions, a hundred times slower to call

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with its `LEVEL` confidence interval; equal ends where one value allows none."""

    value: float
    low: float
    high: float


def mean(values: np.ndarray) -> Interval:
    """Return the mean of independent values with Student's interval. Fewer than two values have no width: NaN ends."""
    value, n = float(np.mean(values)), len(values)
    if n < 2:
        return Interval(value, math.nan, math.nan)
    half = float(special.stdtrit(n - 1, 0.5 + LEVEL / 2) * np.std(values, ddof=1) / math.sqrt(n))
    return Interval(value, value - half, value + half)


def mean_of_positive(values: np.ndarray) -> Interval:
    """Return the mean of values that are never negative and often heavy-tailed, with an interval above 0.

    The interval is Student's, formed for the logarithm of the mean (delta method), so that it stays above 0 and
    leans to the right as such means do.
    """
    plain = mean(values)
    if not plain.value > 0 or math.isnan(plain.low):
        return plain
    factor = math.exp((plain.high - plain.value) / plain.value)
    return Interval(plain.value, plain.value / factor, plain.value * factor)


@dataclass(frozen=True)
class Test:
    """A test of 'no difference': the two-sided p value and the estimated difference with its interval."""

    difference: Interval
    p: float


def paired_t(a: np.ndarray, b: np.ndarray) -> Test:
    """Compare runs that share their seed and data order, b less a: Student's t on the differences.

    Equal pairs have p 1. Differences that are all the same and not 0 have p 0: the runs are deterministic.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    return Test(mean(b - a), float(paired_t_each(a[:, None], b[:, None])[1][0]))


def ratio_of_positive(a: np.ndarray, b: np.ndarray, *, paired: bool) -> Interval:
    """Return b over a of positive values (rates, times): the ratio of geometric means, with Student's interval.

    `paired`: value i of both was taken in one round, so that what slows a whole machine leaves the ratio alone;
    otherwise the two sides are independent (Welch's degrees of freedom). NaN ends where one side has one value.
    """
    x, y = np.log(np.asarray(a, float)), np.log(np.asarray(b, float))
    if paired:
        found = mean(y - x)
        return Interval(*(math.exp(end) for end in (found.value, found.low, found.high)))
    value = math.exp(y.mean() - x.mean())
    if min(len(x), len(y)) < 2:
        return Interval(value, math.nan, math.nan)
    parts = x.var(ddof=1) / len(x), y.var(ddof=1) / len(y)
    if not sum(parts):
        return Interval(value, value, value)
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(x) - 1) + parts[1] ** 2 / (len(y) - 1))
    factor = math.exp(float(special.stdtrit(freedom, 0.5 + LEVEL / 2)) * math.sqrt(sum(parts)))
    return Interval(value, value / factor, value * factor)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return p values adjusted for how many there are (Holm 1979): reject those below a level and at most that share
    of families is accused of anything wrongly. NaN (no test) stays and counts for nothing.
    """
    values = np.asarray(p_values, float)
    adjusted, known = values.copy(), np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    scaled = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0) if len(order) else scaled
    return adjusted


def paired_t_each(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compare many quantities of the same paired runs, b less a: [runs, quantities] -> mean difference, p of each.

    `paired_t` of each column; NaN p with one run. Adjust with `holm` before accusing one of them.
    """
    delta = np.asarray(b, float) - np.asarray(a, float)
    n, found = len(delta), delta.mean(0)
    if n < 2:
        return found, np.full(found.shape, math.nan)
    same = np.ptp(delta, 0) == 0
    spread = np.where(same, 1.0, delta.std(0, ddof=1)) / math.sqrt(n)
    return found, np.where(same, delta[0] == 0, 2 * special.stdtr(n - 1, -abs(found / spread)))


def reference_convergence(reference: np.ndarray, tested: np.ndarray, p: float = 0.05) -> tuple[float, bool]:
    """Return (limit, accepted): may the tested runs' mean loss be this high? One-sided two-sample Student t.

    As in MLPerf Training's reference-convergence rule (equal variances, p = 0.05), for losses: higher is worse.
    """
    n, m = len(reference), len(tested)
    pooled = ((n - 1) * np.var(reference, ddof=1) + (m - 1) * np.var(tested, ddof=1)) / (n + m - 2)
    margin = special.stdtrit(n + m - 2, 1 - p) * math.sqrt(pooled * (1 / n + 1 / m))
    limit = float(np.mean(reference) + margin)
    return limit, bool(np.mean(tested) <= limit)


def mcnemar(only_a: int, only_b: int, n: int) -> Test:
    """Compare two systems on the same `n` questions: `only_a` were right on a alone, `only_b` on b alone.

    Returns the difference of the shares right, b less a, with Tango's score interval, and McNemar's exact
    (binomial, two-sided) p. Raises ValueError where the counts do not fit.
    """
    if min(only_a, only_b) < 0 or only_a + only_b > n or n < 1:
        raise ValueError(f"{only_a} and {only_b} questions cannot be right on one side alone of {n}")
    changed = only_a + only_b
    p = min(1.0, 2 * float(special.bdtr(min(only_a, only_b), changed, 0.5)))
    low, high = (_tango(only_a, only_b, n, side) for side in (-1, 1))
    return Test(Interval((only_b - only_a) / n, low, high), p)


def _tango(only_a: int, only_b: int, n: int, side: int) -> float:
    """One end of Tango's score interval for a paired difference (Statistics in Medicine 17, 1998), by bisection."""
    z, start = special.ndtri(0.5 + LEVEL / 2), (only_b - only_a) / n
    inside, outside = start, float(side)
    for _ in range(60):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if abs(_score(only_a, only_b, n, middle)) <= z else (inside, middle)
    return inside


def _score(only_a: int, only_b: int, n: int, delta: float) -> float:
    b = -only_b - only_a + (2 * n - only_b + only_a) * delta
    c = -only_a * delta * (1 - delta)
    p = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    variance = n * (2 * p + delta * (1 - delta))
    gap = only_b - only_a - n * delta
    return 0.0 if gap == 0 else math.copysign(math.inf, gap) if variance <= 0 else gap / math.sqrt(variance)


def resolvable(n: int, changed_share: float, power: float = 0.8) -> float:
    """Return the smallest difference of two shares that `n` paired questions show with this power at level 0.05.

    `changed_share` is the share of questions that only one side gets right (Connor's formula, solved for the gap).
    """
    z = special.ndtri(0.975), special.ndtri(power)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if needed(middle, changed_share, power) <= n else (middle, high)
    return min(high, max(changed_share, sum(z) ** 2 / n))


def needed(difference: float, changed_share: float, power: float = 0.8) -> float:
    """Return how many paired questions show a difference of shares with this power at level 0.05 (Connor 1987)."""
    if difference <= 0:
        return math.inf
    changed = max(changed_share, difference)
    alpha, beta = special.ndtri(0.975), special.ndtri(power)
    return float(((alpha * math.sqrt(changed) + beta * math.sqrt(changed - difference**2)) / difference) ** 2)
