"""A rank's layers of the model, and one pass of a micro-batch through them.

Between stages travel the residual streams [T, n, d]; where there is an MTP block, the next tokens' embeddings ride
along as one stream more, so that the embedding lives on the first stage only. Token ids every rank has anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..model import Layout, Transformer, residual
from ..model.plan import Plan
from .batch import Batch
from .context import Blocks, plan_of
from .placement import Losses, Objective
from .rank_ops import Copies
from .routes import Chosen, routed


def layers_of(num_layers: int, stage: int, stages: int) -> range:
    """Return a stage's layers; where they do not come out even, the first stages have one more."""
    each, more = divmod(num_layers, stages)
    first = stage * each + min(stage, more)
    return range(first, first + each + (stage < more))


def cut_model(model: Transformer, stage: int, stages: int) -> None:
    """Remove from a whole model what other stages have. What stays keeps its name."""
    if stages == 1:
        return
    kept = layers_of(model.config.num_hidden_layers, stage, stages)
    model.layers = nn.ModuleDict({str(index): model.layers[index] for index in kept})  # type: ignore[assignment]
    if stage > 0:
        del model.embed
    if stage < stages - 1:
        del model.norm, model.head
        residual.drop_joining(model)
        model.mtp = nn.ModuleList()


@dataclass
class Task:
    """Micro-batch `number` on its way through a stage: what the losses are, and (after the pass) what they came to.

    `chosen` are the experts that its tokens visit, by layer; where it is empty the pass chooses and fills it.
    """

    number: int
    part: Batch
    whole: Batch
    objective: Objective
    chosen: Chosen | None = None
    losses: Losses | None = None


class Stage(nn.Module):
    """Runs a model's part, whole or one stage of it, on this rank's blocks of a micro-batch."""

    def __init__(self, model: Transformer, blocks: Blocks, weights: Copies, place: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.blocks, self._weights = model, blocks, weights
        self.first, self.last = place[0] == 0, place[0] == place[1] - 1
        self.carries_ahead = model.config.num_nextn_predict_layers > 0 and place[1] > 1

    def forward(self, carried: Tensor | None, task: Task) -> Tensor:
        """Return what the next stage needs; on the last stage the micro-batch's share of the loss, a scalar.

        `task.losses` then holds the losses of this stage, detached.
        """
        self._weights.clear()
        with routed(self.model, task.chosen):
            return self._run(carried, task)

    def _run(self, carried: Tensor | None, task: Task) -> Tensor:
        model, part = self.model, task.part
        device, ids_T = part.inputs_BL.device, part.inputs_BL.flatten()
        plan = plan_of(model.config, part.layout, self.blocks, device)
        streams_Tnd, ahead_Td = self._begin(carried, part)
        for block in model.layers.values() if isinstance(model.layers, nn.ModuleDict) else model.layers:
            streams_Tnd = block(streams_Tnd, ids_T, plan, model.ops)
        inner = task.objective.layers(model, part, task.whole)
        if not self.last:
            return self._hand_on(streams_Tnd, ahead_Td, inner, task)
        losses = task.objective.final(_Ending(self, ahead_Td), model.finish(streams_Tnd), part, task.whole)
        own = task.objective.layers(model, part, task.whole)  # the MTP block's, which ran last
        for more in (inner, own):
            losses = losses if more is None else losses + more
        task.losses = losses.detach()
        return losses.total

    def _begin(self, carried: Tensor | None, part: Batch) -> tuple[Tensor, Tensor | None]:
        if carried is not None and self.carries_ahead:
            return carried[:, :-1].contiguous(), carried[:, -1].contiguous()
        if carried is not None:
            return carried, None
        model = self.model
        x_Td = model.ops.at("embed").embed(part.inputs_BL.flatten(), model.embed.weight)
        ahead_Td = self._ahead(part.targets_BL.flatten()) if self.carries_ahead else None
        return residual.begin(x_Td, model.config), ahead_Td

    def _ahead(self, next_ids_T: Tensor) -> Tensor:
        return self.model.ops.at("mtp.0").embed(next_ids_T.clamp_min(0), self.model.embed.weight)

    def _hand_on(self, streams_Tnd: Tensor, ahead_Td: Tensor | None, inner: Losses | None, task: Task) -> Tensor:
        task.losses = inner.detach() if inner is not None else None
        carried = streams_Tnd if ahead_Td is None else torch.cat((streams_Tnd, ahead_Td[:, None]), 1)
        if inner is not None and inner.total.requires_grad:
            carried = _WithLoss.apply(carried, inner.total)
        return carried


class _WithLoss(torch.autograd.Function):
    """Pass a tensor on; going back, the loss gets its gradient of one, as if it had been added at the end."""

    @staticmethod
    def forward(ctx: Any, carried: Tensor, loss: Tensor) -> Tensor:
        return carried.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return grad, torch.ones((), dtype=grad.dtype, device=grad.device)


class _Ending(nn.Module):
    """The model's end as an objective sees it: its ops, its head, and the MTP block over this rank's blocks."""

    def __init__(self, stage: Stage, ahead_Td: Tensor | None) -> None:
        super().__init__()
        self.ops, self.head = stage.model.ops, stage.model.head
        self._stage, self._ahead_Td = stage, ahead_Td

    def predict_next(self, streams_Tnd: Tensor, next_ids_T: Tensor, layout: Layout) -> Tensor:
        """Return the MTP block's hidden [T, d], as `Transformer.predict_next` does."""
        stage, model = self._stage, self._stage.model
        plan: Plan = plan_of(model.config, layout, stage.blocks, streams_Tnd.device)
        ahead_Td = stage._ahead(next_ids_T) if self._ahead_Td is None else self._ahead_Td
        block: Any = model.mtp[0]
        return block.predict(streams_Tnd, ahead_Td, next_ids_T, plan, model.ops)
