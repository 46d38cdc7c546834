"""One process's training loop: next-token loss, MTP loss, AdamW, and the routers' balance without a loss.

DeepSeek-V4 report: section 2.2 (MTP, weight 0.3), 2.1 (bias moved by the sign of the load error), 4.2 (AdamW).
Parameters that get no gradient (the indexer: its top-k selection is not differentiable) stay as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..chips import Chip
from ..errors import AnychipError, InputError
from ..model import Transformer
from ..model.moe import MoE
from ..parallel import Batch, Placement, Single
from ..parallel.placement import forward, score_routed
from .objective import LanguageModel
from .settings import TrainSettings

__all__ = ["Batches", "Diverged", "StepResult", "Trainer", "balance", "make_optimizer", "score_routed"]


class Diverged(AnychipError):
    """A step whose loss or gradient is not finite. The weights are still those of the step before."""


class Batches(Protocol):
    """Where batches come from: `text.batches.TokenBatches`, or anything that gives a step's tokens by its number."""

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of one step, int64 [batch, length]."""
        ...


@dataclass(frozen=True)
class StepResult:
    """What one step did. Losses are nats a token before the step's update; `grad_norm` is before clipping.

    `mtp_loss` is None without an MTP loss. `time_s` is wall time on this machine, whatever the chip.
    """

    step: int
    loss: float
    mtp_loss: float | None
    grad_norm: float
    learning_rate: float
    time_s: float
    tokens: int


class Trainer:
    """Trains `model` on a chip, one step at a time; `steps_done` counts them and names the next batch."""

    def __init__(self, model: Transformer, chip: Chip, batches: Batches, settings: TrainSettings,
                 placement: Placement | None = None) -> None:
        """Without a `placement` this one process trains the whole model; with one, `model` is what it placed."""
        if settings.mtp_weight and not model.mtp:
            raise InputError(f"mtp_weight={settings.mtp_weight}, but this model has no MTP block "
                             "(num_nextn_predict_layers=0): set mtp_weight=0")
        self.model, self.chip, self.batches, self.settings = model.to(chip.device).train(), chip, batches, settings
        self.placement = placement or Single(self.model, settings.micro_batches)
        self.objective = LanguageModel(settings.mtp_weight)
        self.optimizer = make_optimizer(self.model, settings, fused=chip.device.type in ("cpu", "cuda"))
        self.steps_done = 0

    def step(self) -> StepResult:
        """Take one step. Raises Diverged, with the weights untouched, where loss or gradient is not finite."""
        number, started = self.steps_done, self.chip.clock()
        batch = Batch.of(*self.batches.at(number)).to(self.chip.device)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.placement.step(batch, self.objective)
        norm = self.placement.grad_norm()
        torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.settings.clip_norm, norm)
        values = _on_host(losses.named["loss"], losses.named.get("mtp_loss"), norm)
        _check_finite(number, *values)
        rate = self._update(number)
        self.steps_done += 1
        return StepResult(number, *values, rate, self.chip.clock() - started, batch.inputs_BL.numel())

    def losses(self, inputs_BL: Tensor, targets_BL: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the mean next-token loss and the MTP block's (None where its weight is 0), nats a token."""
        batch = Batch.of(inputs_BL, targets_BL)
        losses = forward(self.model, batch, batch, self.objective)
        return losses.named["loss"], losses.named.get("mtp_loss")

    def _update(self, step: int) -> float:
        rate = self.settings.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        balance(self.placement.loads(), self.settings.bias_speed)
        return rate


def make_optimizer(model: Transformer, settings: TrainSettings, *, fused: bool) -> torch.optim.Optimizer:
    """Return AdamW over all parameters; those of one dimension (norms, sinks, mixing bases) do not decay."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps, fused=fused)


def balance(loads: list[tuple[MoE, Tensor]], speed: float) -> None:
    """Move each score-routed layer's selection bias up for experts below the mean load, down for those above."""
    for layer, load in loads:
        assert layer.gate.bias is not None
        layer.gate.bias.add_(torch.sign(load.mean() - load), alpha=speed)


def _on_host(loss: Tensor, mtp_loss: Tensor | None, norm: Tensor) -> tuple[float, float | None, float]:
    """Copy a step's numbers to the host at once: the one time that a step waits for its chip."""
    parts = [part.detach() for part in (loss, mtp_loss, norm) if part is not None]
    first, *ahead, last = torch.stack(parts).cpu().tolist()
    return first, ahead[0] if ahead else None, last


def _check_finite(step: int, loss: float, mtp_loss: float | None, norm: float) -> None:
    named = {"loss": loss, "MTP loss": mtp_loss, "gradient norm": norm}
    wrong = [f"{name} is {value}" for name, value in named.items() if value is not None and not math.isfinite(value)]
    if wrong:
        raise Diverged(f"training stopped at step {step}: {', '.join(wrong)}. The step was not taken; use a lower "
                       "learning rate or a longer warm-up, and check that the starting weights are finite")
