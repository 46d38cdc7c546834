"""Runs on several processes for tests of parallel training: what each layout's losses and weights come to."""

import hashlib
from dataclasses import replace

import torch
import torch.distributed as dist
from train_cases import small

from anychip.chips import open_chip
from anychip.config import ModelConfig, load_config
from anychip.model import Transformer, initialize
from anychip.parallel import Placement
from anychip.parallel.degrees import Degrees
from anychip.parallel.ranks import Ranks
from anychip.parallel.world import join
from anychip.text.batches import TokenBatches
from anychip.train import Trainer, TrainSettings
from anychip.train.anticipate import Ahead, has_routers
from anychip.train.integrity import differing, fingerprint, gradients

Result = tuple[list[float], dict[str, str]]


def settings(**values) -> TrainSettings:
    """Return settings of two steps, the first the indexer's alone: four micro-batches of a sequence in two blocks."""
    return TrainSettings(**({"steps": 2, "batch": 4, "length": 256, "learning_rate": 3e-3, "micro_batches": 4,
                             "context_blocks": 2, "indexer_steps": 1, "balance_weight": 0.01,
                             "indexer_weight": 0.1} | values))


def run(layouts: list[Degrees], chosen: TrainSettings) -> list[Result]:
    """Be one rank: train in each layout in turn; return the losses and this rank's parameters' digests."""
    torch.set_num_threads(1)
    return [train(chosen, lambda model, degrees=degrees: Ranks(model, join(torch.device("cpu"), degrees), chosen))
            for degrees in layouts]


def run_both(layouts: list[Degrees], families: dict[str, Degrees]) -> list[Result]:
    """Be one rank: do `run` and `run_families`, for one start of the ranks."""
    return run(layouts, settings()) + run_families(families)


def run_families(layouts: dict[str, Degrees]) -> list[Result]:
    """Be one rank: train each preset in its layout for a step."""
    chosen = settings(batch=2, micro_batches=2, context_blocks=1, length=96, steps=1, indexer_steps=0)
    torch.set_num_threads(1)
    found = []
    for preset, degrees in layouts.items():
        config = load_config(preset)
        fits = chosen if config.num_nextn_predict_layers else replace(chosen, mtp_weight=0.0)
        found.append(train(fits, lambda model, degrees=degrees, fits=fits: Ranks(
            model, join(torch.device("cpu"), degrees), fits), config=config))
    return found


def train(chosen: TrainSettings, place, chip_name: str = "cpu", config: ModelConfig | None = None) -> Result:
    """Train a model, the small one where none is given, where `place` puts it."""
    chip = open_chip(chip_name)
    model = Transformer(config or small(), chip.ops())
    initialize(model, 0)
    ids = torch.randint(0, 4096, (2000,), generator=torch.Generator().manual_seed(0))
    placement: Placement = place(model)
    trainer = Trainer(model, chip, TokenBatches(ids, chosen.batch, chosen.length, 0), chosen, placement)
    losses = [trainer.step().loss for _ in range(chosen.steps)]
    assert computed_again(trainer) == []
    whole = {name: placement.full(p.detach()) for name, p in model.named_parameters()}
    return losses, {name: hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest() for name, t in whole.items()}


def computed_again(trainer: Trainer) -> list[str]:
    """Return what is not the same bits when a step is computed once more, by other ranks where there are some, and with
    the routes that a pass before it gives."""
    found, batch = [], trainer._batch(0)
    routes = trainer.placement.routes(batch, Ahead(mtp=trainer.settings.mtp_weight > 0))
    assert bool(routes) == has_routers(trainer.model.config) and all(map(trainer.placement.owns, routes))
    for compute, given in ((trainer.placement.step, None), (trainer.placement.again, routes)):
        trainer.optimizer.zero_grad()
        losses = compute(batch, trainer.objective, given)
        found.append(fingerprint(gradients(trainer.model)) | fingerprint(losses.named))
    return differing(*found)


def joined(by_rank: list[list[Result]]) -> list[Result]:
    """Put the ranks' parts of each layout's result together."""
    return [(ranks[0][0], {name: digest for _, part in ranks for name, digest in part.items()})
            for ranks in zip(*by_rank, strict=True)]


def world_of_one() -> None:
    """Make this process the only rank of a process group."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
