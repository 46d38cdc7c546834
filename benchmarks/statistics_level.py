"""Are the gap's statistics right? Data with a known effect: intervals must cover 95 % +- 2, tests hold their level.

For each statistic and sample size, `--trials` sets of numbers are drawn and judged. Limits: an interval of a mean, of
a positive mean or of paired shares covers the truth in 93 to 97 of 100; a test (paired t, McNemar, MLPerf's rule,
Holm's family of gradient norms as the train level uses it) accuses equal sides in at most 6 of 100 (5 and the
simulation's own error). McNemar is exact, so it may accuse far fewer. Heavy tails (a log-normal with sigma 1.5) are
shown and held to nothing: no interval of a mean from so few is right there.

`python -m benchmarks.statistics_level [--trials 10000]` appends rows to results/cpu.jsonl, one JSON object last.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator

import numpy as np

from anychip.gap import statistics

from .rows import append, row

COVER, LEVEL = (0.93, 0.97), 0.06
Draw = np.random.Generator


def coverages(draw: Draw, trials: int) -> Iterator[tuple[str, float, bool]]:
    """Yield (what, share of intervals that hold the truth, whether it is held to the limit)."""
    for n in (3, 30, 300, 3000):
        values = draw.normal(2.0, 3.0, (trials, n))
        yield f"mean of {n} normal", _covered(map(statistics.mean, values), 2.0), True
    for n, sigma in ((30, 0.5), (256, 0.5), (2048, 0.5), (256, 1.5), (2048, 1.5)):
        values = draw.lognormal(0.0, sigma, (trials, n))
        found = _covered(map(statistics.mean_of_positive, values), math.exp(sigma**2 / 2))
        yield f"positive mean of {n}, log-normal sigma {sigma}", found, sigma < 1
    for n, gap, changed in ((120, 0.0, 0.1), (1000, 0.0, 0.1), (1000, 0.03, 0.1), (10000, 0.01, 0.05)):
        counts = draw.multinomial(n, [(changed - gap) / 2, (changed + gap) / 2, 1 - changed], trials)
        found = _covered((statistics.mcnemar(int(a), int(b), n).difference for a, b, _ in counts), gap)
        yield f"paired shares of {n} questions, {100 * gap:g} points apart", found, True


def levels(draw: Draw, trials: int) -> Iterator[tuple[str, float, bool]]:
    """Yield (what, share of equal pairs that are accused, whether it is held to the limit)."""
    for n in (3, 5, 30, 300):
        noise = draw.normal(0, 0.2, (trials, n))
        yield f"paired t of {n}", float(np.mean([statistics.paired_t(0 * x, x).p <= 0.05 for x in noise])), True
    for n, changed in ((120, 0.1), (1000, 0.1), (10000, 0.05)):
        counts = draw.multinomial(n, [changed / 2, changed / 2, 1 - changed], trials)
        wrong = np.mean([statistics.mcnemar(int(a), int(b), n).p <= 0.05 for a, b, _ in counts])
        yield f"McNemar of {n} questions", float(wrong), True
    for seeds in (3, 5):
        runs = draw.normal(5, 1, (trials, 2, seeds))
        wrong = np.mean([not statistics.reference_convergence(a, b)[1] for a, b in runs])
        yield f"reference convergence, {seeds} runs a side", float(wrong), True
    for seeds, members in ((3, 160), (5, 160)):
        noise = draw.normal(0, 1e-3, (max(trials // 100, 100), seeds, members))
        wrong = np.mean([np.min(statistics.holm(statistics.paired_t_each(0 * x, x)[1])) < 0.05 for x in noise])
        yield f"Holm over {members} tensors, {seeds} seeds ({len(noise)} families)", float(wrong), len(noise) >= 1000


def power(draw: Draw, trials: int) -> Iterator[tuple[str, float]]:
    """Yield (what, share of real differences that are found): shown, and promised 80 % by `needed`."""
    for gap, changed in ((0.05, 0.1), (0.02, 0.1)):
        n = math.ceil(statistics.needed(gap, changed))
        counts = draw.multinomial(n, [(changed - gap) / 2, (changed + gap) / 2, 1 - changed], trials)
        seen = np.mean([statistics.mcnemar(int(a), int(b), n).p <= 0.05 for a, b, _ in counts])
        yield f"McNemar, {100 * gap:g} points with the {n} questions that are said to be needed", float(seen)


def _covered(intervals: Iterator[statistics.Interval], truth: float) -> float:
    return float(np.mean([i.low <= truth <= i.high for i in intervals]))


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    trials, draw = parser.parse_args().trials, np.random.default_rng(4)
    kinds: dict[str, Callable[[float], bool]] = {
        "covers": lambda share: COVER[0] <= share <= COVER[1], "accuses": lambda share: share <= LEVEL}
    rows, failed = [], []
    found = [("covers", *one) for one in coverages(draw, trials)] + [("accuses", *one) for one in levels(draw, trials)]
    for kind, what, share, held in [*found, *(("finds", *one, False) for one in power(draw, trials))]:
        fine = not held or kinds[kind](share)
        failed += [] if fine else [f"{what} {kind} {share:.3f}"]
        print(f"{'ok' if fine else 'WRONG':6}{what:75}{kind} {100 * share:5.1f} %{'' if held else '  (shown only)'}",
              flush=True)
        rows.append(row("statistics_level", f"{what} {kind}", [100 * share], "%", f"{trials} trials") | {
            "kind": "simulated"})
    append(rows)
    print(json.dumps({"trials": trials, "statistics": len(rows), "wrong": failed}))


if __name__ == "__main__":
    main()
