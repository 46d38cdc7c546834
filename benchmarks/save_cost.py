"""What does a save cost a run, as a share of its steps' time at one save every 50 steps?

Trains `tiny` with the full recipe (fp32, one process) and saves every 2 x `--window` steps: the steps from a save on
(the copy in the step, the writing beside those after it) are held against the quiet ones before it, by the wall clock
and by this process's own CPU time, which a busy machine disturbs less. Limit: 3 % of the time of 50 steps.

    python -m benchmarks.save_cost [--saves 6] [--window 6] [--preset tiny]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from anychip.chips import open_chip
from anychip.train import Care, StepResult, TrainSettings, train
from anychip.train.folder import EVENTS, METRICS, read_lines
from anychip.train.make import make_run

from .rows import append, row

LIMIT, EVERY = 0.03, 50
BATCH, LENGTH = 2, 512


def clocks(preset: str, window: int, saves: int, out: Path) -> list[tuple[float, float]]:
    """Train; return wall and CPU seconds at the end of every step."""
    steps = 2 * window * (saves + 1)
    run = make_run(TrainSettings(steps, BATCH, LENGTH, warmup_steps=2), preset=preset)
    found: list[tuple[float, float]] = []

    def note(result: StepResult) -> None:
        found.append((time.time(), time.process_time()))

    train(run, open_chip("cpu"), out, care=Care(save_every=2 * window), report=note)
    return found


def costs(found: list[tuple[float, float]], window: int, clock: int) -> tuple[list[float], list[float]]:
    """Return each save's cost, s, and the quiet steps' seconds each: the last window before a save and the one from
    the save's own step on are compared."""
    cost, quiet_steps = [], []
    for save in range(4 * window - 1, len(found) - window, 2 * window):  # the first save makes the buffers
        quiet = found[save - 1][clock] - found[save - 1 - window][clock]
        cost.append(found[save - 1 + window][clock] - found[save - 1][clock] - quiet)
        quiet_steps.append(quiet / window)
    return cost, quiet_steps


def written_within(out: Path, found: list[tuple[float, float]], window: int) -> bool:
    """Tell whether every save that was measured was whole on the disk before its window ended."""
    saved = {event["step"]: event["time"] for event in read_lines(out / EVENTS) if event["event"] == "saved"}
    return all(time <= found[step - 2 + window][0] for step, time in saved.items() if step + window <= len(found))


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saves", type=int, default=6)
    parser.add_argument("--window", type=int, default=6)
    parser.add_argument("--preset", default="tiny")
    asked = parser.parse_args()
    shape = f"{asked.preset}, {BATCH} x {LENGTH} tokens a step, {torch.get_num_threads()} threads"
    report: dict[str, object] = {"shape": shape, "limit": LIMIT, "every": EVERY}
    with tempfile.TemporaryDirectory(prefix="save-cost-") as folder:
        out = Path(folder) / "run"
        found = clocks(asked.preset, asked.window, asked.saves, out)
        report["written_within_window"] = written_within(out, found, asked.window)
        in_step = [line["phases_s"]["save"] for line in read_lines(out / METRICS) if "save" in line["phases_s"]]
        report["bytes"] = sum(path.stat().st_size for path in sorted(out.glob("step-*"))[-1].glob("*.bin"))
    for clock, name in enumerate(("wall", "cpu")):
        cost, step = costs(found, asked.window, clock)
        share = [c / (EVERY * statistics.median(step)) for c in cost]
        append([row("save_cost", f"a save's {name} time", cost, "s", shape),
                row("save_cost", f"share of {EVERY} steps' {name} time", share, "", shape)])
        report[name] = {"save_s": statistics.median(cost), "step_s": statistics.median(step), "n": len(cost),
                        "share": statistics.median(share), "range": [min(share), max(share)],
                        "holds": statistics.median(share) <= LIMIT}
    report["in_step_s"] = statistics.median(in_step[1:])
    print(json.dumps(report))


if __name__ == "__main__":
    main()
