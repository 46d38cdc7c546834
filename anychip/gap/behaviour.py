"""What the chip does with the model: text it generates, and the first training steps it takes."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from ..chips import Chip
from ..model.moe import MoE
from ..serve.generate import generate
from ..serve.request import Sampling
from ..text.batches import TokenBatches
from ..train.settings import TrainSettings
from ..train.trainer import Trainer
from .bundle import Bundle
from .subject import Subject


def record_generation(subject: Subject, chip: Chip, bundle: Bundle) -> None:
    """Greedy text for every prompt, and on a real chip the time of a decoded token."""
    model, rows = subject.model(chip), []
    for prompt in subject.prompts:
        ids, times = subject.tokenizer.encode(prompt), [chip.clock()]
        new = []
        for token in generate(model, chip, ids, subject.settings.new_tokens, Sampling(temperature=0.0)):
            new.append(token)
            times.append(chip.clock())
        steps = [after - before for before, after in zip(times[1:], times[2:], strict=False)]
        rows.append({"prompt": prompt, "ids": new, "text": subject.tokenizer.decode(new),
                     "token_s": statistics.median(steps) if steps else None})
    bundle.tables["generation"] = rows


def record_training(subject: Subject, chip: Chip, bundle: Bundle) -> None:
    """Losses, gradient norms and times of the first steps from seeded weights: one run a seed, on its own batches.

    Every run keeps the first step's gradient norm of every tensor, and each router's load after the last step.
    """
    settings = subject.settings
    seeds = range(settings.seed, settings.seed + settings.train_seeds)
    bundle.tables["training"] = [_train(subject, chip, seed) for seed in seeds]


def _train(subject: Subject, chip: Chip, seed: int) -> dict[str, Any]:
    settings, trainer = subject.settings, trainer_of(subject, chip, seed)
    steps = [trainer.step()]
    norms = {name: float(p.grad.norm().cpu()) for name, p in trainer.model.named_parameters() if p.grad is not None}
    steps += [trainer.step() for _ in range(settings.train_steps - 1)]
    return {"seed": seed, "loss": [s.loss for s in steps], "grad_norm": [s.grad_norm for s in steps],
            "time_s": [s.time_s for s in steps], "tokens": steps[0].tokens, "grad_norms": norms,
            "router_load": _router_load(trainer)}


def trainer_of(subject: Subject, chip: Chip, seed: int) -> Trainer:
    """Return a trainer of the subject's model on a chip: seeded weights, the subject's text, a plain recipe."""
    settings = subject.settings
    batches = TokenBatches(subject.ids, settings.train_batch, settings.train_length, seed)
    mtp_weight = TrainSettings.mtp_weight if subject.config.num_nextn_predict_layers else 0.0
    return Trainer(subject.model(chip, trained=False, seed=seed), chip, batches,
                   TrainSettings(steps=settings.train_steps, batch=settings.train_batch, length=settings.train_length,
                                 seed=seed, learning_rate=settings.learning_rate, warmup_steps=5, decay_from=0.0,
                                 optimizer="adamw", balance_weight=0.0, mtp_weight=mtp_weight))


def _router_load(trainer: Trainer) -> dict[str, list[float]]:
    """Each router's share of token-expert pairs by expert, on the batch that would come next."""
    inputs, targets, *_ = trainer.batches.at(trainer.steps_done)
    # with gradients, so that the routers keep what they chose
    trainer.losses(inputs.to(trainer.chip.device), targets.to(trainer.chip.device))
    found = {}
    for name, layer in trainer.model.named_modules():
        if isinstance(layer, MoE) and layer.chosen is not None:
            counts = torch.bincount(layer.chosen.cpu().flatten(), minlength=layer.experts.w2.shape[0])
            found[name], layer.chosen = (counts / counts.sum()).tolist(), None
    return found
