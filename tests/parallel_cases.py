"""Runs on several processes for tests of parallel training: what each layout's losses and weights come to."""

import hashlib
import os
from dataclasses import replace

import torch
from train_cases import small

from anychip.chips import open_chip
from anychip.model import Transformer, initialize
from anychip.parallel.degrees import Degrees
from anychip.parallel.launch import launch
from anychip.parallel.ranks import Ranks
from anychip.parallel.world import join, leave
from anychip.text.batches import TokenBatches
from anychip.train import Trainer, TrainSettings


def settings(**values) -> TrainSettings:
    """Return settings of a short run in four micro-batches."""
    return TrainSettings(**({"steps": 3, "batch": 4, "length": 32, "learning_rate": 3e-3, "micro_batches": 4,
                             "optimizer": "adamw"} | values))


def run(layouts: list[tuple[Degrees, TrainSettings]], chip: str, config) -> list[tuple[list[float], str]]:
    """Train on this rank in each layout in turn; return its losses and the digest of the whole model's weights."""
    return [_train(degrees, chosen, chip, config) for degrees, chosen in layouts]


def _train(degrees, chosen, chip_name, config):
    chip = open_chip(chip_name)
    model = Transformer(config, chip.ops())
    initialize(model, 0)
    ids = torch.randint(0, config.vocab_size, (2000,), generator=torch.Generator().manual_seed(0))
    batches = TokenBatches(ids, chosen.batch, chosen.length, 0)
    placement = Ranks(model, join(chip.device, degrees), chosen)
    trainer = Trainer(model, chip, batches, chosen, placement)
    losses = [trainer.step().loss for _ in range(chosen.steps)]
    return losses, {name: digest(placement.full(p.detach())) for name, p in model.named_parameters()}


def digest(tensor):
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:12]


def run_all(num_processes, layouts, chip="cpu:reference", config=None):
    """Run layouts on `num_processes`; return, for each, the losses and all parameters' digests."""
    by_rank = launch(num_processes, run, (layouts, chip, config or small()))
    return [(ranks[0][0], {name: d for _, digests in ranks for name, d in digests.items()})
            for ranks in zip(*by_rank, strict=True)]
