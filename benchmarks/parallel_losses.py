"""Is a loss curve the same on 1, 2 and 4 processes, for every parallel kind alone and every pair?

Trains `nano` on the shipped corpus (fp32, gloo, the CPU chip) in each layout and compares each curve with that of one
process that works on the same micro-batches and blocks of sequences. Limit: 1e-5 relative at every step; bitwise equal
where a layout runs twice. With `--folder` finished curves are kept, so a run that was cut off goes on.

    python -m benchmarks.parallel_losses [--steps 300] [--layouts shard=2,expert=2+context=2] [--folder F]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anychip.chips import open_chip
from anychip.config import load_config
from anychip.model import Transformer, initialize
from anychip.parallel.degrees import Degrees
from anychip.parallel.launch import launch
from anychip.parallel.ranks import Ranks
from anychip.parallel.world import join
from anychip.text import corpus
from anychip.text.batches import TokenBatches, encode_documents
from anychip.text.tokenizer import open_tokenizer
from anychip.train import Trainer, TrainSettings

from .rows import append, row

LIMIT = 1e-5
ALONE = ("shard", "expert", "pipeline", "context")
LAYOUTS = [
    "one", *(f"{axis}=2" for axis in ALONE), "shard=2,again",
    *(f"{a}=2+{b}=2" for at, a in enumerate(ALONE) for b in ALONE[at + 1 :]), *(f"{axis}=4" for axis in ALONE[:3]),
]


@dataclass(frozen=True)
class Curve:
    """A run's losses, and the digest of its last weights."""

    losses: list[float]
    weights: str


def degrees_of(layout: str) -> Degrees:
    """Read `shard=2+context=2`, `one`, or either with `,again`."""
    axes = layout.split(",")[0]
    return Degrees() if axes == "one" else Degrees(**{k: int(v) for k, v in (a.split("=") for a in axes.split("+"))})


def settings_of(steps: int) -> TrainSettings:
    """A step is 4 sequences of 256 tokens: 4 micro-batches, each sequence in 2 blocks."""
    return TrainSettings(steps, batch=4, length=256, micro_batches=4, context_blocks=2, warmup_steps=min(50, steps))


def train(layout: str, steps: int, ids: torch.Tensor) -> tuple[list[float], dict[str, str]]:
    """Be one rank: train, and return losses and the digests of the weights that this rank knows."""
    settings, chip, config = settings_of(steps), open_chip("cpu"), load_config("nano")
    model = Transformer(config, chip.ops())
    initialize(model, 0)
    placement = Ranks(model, join(chip.device, degrees_of(layout)), settings)
    trainer = Trainer(model, chip, TokenBatches(ids, settings.batch, settings.length, 0), settings, placement)
    losses = [trainer.step().loss for _ in range(steps)]
    whole = {name: placement.full(p.detach()) for name, p in model.named_parameters()}
    return losses, {name: hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest() for name, t in whole.items()}


def curve_of(layout: str, steps: int, ids: torch.Tensor, folder: Path) -> Curve:
    """Return a layout's curve, from the folder where it was finished before."""
    path = folder / f"{layout}-{steps}.json"
    if not path.is_file():
        by_rank = launch(degrees_of(layout).num_ranks, train, (layout, steps, ids))
        digests = {name: digest for _, part in by_rank for name, digest in part.items()}
        weights = hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()
        path.write_text(json.dumps({"losses": by_rank[0][0], "weights": weights}))
    return Curve(**json.loads(path.read_text()))


def compare(layout: str, curve: Curve, base: Curve) -> dict[str, Any]:
    """Say how far a curve is from one process's."""
    apart = [abs(a - b) / abs(b) for a, b in zip(curve.losses, base.losses, strict=True)]
    return {"layout": layout, "processes": degrees_of(layout).num_ranks, "max_relative": max(apart),
            "last_loss": curve.losses[-1], "weights_bitwise": curve.weights == base.weights,
            "losses_bitwise": curve.losses == base.losses}


def main() -> None:
    """Run the layouts, print a table and the JSON object, and keep a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--layouts", default=" ".join(LAYOUTS), help="separated by spaces; `one` is always run")
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    ids = encode_documents(open_tokenizer("anychip-4096"), corpus.documents("train"))
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        base, found = curve_of("one", asked.steps, ids, folder), []
        for layout in asked.layouts.split():
            found.append(compare(layout, curve_of(layout, asked.steps, ids, folder), base))
            print("{layout:28s} {processes} processes  max relative {max_relative:.1e}  bitwise: losses "
                  "{losses_bitwise}, weights {weights_bitwise}".format(**found[-1]), flush=True)
    worst = max(item["max_relative"] for item in found)
    append([row("parallel_losses", "largest relative difference of a loss from one process's, over layouts",
                [item["max_relative"] for item in found], "", f"nano, {asked.steps} steps of 4 x 256 tokens")])
    print(json.dumps({"steps": asked.steps, "limit": LIMIT, "worst": worst, "holds": worst <= LIMIT, "layouts": found}))


if __name__ == "__main__":
    main()
