"""How much faster are two processes on two cores than one process on one core?

Trains `tiny` with the full recipe (fp32, gloo, FSDP over two ranks, one thread each; the CPU chip). Limit: at least 1.3
times the tokens per second of one process pinned to one core with the same micro-batches. The two are measured in
turns; steps that a restart of the ranks would disturb (the first of each turn) are left out.

    python -m benchmarks.parallel_speed [--turns 3] [--steps 4] [--length 512]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

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

LIMIT = 1.3


def rank(settings: TrainSettings, degrees: Degrees, ids: torch.Tensor) -> list[float]:
    """Be one rank, on a core of its own; return the seconds of each step but the first."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ["LOCAL_RANK"]) % len(cores)]})
    torch.set_num_threads(1)
    chip = open_chip("cpu")
    model = Transformer(load_config("tiny"), chip.ops())
    initialize(model, 0)
    world = join(chip.device, degrees)
    trainer = Trainer(model, chip, TokenBatches(ids, settings.batch, settings.length, 0), settings,
                      Ranks(model, world, settings) if degrees.num_ranks > 1 else None)
    times = []
    for _ in range(settings.steps):
        started = time.perf_counter()
        trainer.step()
        times.append(time.perf_counter() - started)
    return times[1:]


def main() -> None:
    """Measure in turns, print the JSON object, and keep a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    asked = parser.parse_args()
    settings = TrainSettings(asked.steps, asked.batch, asked.length, micro_batches=2, warmup_steps=2)
    ids = encode_documents(open_tokenizer("anychip-4096"), corpus.documents("train")[:200])
    tokens, found = asked.batch * asked.length, {1: list[float](), 2: list[float]()}
    for _ in range(asked.turns):
        for ranks in found:
            found[ranks] += [tokens / s for s in launch(ranks, rank, (settings, Degrees(shard=ranks), ids))[0]]
    ratio = statistics.median(found[2]) / statistics.median(found[1])
    shape = f"tiny, {asked.batch} x {asked.length} tokens a step, 2 micro-batches"
    append([row("parallel_speed", f"{ranks} process(es) of one core", values, "tokens/s", shape)
            for ranks, values in found.items()])
    print(json.dumps({"shape": shape, "tokens_per_s": {r: statistics.median(v) for r, v in found.items()},
                      "n": len(found[1]), "range": {r: [min(v), max(v)] for r, v in found.items()},
                      "ratio": ratio, "limit": LIMIT, "holds": ratio >= LIMIT}))


if __name__ == "__main__":
    main()
