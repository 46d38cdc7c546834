"""The training loop: losses, the clipped gradient, Muon and AdamW, and the routers' balance without a loss.

DeepSeek-V4 report: section 2.1 (bias moved by the sign of the load error), 4.2 (the recipe). Parameters that get no
gradient in a step stay as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from ..chips import Chip
from ..config import ModelConfig
from ..errors import AnychipError, InputError
from ..model import Layout, Transformer
from ..model.block import Block
from ..model.moe import MoE
from ..parallel import Batch, Placement, Routes, Single
from ..parallel.placement import clip_gradients, forward, score_routed
from .anticipate import Ahead, Anticipation
from .objective import LanguageModel, objective_at
from .optimizer import Optimizer
from .qat import QuantizedOps
from .settings import TrainSettings

__all__ = ["Batches", "Diverged", "StepResult", "Trainer", "balance", "score_routed"]


_NAMES = {"loss": "loss", "mtp_loss": "MTP loss", "balance_loss": "balance loss", "indexer_loss": "indexer loss",
          "grad_norm": "gradient norm"}


class Diverged(AnychipError):
    """A step whose loss or gradient is not finite. The weights are still those of the step before."""

    exit_code = 1  # the input was in order; the run failed


class Batches(Protocol):
    """Where batches come from: `text.packing.PackedBatches`, or anything that gives a step's tokens by its number."""

    def at(self, step: int) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Layout]:
        """Return the inputs and targets (-1: no loss) of one step, int64 [batch, length], and how samples lie in them
        (left out: each row is one)."""
        ...


@dataclass(frozen=True)
class StepResult:
    """What one step did. Losses are nats a token before the step's update; `grad_norm` is before clipping.

    Losses that the step did not have are None; `balance_loss` and `indexer_loss` are sums over layers. `time_s` is wall
    time on this machine, whatever the chip.
    """

    step: int
    loss: float
    mtp_loss: float | None
    grad_norm: float
    learning_rate: float
    time_s: float
    tokens: int
    balance_loss: float | None = None
    indexer_loss: float | None = None


class Trainer:
    """Trains `model` on a chip, one step at a time; `steps_done` counts them and names the next batch."""

    def __init__(self, model: Transformer, chip: Chip, batches: Batches, settings: TrainSettings,
                 placement: Placement | None = None) -> None:
        """Without a `placement` this one process trains the whole model; with one, `model` is what it placed."""
        _check_parts(model.config, settings)
        self.model, self.chip, self.batches, self.settings = model.to(chip.device).train(), chip, batches, settings
        self.placement = placement or cast(Placement, Single(self.model, settings.micro_batches))
        if settings.fp4:
            self.model.ops = QuantizedOps(self.model.ops)
        self.optimizer = Optimizer(self.model, settings, self.placement, model.ops)
        self.steps_done, self.anticipation = 0, Anticipation()
        for block in self.model.modules():
            if isinstance(block, Block):
                block.recompute = settings.recompute
        self._begin(0)

    def step(self) -> StepResult:
        """Take one step. Raises Diverged, with the weights untouched, where loss or gradient is not finite."""
        number, started = self.steps_done, self.chip.clock()
        batch, routes = self._batch(number), self._routes(number)
        self._begin(number)
        losses = self.placement.step(batch, self.objective, routes)
        norm = self.placement.grad_norm()
        clip_gradients(self.model.parameters(), self.settings.clip_norm, norm)
        values = _on_host({**losses.named, "grad_norm": norm})
        _check_finite(number, values)
        rate = self._update(number)
        self.steps_done += 1
        tokens, norm_value = batch.inputs_BL.numel(), values.pop("grad_norm")
        return StepResult(number, values.pop("loss"), values.pop("mtp_loss", None), norm_value, rate,
                          self.chip.clock() - started, tokens, **values)

    def _batch(self, number: int) -> Batch:
        inputs, targets, *layout = self.batches.at(number)
        whole = layout[0] if layout else Layout.whole([inputs.shape[1]] * inputs.shape[0])
        return Batch.of(inputs, targets, _cut(whole, self.settings.length_at(number))).to(self.chip.device)

    def _routes(self, number: int) -> Routes | None:
        """Route the later steps whose turn it is by the weights of now; return what was kept for this step."""
        for ahead in self.anticipation.missing(number):
            LanguageModel(0.0).prepare(self.model, dense=self.settings.stage(ahead) != "sparse")
            objective = Ahead(mtp=self.settings.mtp_weight > 0)
            self.anticipation.keep(ahead, self.placement.routes(self._batch(ahead), objective))
        return self.anticipation.take(number)

    def losses(self, inputs_BL: Tensor, targets_BL: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the mean next-token loss and the MTP block's (None where its weight is 0), nats a token."""
        batch = Batch.of(inputs_BL, targets_BL)
        losses = forward(self.model, batch, batch, self.objective)
        return losses.named["loss"], losses.named.get("mtp_loss")

    def _update(self, step: int) -> float:
        rate, alone = self.settings.rate(step), self.settings.stage(step) == "indexer"
        if alone:  # a pipeline gives the others gradients of zero, by which their weights would still decay
            for name, parameter in self.model.named_parameters():
                if ".indexer." not in name:
                    parameter.grad = None
        self.optimizer.step(rate)
        if not alone:
            balance(self.placement.loads(), self.settings.bias_speed)
        return rate

    def _begin(self, step: int) -> None:
        """Set losses and switches to those of a step, and drop the gradients."""
        self.objective = objective_at(self.settings, step)
        self.objective.prepare(self.model, dense=self.settings.stage(step) != "sparse")
        self.optimizer.zero_grad()


def _check_parts(config: ModelConfig, settings: TrainSettings) -> None:
    """Raise InputError where settings train what the model does not have."""
    has_indexer = any(getattr(spec, "indexer", None) for spec in config.kinds.values())
    problems = [text for holds, text in (
        (not settings.mtp_weight or config.num_nextn_predict_layers,
         f"mtp_weight={settings.mtp_weight}, but this model has no MTP block (num_nextn_predict_layers=0): set "
         "mtp_weight=0"),
        (not settings.indexer_steps or has_indexer,
         f"indexer_steps={settings.indexer_steps}, but a {config.family} model has no indexer: set indexer_steps=0"),
    ) if not holds]
    if problems:
        raise InputError("; ".join(problems))


def _cut(layout: Layout, length: int) -> Layout:
    """Cut samples into ones of at most `length` tokens: the sequence-length curriculum."""
    if max(layout.lengths) <= length:
        return layout
    return Layout.whole([min(length, whole - at) for whole in layout.lengths for at in range(0, whole, length)])


def balance(loads: list[tuple[MoE, Tensor]], speed: float) -> None:
    """Move each selection bias up for experts below the mean load, down for those above; routers without one stay."""
    for layer, load in loads:
        if layer.gate.bias is not None:
            layer.gate.bias.add_(torch.sign(load.mean() - load), alpha=speed)


def _on_host(values: dict[str, Tensor]) -> dict[str, float]:
    """Copy a step's numbers to the host at once: the one time that a step waits for its chip."""
    return dict(zip(values, torch.stack([value.detach() for value in values.values()]).cpu().tolist(), strict=True))


def _check_finite(step: int, values: dict[str, float]) -> None:
    wrong = [f"{_NAMES[name]} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        raise Diverged(f"training stopped at step {step}: {', '.join(wrong)}. The step was not taken; use a lower "
                       "learning rate or a longer warm-up, and check that the starting weights are finite")
