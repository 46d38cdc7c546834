"""One process's training loop: next-token loss, MTP loss, AdamW, and the routers' balance without a loss.

DeepSeek-V4 report: section 2.2 (MTP, weight 0.3), 2.1 (bias moved by the sign of the load error), 4.2 (AdamW).
Parameters that get no gradient (the indexer: its top-k selection is not differentiable) stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..chips import Chip
from ..errors import AnychipError, InputError
from ..model import Layout, Transformer
from ..model.moe import MoE
from .settings import TrainSettings


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

    def __init__(self, model: Transformer, chip: Chip, batches: Batches, settings: TrainSettings) -> None:
        if settings.mtp_weight and not model.mtp:
            raise InputError(f"mtp_weight={settings.mtp_weight}, but this model has no MTP block "
                             "(num_nextn_predict_layers=0): set mtp_weight=0")
        self.model, self.chip, self.batches, self.settings = model.to(chip.device).train(), chip, batches, settings
        self.optimizer = make_optimizer(self.model, settings, fused=chip.device.type in ("cpu", "cuda"))
        self.steps_done = 0

    def step(self) -> StepResult:
        """Take one step. Raises Diverged, with the weights untouched, where loss or gradient is not finite."""
        number, started = self.steps_done, self.chip.clock()
        inputs, targets = (ids.to(self.chip.device) for ids in self.batches.at(number))
        self.optimizer.zero_grad(set_to_none=True)
        loss, mtp_loss = self.losses(inputs, targets)
        total = loss if mtp_loss is None else loss + self.settings.mtp_weight * mtp_loss
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        values = _on_host(loss, mtp_loss, norm)
        _check_finite(number, *values)
        rate = self._update(number)
        self.steps_done += 1
        return StepResult(number, *values, rate, self.chip.clock() - started, inputs.numel())

    def losses(self, inputs_BL: Tensor, targets_BL: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the mean next-token loss and the MTP block's (None where its weight is 0), nats a token."""
        layout = Layout.whole([inputs_BL.shape[1]] * inputs_BL.shape[0])
        hidden, ops, head = self.model(inputs_BL.flatten(), layout), self.model.ops, self.model.head.weight
        loss = ops.at("head").cross_entropy(hidden.hidden_Td, head, targets_BL.flatten()).mean()
        if not self.settings.mtp_weight:
            return loss, None
        ahead_Td = self.model.predict_next(hidden.streams_Tnd, targets_BL.flatten(), layout)
        further = torch.full_like(targets_BL, -1)  # what follows a sequence's last target is not in the batch
        further[:, :-1] = targets_BL[:, 1:]
        token_losses = ops.at("mtp.0").cross_entropy(ahead_Td, head, further.flatten())
        return loss, token_losses.sum() / (further >= 0).sum().clamp_min(1)

    def _update(self, step: int) -> float:
        rate = self.settings.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        balance(self.model, self.settings.bias_speed)
        return rate


def make_optimizer(model: Transformer, settings: TrainSettings, *, fused: bool) -> torch.optim.Optimizer:
    """Return AdamW over all parameters; those of one dimension (norms, sinks, mixing bases) do not decay."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps, fused=fused)


def balance(model: Transformer, speed: float) -> None:
    """Move each score-routed layer's selection bias up for experts below the mean load, down for those above."""
    for layer in score_routed(model):
        bias, chosen = layer.gate.bias, layer.chosen
        if bias is not None and chosen is not None:
            ids = chosen.flatten()  # counted by adding ones: bincount would make the host wait for the size
            load = torch.zeros_like(bias).scatter_add(0, ids, torch.ones_like(ids, dtype=bias.dtype))
            bias.add_(torch.sign(load.mean() - load), alpha=speed)
            layer.chosen = None  # a layer that the next step does not visit must not move again


def score_routed(model: Transformer) -> Iterator[MoE]:
    """Return the MoE layers whose router has a selection bias, the MTP block's included."""
    return (layer for layer in model.modules() if isinstance(layer, MoE) and layer.gate.bias is not None)


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
