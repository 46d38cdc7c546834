"""What does the whole recipe cost a training step of `tiny`, and how does it stand beside transformers?

2x512 tokens, fp32, in turn in one process: this project with AdamW and next-token loss alone, with the whole recipe
(Muon, MTP loss, balance loss, router bias, clipping), transformers with AdamW, and transformers with the same Muon step
as batched products of plain torch on its own parameters (its MTP block does not exist). Held to: 3x transformers with
the same optimizer on both sides.

    chrt -f 10 python -m benchmarks.train_recipe [--rounds 3]
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections import defaultdict

import torch
from torch import Tensor

from anychip.chips import open_chip
from anychip.chips.cpu.limits import gemm_flops_per_s
from anychip.config import load_config
from anychip.model import Transformer, initialize
from anychip.ops import Ops
from anychip.ops.orthogonal import Matrices, MuonRule
from anychip.text.batches import TokenBatches
from anychip.train import Trainer, TrainSettings

from .rows import append, row
from .sides import Ours, Peer, random_ids

BATCH, LENGTH = 2, 512
BARE = {"optimizer": "adamw", "mtp_weight": 0.0, "balance_weight": 0.0, "bias_speed": 0.0}


def trainer(**settings: float | str) -> Trainer:
    """Return a trainer of `tiny` on random tokens."""
    chip, config = open_chip("cpu"), load_config("tiny")
    model = Transformer(config, chip.ops())
    initialize(model, 0)
    plan = TrainSettings(1000, BATCH, LENGTH, **settings)  # type: ignore[arg-type]
    return Trainer(model, chip, TokenBatches(random_ids(config, 20000), BATCH, LENGTH, 0), plan)


def timed_optimizer(work: Trainer) -> list[float]:
    """Have a trainer's optimizer steps timed; return the list that the seconds go to."""
    times: list[float] = []
    step = work.optimizer.step

    def timed(rate: float) -> None:
        started = time.perf_counter()
        step(rate)
        times.append(time.perf_counter() - started)

    work.optimizer.step = timed  # type: ignore[method-assign]
    return times


class PeerMuon(Peer):
    """transformers with Muon, each matrix of its parameters alone, as batched products of plain torch."""

    name = "transformers, Muon"

    def __init__(self, model: Transformer) -> None:
        super().__init__(model)
        named = {n: p for n, p in self.model.named_parameters() if p.dim() > 1 and "embed" not in n and "head" not in n}
        self.matrices, self.momenta = list(named.values()), [torch.zeros_like(p) for p in named.values()]
        kept = [p for n, p in self.model.named_parameters() if n not in named]
        self.optimizer = torch.optim.AdamW(kept, lr=1e-4, fused=True)

    def train_step(self, inputs: Tensor, targets: Tensor) -> float:
        seconds = super().train_step(inputs, targets)
        started = time.perf_counter()
        with torch.no_grad():
            groups = [Matrices(*(stack(t) for t in (p, p.grad, m))) for p, m in zip(self.matrices, self.momenta,
                                                                                   strict=True) if p.grad is not None]
            Ops().muon(groups, MuonRule(0.95, 1e-4, 0.1))
        for parameter in self.matrices:
            parameter.grad = None
        return seconds + time.perf_counter() - started


def stack(tensor: Tensor | None) -> Tensor:
    """Return a parameter as matrices; an expert's gate and up projections are two."""
    assert tensor is not None
    if tensor.dim() == 2:
        return tensor[None]
    width = load_config("tiny").moe_intermediate_size
    return tensor.view(-1, width, tensor.shape[-1]) if tensor.shape[1] == 2 * width else tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    works = {"anychip, AdamW, next token alone": trainer(**BARE), "anychip, whole recipe": trainer(),
             "anychip, Muon, next token alone": trainer(**(BARE | {"optimizer": "muon"}))}
    spent = {name: timed_optimizer(work) for name, work in works.items()}
    ours = Ours(load_config("tiny"))
    peers = {"transformers, AdamW": Peer(ours.model), "transformers, Muon": PeerMuon(ours.model)}
    ids = random_ids(ours.config, BATCH * (LENGTH + 1)).view(BATCH, LENGTH + 1)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    flops, found = ours.train_flops(inputs), defaultdict(list)
    for work in works.values():
        work.step()
    gc.freeze()
    for _ in range(rounds):
        found["GEMM limit"].append(gemm_flops_per_s(1024))
        for _ in range(2):
            for name, work in works.items():
                found[name].append(work.step().time_s)
        for name, peer in peers.items():
            found[name].append(peer.train_step(inputs, targets))
    report(found, spent, flops)


def report(found: dict[str, list[float]], spent: dict[str, list[float]], flops: float) -> None:
    """Append the rows and print the ratios of medians."""
    middle = {name: statistics.median(values) for name, values in found.items()}
    found = {**found, **{f"{name}: its optimizer": values[1:] for name, values in spent.items()}}
    append([row("train_recipe", name, values, "FLOP/s" if name == "GEMM limit" else "s/step",
                f"tiny, {BATCH}x{LENGTH} tokens a step") for name, values in found.items()])
    bare, muon = middle["anychip, AdamW, next token alone"], middle["anychip, Muon, next token alone"]
    whole = middle["anychip, whole recipe"]
    print(json.dumps({
        "ms": {name: round(1e3 * statistics.median(values)) for name, values in found.items() if name != "GEMM limit"},
        "over_transformers_adamw_both": round(middle["transformers, AdamW"] / bare, 2),
        "over_transformers_muon_both": round(middle["transformers, Muon"] / muon, 2),
        "whole_recipe_over_transformers_muon": round(middle["transformers, Muon"] / whole, 2),
        "whole_recipe_over_transformers_adamw": round(middle["transformers, AdamW"] / whole, 2),
        "share_of_limit_adamw": round(flops / bare / middle["GEMM limit"], 3)}))


if __name__ == "__main__":
    main()
