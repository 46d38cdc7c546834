"""Is a flipped bit in a rank's weights or gradients found within the stated interval, and is there no false alarm?

    python -m benchmarks.silent_corruption [--trials 100] [--clean 1000]

One process, a very small model, a random bit of a random number of a random tensor. Stated intervals: weights, at the
next update (one step), whatever the layout; a gradient that is wrong in every step from one on (a defective unit),
within `check_every` = 5 steps; a gradient that is wrong once, in a step that is checked (`check_every` = 1 checks
all); one of two copies of the model, at the next comparison. Limit: 95 of 100 each; no alarm in 1,000 clean checks.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from typing import Any

import torch

from anychip.chips import open_chip
from anychip.model import Transformer
from anychip.parallel import Batch, Losses, Objective, Routes, Single
from anychip.train import Trainer
from anychip.train.fault import Fault
from anychip.train.inject import flip_bit
from anychip.train.integrity import copies, gradients, outvoted, weights
from anychip.train.watch import Watched

from .kill_runs import make
from .rows import append, row


class Faulty(Single):
    """A process whose gradients are wrong while `flips` says so."""

    flips: Callable[[], bool] = staticmethod(lambda: False)
    seed = 0

    def step(self, batch: Batch, objective: Objective, routes: Routes | None = None) -> Losses:
        """As a sound process's, then one bit flips."""
        losses = super().step(batch, objective, routes)
        if self.flips():
            self.seed += 1
            flip_bit(gradients(self.model), self.seed)
        return losses


def trainer(check_every: int) -> tuple[Trainer, Watched, Faulty]:
    """Return a run that is checked."""
    run, chip = make(), open_chip("cpu:reference")
    model = Transformer(run.config, chip.ops())
    run.begin(model)
    faulty = Faulty(model)
    watched: Any = Watched(faulty, check_every=check_every)
    return Trainer(watched.model, chip, run.batches, run.settings, placement=watched), watched, faulty


def step(work: Trainer, watched: Watched) -> None:
    """Take one step as a run does."""
    watched.begin(work.steps_done)
    work.step()
    watched.end(check_copies=False)


def found(act: Callable[[], None]) -> bool:
    """Tell whether a fault was raised."""
    try:
        act()
    except Fault:
        return True
    return False


def flipped_weights(trials: int) -> int:
    """Flip a weight's bit between two updates; count what the next step finds. The bit is put back after each trial."""
    work, watched, _ = trainer(check_every=10**9)
    step(work, watched)
    count = 0
    for n in range(trials):
        floats = {name: w for name, w in weights(work.model).items() if w.is_floating_point()}
        flip_bit(floats, n)
        count += found(lambda: step(work, watched))
        flip_bit(floats, n)
    return count


def flipped_gradients(trials: int, check_every: int, *, for_ever: bool) -> int:
    """Flip a gradient's bit once (in a checked step) or in every computation from a random step on."""
    work, watched, faulty = trainer(check_every)
    count = 0
    for n in range(trials):
        faulty.seed, computed = 1000 * n, 0
        work.steps_done = random.Random(n).randrange(20) if for_ever else 0

        def flips() -> bool:
            nonlocal computed
            computed += 1
            return for_ever or computed == 1

        faulty.flips = flips  # type: ignore[method-assign,assignment]
        count += found(lambda: [step(work, watched) for _ in range(check_every)] and None)
        watched._left = {}
    return count


def flipped_copies(trials: int) -> int:
    """Flip a bit in one of two equal models; count how often the copies are found to differ."""
    work, _, _ = trainer(0)
    count = 0
    for n in range(trials):
        sound = copies(weights(work.model))
        floats = {name: w for name, w in weights(work.model).items() if w.is_floating_point()}
        flip_bit(floats, n)
        count += bool(outvoted([sound, copies(weights(work.model))]))
        flip_bit(floats, n)
    return count


def clean(checks: int) -> int:
    """Check `checks` sound steps; return the false alarms."""
    work, watched, _ = trainer(check_every=1)
    alarms = 0
    for _ in range(checks):
        work.steps_done %= 40
        alarms += found(lambda: step(work, watched))
    return alarms


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--clean", type=int, default=1000)
    parser.add_argument("--parts", default="")
    asked = parser.parse_args()
    parts = {"weights": lambda: flipped_weights(asked.trials), "copies": lambda: flipped_copies(asked.trials),
             "gradient_once_checked": lambda: flipped_gradients(asked.trials, 1, for_ever=False),
             "gradient_for_ever_within_5": lambda: flipped_gradients(asked.trials, 5, for_ever=True),
             "false_alarms": lambda: clean(asked.clean)}
    torch.set_num_threads(1)
    report: dict[str, Any] = {"trials": asked.trials, "clean_checks": asked.clean}
    for name in asked.parts.split(",") if asked.parts else parts:
        report[name] = parts[name]()
        n = asked.clean if name == "false_alarms" else asked.trials
        append([row("silent_corruption", name, [float(report[name])], "count", f"n={n}")])
        print(name, report[name], flush=True)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
