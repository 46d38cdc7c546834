"""How fast is the CPU chip on each family, against transformers and this machine's own limit?

Small models of DeepSeek-V3, V3.2, GLM-5 and Qwen3 with the same weights on both sides, fp32, all threads of torch;
both sides in one process, in turn. `*-mini` (about 90M parameters, 25M active) shows the arithmetic, `*-nano` (about
5M) what is spent between products. Held to: training of the mixtures >= 3x transformers, decode at 1K >= 5x.

    python -m benchmarks.families [--models v3-mini,...] [--only train decode] [--rounds 5] [--processor-time]

`--processor-time` counts what the process uses of the processor (with one thread: the time on a machine of its own)
instead of the time that passes; the rows' shapes say so.

A step's products cannot pass this machine's GEMM rate: `train_limit_ratio` is the ratio that a side at that rate would
reach against transformers in the same run.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections import defaultdict
from typing import Any

import torch

from anychip.chips.cpu.limits import gemm_flops_per_s
from anychip.config import load_config

from .cpu_vs_transformers import BATCH, LENGTH, Samples, show, unit_of
from .rows import append, row
from .sides import Ours, Peer, Side, random_ids

MODELS = [f"{family}-{size}" for size in ("mini", "nano") for family in ("qwen3-moe", "v3", "v32", "glm5", "qwen3")]
CONTEXT = 1024


def train(ours: Ours, peer: Side, rounds: int, found: Samples) -> None:
    """Interleave training steps, tokens/s; what a side at the GEMM limit of the round would do comes with them."""
    ids = random_ids(ours.config, BATCH * (LENGTH + 1)).view(BATCH, LENGTH + 1)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    flops, tokens = ours.train_flops(inputs), BATCH * LENGTH
    for side in (ours, peer):
        side.train_step(inputs, targets)
    for _ in range(rounds):
        found["train_limit", "machine"].append(tokens * gemm_flops_per_s(1024) / flops)
        for side in (ours, peer):
            found["train", side.name].append(tokens / min(side.train_step(inputs, targets) for _ in range(2)))


def decode(ours: Ours, peer: Side, rounds: int, found: Samples) -> None:
    """Interleave decode runs after a real context, ms a token."""
    for _ in range(rounds):
        for side, steps in ((ours, 40), (peer, 10)):
            found[f"decode_{CONTEXT}", side.name].append(1e3 * statistics.median(side.decode(CONTEXT, steps)[2:]))


STAGES = {"train": train, "decode": decode}


def summary(found: Samples) -> dict[str, float]:
    """Return how many times faster than transformers, from medians, with the range over the rounds."""
    def ratios(what: str, side: str) -> list[float]:
        pair = (found.get(key, []) for key in ((what, side), ("train", "transformers")))
        return [a / b for a, b in zip(*pair, strict=True)]

    pair = (found.get((f"decode_{CONTEXT}", side), []) for side in ("anychip", "transformers"))
    decoded = [theirs / mine for mine, theirs in zip(*pair, strict=True)]
    figures = {"train": ratios("train", "anychip"), "train_limit_ratio": ratios("train_limit", "machine"),
               "decode_1k": decoded}
    return {f"{name}{end}": round(pick(values), 3) for name, values in figures.items() if values
            for end, pick in (("", statistics.median), ("_low", min), ("_high", max))}


def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Time one model, print and keep its figures, and return its ratios."""
    found: Samples = defaultdict(list)
    ours = Ours(load_config(name))
    peer = Peer(ours.model)
    if options.processor_time:
        ours.clock = peer.clock = time.process_time
    gc.collect()
    gc.freeze()  # both sides: what is imported need not be searched for garbage at every step
    for stage in options.only:
        STAGES[stage](ours, peer, options.rounds, found)
    print(name)
    show(found)
    shape = f"{name}, batch {BATCH}x{LENGTH} for training, one sequence otherwise" + (
        ", processor time" if options.processor_time else "")
    append([row("families", f"{side} {what}", values, unit_of(what), shape) for (what, side), values in found.items()])
    return summary(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", default=",".join(MODELS), help="presets, with commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--processor-time", action="store_true", help="time of the processor instead of the clock's")
    options = parser.parse_args()
    torch.manual_seed(0)
    result: dict[str, Any] = {name: measure(name, options) for name in options.models.split(",")}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
