"""What each guessed constant is worth: times at both ends of its range, over published rows and over the suite."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .compile import compile_kernel
from .die import Launched, record
from .rates import Guess, load_rates

CHIP = "ascend910b"


@dataclass(frozen=True)
class Timed:
    """A recorded launch, and whether its benchmark repeats on the same tensors."""

    launched: Launched
    warm: bool = False


@dataclass(frozen=True)
class Sensitivity:
    """Times with one guess at its low and at its high end, over the times as they are.

    rows, suite: the median over the published rows and over the suite's examples; most: the example that moves most.
    """

    guess: Guess
    rows: tuple[float, float]
    suite: tuple[float, float]
    most_kernel: str
    most: tuple[float, float]


def suite_launches() -> list[Timed]:
    """Record the first example of every kernel of the suite on a 910B."""
    from ..kernels.example import signature
    from ..kernels.suite import suite

    found = []
    for kernel in suite():
        launch = kernel.launch(kernel.examples[0])
        compiled = compile_kernel(kernel.fn, signature(launch), launch.constants, CHIP)
        found.append(Timed(record(compiled, launch.args, launch.grid)))
    return found


def sensitivities_of(rows: Sequence[Timed], suite: Sequence[Timed]) -> list[Sensitivity]:
    """Return every guess of the launches' chips, the one that moves the suite most first."""
    guesses: dict[str, Guess] = {}
    for timed in (*rows, *suite):
        guesses |= {guess.key: guess for guess in load_rates(timed.launched.target).guesses()}
    found = []
    for guess in guesses.values():
        of_rows, of_suite = [_moved(t, guess) for t in rows], [_moved(t, guess) for t in suite]
        most = max(range(len(suite)), key=lambda i: abs(of_suite[i][1] - of_suite[i][0]))
        found.append(Sensitivity(guess, _median(of_rows), _median(of_suite), suite[most].launched.kernel,
                                 of_suite[most]))
    return sorted(found, key=lambda s: -abs(s.most[1] - s.most[0]))


def _moved(timed: Timed, guess: Guess) -> tuple[float, float]:
    rates = load_rates(timed.launched.target)
    now = timed.launched.time(rates, warm=timed.warm).time_s
    low, high = (timed.launched.time(rates.changed(guess.key, end), warm=timed.warm).time_s / now
                 for end in (guess.low, guess.high))
    return low, high


def _median(ends: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return statistics.median(low for low, _ in ends), statistics.median(high for _, high in ends)
