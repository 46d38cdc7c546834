"""Does a run go on with the same curve on another number of ranks?

Trains `nano` on the shipped corpus on 4 ranks, ends it in the middle, goes on with 2, ends it again, finishes with 3
(fp32, gloo, saves through torch.distributed.checkpoint; other axes with `--layouts`). Limit: every loss within 1e-5
relative of the run that one rank takes through without a break.

    python -m benchmarks.resume_ranks [--steps 30] [--layouts "shard=4 shard=2 shard=3"]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from anychip.chips import open_chip
from anychip.model import Transformer
from anychip.parallel.degrees import Degrees
from anychip.parallel.launch import launch
from anychip.parallel.ranks import Ranks as Spread
from anychip.parallel.world import join
from anychip.train import Care, StepResult, TrainSettings, read_losses, train
from anychip.train.care import Ranks
from anychip.train.make import make_run

from .parallel_losses import degrees_of
from .rows import append, row

LIMIT = 1e-5
ENDED = 9  # the exit code of a rank that ends itself on purpose


def rank(settings: TrainSettings, out: Path, degrees: Degrees, last: int) -> None:
    """Be one rank of a run that ends, in the middle of everything, after step `last`."""
    torch.set_num_threads(1)
    chip = open_chip("cpu")
    world = join(chip.device, degrees)

    def place(model: Transformer, chosen: TrainSettings) -> Spread:
        return Spread(model, world, chosen)

    def end(result: StepResult) -> None:
        if result.step == last:
            os._exit(ENDED)

    ranks = Ranks(dist.get_rank(), dist.new_group(backend="gloo"), place)
    train(make_run(settings), chip, out, care=Care(save_every=3, check_every=0), ranks=ranks, report=end)


def run(settings: TrainSettings, out: Path, layouts: list[str]) -> list[float]:
    """Train in one layout after the other, each for its share of the steps and two more; return the curve."""
    for at, layout in enumerate(layouts):
        degrees, last = degrees_of(layout), (at + 1) * settings.steps // len(layouts) + 1
        try:
            launch(degrees.num_ranks, rank, (settings, out, degrees, last))
        except ChildFailedError as error:
            if error.get_first_failure()[1].exitcode != ENDED:
                raise
    return [line["loss"] for line in read_losses(out)]


def main() -> None:
    """Run both, print the JSON object, and keep a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--layouts", default="shard=4 shard=2 shard=3")
    asked = parser.parse_args()
    steps, layouts = asked.steps, asked.layouts.split()
    settings = TrainSettings(steps, batch=12, length=64, micro_batches=12, warmup_steps=min(50, steps))
    with tempfile.TemporaryDirectory() as folder:
        whole = run(settings, Path(folder) / "whole", ["one"])
        broken = run(settings, Path(folder) / "broken", layouts)
    apart = [abs(a - b) / abs(b) for a, b in zip(broken, whole, strict=True)]
    append([row("resume_ranks", f"relative difference of each loss, {' -> '.join(layouts)} from one rank", apart, "",
                f"nano, {steps} steps of 12 x 64 tokens")])
    print(json.dumps({"steps": steps, "layouts": layouts, "limit": LIMIT, "worst": max(apart),
                      "bitwise_up_to_step": next((at for at, d in enumerate(apart) if d), steps),
                      "holds": max(apart) <= LIMIT}))


if __name__ == "__main__":
    main()
