"""What a trainer asks of its ranks, and the simplest answer: one process that holds the whole model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..model import Hidden, Transformer
from ..model.moe import MoE
from .batch import Batch
from .routes import Routes, named, of_part, routed
from .sums import Gradients

__all__ = ["Batch", "Losses", "Objective", "Placement", "Routes", "Single"]


@dataclass(frozen=True)
class Losses:
    """What is minimised (`total`) and its parts by name, as metrics show them. All are scalars.

    Of a micro-batch they are its *contribution* to the step's means: the sum over all micro-batches of all ranks is
    the step's loss.
    """

    total: Tensor
    named: dict[str, Tensor] = field(default_factory=dict)

    def __add__(self, other: Losses) -> Losses:
        named = dict(self.named)
        for name, value in other.named.items():
            named[name] = named[name] + value if name in named else value
        return Losses(self.total + other.total, named)

    def detach(self) -> Losses:
        """Return the values without their graph."""
        return Losses(self.total.detach(), {name: value.detach() for name, value in self.named.items()})


class Objective(Protocol):
    """The losses. `part` is a micro-batch; `whole` the step's batch, for the counts that means divide by."""

    def final(self, model: nn.Module, hidden: Hidden, part: Batch, whole: Batch) -> Losses:
        """Return the losses of the model's end (next token, MTP). `model` has the head's and MTP's modules and
        `predict_next`; on several pipeline stages it is the last one."""
        ...

    def layers(self, model: nn.Module, part: Batch, whole: Batch) -> Losses | None:
        """Return the losses that arise in the layers of `model` (a whole one or a stage) from what these kept of the
        forward pass just done (balance, indexer); None where there are none."""
        ...


class Placement(Protocol):
    """This rank's part of the model and of each step. Collective calls are made by all ranks, in the same order."""

    rank: int
    num_ranks: int
    model: nn.Module
    """This rank's part: its parameters and buffers carry the whole model's names."""

    @property
    def is_writer(self) -> bool:
        """Tell whether this rank writes what one rank writes for all: metrics, losses, progress."""
        ...

    def step(self, batch: Batch, objective: Objective, routes: Routes | None = None) -> Losses:
        """Run forward and backward of a step's batch, the same on every rank, and return its detached global losses.

        After it every local gradient is complete: that of the step's total loss. With `routes` tokens visit the experts
        that these say.
        """
        ...

    def routes(self, batch: Batch, objective: Objective) -> Routes:
        """Run forward alone, without gradients, and return what the score routers chose for this rank's tokens."""
        ...

    def owns(self, route: str) -> bool:
        """Tell whether a route of this name is one that `routes` returns on this rank."""
        ...

    def again(self, batch: Batch, objective: Objective, routes: Routes | None = None) -> Losses:
        """Do the very step once more, each micro-batch on another rank than in `step` where the layout has one that
        could have done it. On sound ranks every bit of losses and gradients is the same."""
        ...

    def loads(self) -> list[tuple[MoE, Tensor]]:
        """Return, for each score-routed layer of `model`, how many tokens of the last step chose each expert [E],
        over all ranks. Layers that the step did not visit are left out."""
        ...

    def grad_norm(self) -> Tensor:
        """Return the L2 norm of the whole model's gradient, the same bits on every rank."""
        ...

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over the ranks that hold other data, in rank order."""
        ...

    def full(self, tensor: Tensor) -> Tensor:
        """Return the whole tensor of which this rank may hold a part (a DTensor); a plain tensor is whole."""
        ...

    def local(self, whole: Tensor, like: Tensor) -> Tensor:
        """Return the part of `whole` that belongs where `like` is: the inverse of `full`."""
        ...

    def describe(self) -> str:
        """Say in words how the model and the data are spread."""
        ...


class Single:
    """One process that holds the whole model and sees all data."""

    rank, num_ranks, is_writer = 0, 1, True

    def __init__(self, model: Transformer, micro_batches: int = 1) -> None:
        self.model, self.micro_batches = model, micro_batches
        self._loads, self._grads = RouterLoads(), Gradients(model)

    def step(self, batch: Batch, objective: Objective, routes: Routes | None = None) -> Losses:
        """Run the micro-batches one after the other; gradients add up in a tree, as on many ranks."""
        self._loads.clear()
        losses = []
        for number, part in enumerate(batch.split(self.micro_batches)):
            with routed(self.model, of_part(routes, number)):
                found = forward(self.model, part, batch, objective)
            found.total.backward()
            self._loads.add(self.model)
            self._grads.take()
            losses.append(found.detach())
        self._grads.finish()
        return _added(losses)

    @torch.no_grad()
    def routes(self, batch: Batch, objective: Objective) -> Routes:
        found: Routes = {}
        for number, part in enumerate(batch.split(self.micro_batches)):
            chosen: Routes = {}
            with routed(self.model, chosen):
                forward(self.model, part, batch, objective)
            found |= named(chosen, number)
        return found

    def owns(self, route: str) -> bool:
        return True

    def again(self, batch: Batch, objective: Objective, routes: Routes | None = None) -> Losses:
        return self.step(batch, objective, routes)

    def loads(self) -> list[tuple[MoE, Tensor]]:
        return self._loads.of_layers()

    def grad_norm(self) -> Tensor:
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        return square_sum(grads, self.model.embed.weight.device).sqrt().float()

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def full(self, tensor: Tensor) -> Tensor:
        return tensor

    def local(self, whole: Tensor, like: Tensor) -> Tensor:
        return whole

    def describe(self) -> str:
        return f"one process, {self.micro_batches} micro-batch{'es' * (self.micro_batches > 1)} a step"


def _added(losses: list[Losses]) -> Losses:
    """Return the sum of detached losses, rounded once: the bits do not depend on how they are dealt to ranks."""
    def total(values: list[Tensor]) -> Tensor:
        return torch.stack(values).to(_wide(values[0].device)).sum().to(values[0].dtype)

    names = {name: None for one in losses for name in one.named}
    return Losses(total([one.total for one in losses]),
                  {name: total([one.named[name] for one in losses if name in one.named]) for name in names})


@torch.no_grad()
def fill(placement: Placement, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Copy this rank's parts out of whole tensors that come by name, one at a time. Every rank calls it."""
    mine = placement.model.state_dict(keep_vars=True)
    for name, whole in tensors:
        if name in mine:
            mine[name].copy_(placement.local(whole, like=mine[name]))


