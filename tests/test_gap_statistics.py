"""The statistics hold what they state: coverage, level, and the counts that a difference needs."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from anychip.gap import statistics

TRIALS = 10_000


def covered(intervals, truth: float) -> float:
    return float(np.mean([i.low <= truth <= i.high for i in intervals]))


@pytest.mark.parametrize("n", [3, 5, 30])
def test_intervals_of_a_mean_cover_95_of_100(n: int) -> None:
    values = np.random.default_rng(n).normal(2.0, 3.0, (TRIALS, n))
    assert abs(covered(map(statistics.mean, values), 2.0) - 0.95) < 0.01


@pytest.mark.parametrize("n", [30, 256])
def test_intervals_of_positive_means_cover_about_95_and_stay_above_0(n: int) -> None:
    values = np.random.default_rng(n).lognormal(0.0, 0.5, (TRIALS, n))
    found = [statistics.mean_of_positive(row) for row in values]
    assert abs(covered(found, math.exp(0.125)) - 0.95) < 0.02 and min(i.low for i in found) > 0


@pytest.mark.parametrize("n", [3, 5, 20])
def test_the_paired_test_holds_its_level(n: int) -> None:
    draw = np.random.default_rng(n)
    a, noise = draw.normal(5, 1, (TRIALS, n)), draw.normal(0, 0.2, (TRIALS, n))
    rejected = np.mean([statistics.paired_t(x, x + y).p <= 0.05 for x, y in zip(a, noise, strict=True)])
    assert abs(rejected - 0.05) < 0.01


def test_holm_accuses_a_family_without_a_difference_in_at_most_5_of_100() -> None:
    draw = np.random.default_rng(9)
    noise = draw.normal(0, 0.2, (800, 3, 40))  # families of 40 figures, 3 runs each
    wrong = np.mean([np.min(statistics.holm(statistics.paired_t_each(0 * x, x)[1])) < 0.05 for x in noise])
    assert wrong < 0.05 + 0.02
    adjusted = statistics.holm(np.array([0.01, np.nan, 0.04, 0.03]))
    assert adjusted == pytest.approx([0.03, np.nan, 0.06, 0.06], nan_ok=True)


@pytest.mark.parametrize(("n", "share"), [(60, 0.1), (120, 0.05), (400, 0.2)])
def test_mcnemar_holds_its_level_and_its_interval_covers(n: int, share: float) -> None:
    counts = np.random.default_rng(n).multinomial(n, [share / 2, share / 2, 1 - share], TRIALS // 5)
    tests = [statistics.mcnemar(int(a), int(b), n) for a, b, _ in counts]
    assert np.mean([t.p <= 0.05 for t in tests]) <= 0.05 + 0.01
    assert covered([t.difference for t in tests], 0.0) > 0.93


def test_mcnemars_interval_ends_where_the_likelihoods_score_is_1_96() -> None:
    """The ends by another way: the constrained likelihood maximised numerically, then the score statistic."""
    only_a, only_b, n = 1, 9, 44
    for end in (lambda d: (d.low, d.high))(statistics.mcnemar(only_a, only_b, n).difference):
        def unlikely(p: float, end: float = end) -> float:
            return -(only_a * math.log(p) + only_b * math.log(p + end) + (n - 10) * math.log(1 - 2 * p - end))

        low, high = max(0.0, -end) + 1e-12, (1 - end) / 2 - 1e-12
        p = optimize.minimize_scalar(unlikely, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
        score = (only_b - only_a - n * end) / math.sqrt(n * (2 * p + end - end**2))
        assert abs(score) == pytest.approx(stats.norm.ppf(0.975), abs=1e-3)


def test_reference_convergence_is_mlperfs_rule() -> None:
    """Mean 15.75, deviation 0.433, 2N-2=8 and N-2=3 runs: a margin of 0.54 epochs (training_rules, appendix)."""
    reference = stats.norm.ppf((np.arange(8) + 0.5) / 8)
    reference = 15.75 + 0.433 * (reference - reference.mean()) / reference.std(ddof=1)
    tested = np.array([-0.433, 0.0, 0.433]) + 15.75
    limit, accepted = statistics.reference_convergence(reference, tested)
    assert accepted and limit == pytest.approx(15.75 + 0.54, abs=0.01)


def test_as_many_questions_as_are_needed_resolve_the_difference() -> None:
    n = math.ceil(statistics.needed(0.05, 0.1))
    assert statistics.resolvable(n, 0.1) == pytest.approx(0.05, abs=1e-3)
    assert statistics.needed(0.01, 0.1) > 20 * n


def test_a_stated_power_is_reached() -> None:
    n, gap, changed = math.ceil(statistics.needed(0.08, 0.2)), 0.08, 0.2
    shares = [(changed - gap) / 2, (changed + gap) / 2, 1 - changed]
    counts = np.random.default_rng(1).multinomial(n, shares, 2000)
    assert np.mean([statistics.mcnemar(int(a), int(b), n).p <= 0.05 for a, b, _ in counts]) > 0.75


@pytest.mark.parametrize("counts", [(-1, 0, 5), (3, 3, 5), (0, 0, 0)])
def test_counts_that_do_not_fit_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="cannot be right"):
        statistics.mcnemar(*counts)