def forward(model: Transformer, part: Batch, whole: Batch, objective: Objective) -> Losses:
    """Run a whole model forward on a micro-batch and return its losses."""
    hidden = model(part.inputs_BL.flatten(), part.layout)
    losses = objective.final(model, hidden, part, whole)
    inner = objective.layers(model, part, whole)
    return losses if inner is None else losses + inner


def square_sum(tensors: list[Tensor], device: torch.device) -> Tensor:
    """Return the sum of all elements' squares: in fp64 where the device is known to have it, so that its bits, once
    rounded to fp32, do not depend on how the tensors are cut."""
    wide = _wide(device)
    norms = [torch.linalg.vector_norm(tensor, dtype=wide) for tensor in tensors]
    return torch.stack(norms).square().sum() if norms else torch.zeros((), dtype=wide, device=device)


def _wide(device: torch.device) -> torch.dtype:
    return torch.float64 if device.type in ("cpu", "cuda") else torch.float32


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float, norm: Tensor) -> None:
    """Scale the gradients (of which this rank may hold parts) so that their L2 norm `norm` is at most `max_norm`."""
    grads = [local_part(p.grad) for p in parameters if p.grad is not None]
    if grads:
        torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp(max=1.0))


def local_part(tensor: Tensor) -> Tensor:
    """Return the part of a DTensor that this rank holds; a plain tensor is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class RouterLoads:
    """How many tokens chose each expert of each score-routed layer, added up over the micro-batches of a step."""

    def __init__(self) -> None:
        self._counts: dict[MoE, Tensor] = {}

    def clear(self) -> None:
        """Begin a step."""
        self._counts = {}

    def add(self, model: nn.Module) -> None:
        """Count what the layers chose in the forward pass just done; each choice is counted once."""
        for layer in score_routed(model):
            if layer.chosen is not None:
                ids = layer.chosen.flatten()  # counted by adding ones: bincount would make the host wait for the size
                count = torch.zeros(layer.num_experts, device=ids.device)
                count.scatter_add_(0, ids, torch.ones_like(ids, dtype=count.dtype))
                self._counts[layer] = self._counts[layer] + count if layer in self._counts else count
                layer.chosen = None

    def of_layers(self) -> list[tuple[MoE, Tensor]]:
        """Return the counts [E] by layer, in the model's order."""
        return list(self._counts.items())


def score_routed(model: nn.Module) -> list[MoE]:
    """Return the MoE layers whose router chooses by score, the MTP block's included."""
    return [layer for layer in model.modules() if isinstance(layer, MoE) and layer.gate.tid2eid is None]
