"""Pipeline stages on torch.distributed.pipelining's 1F1B schedule, gradients of each micro-batch kept apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from .stage import Stage, Task


class Pipeline:
    """This rank's stage and its schedule. Sizes of what travels are those of the first step; they may change later."""

    def __init__(self, stage: Stage, group: dist.ProcessGroup) -> None:
        self._stage, self._group = stage, group
        self._runner = _Runner(stage)
        self._schedule: tuple[tuple[int, int], Schedule1F1B] | None = None

    def run(self, tasks: list[Task], after_forward: Callable[[], None], after_backward: Callable[[], None]) -> None:
        """Run forward and backward of all micro-batches; the callbacks follow each one's, in order."""
        self._runner.begin(tasks, after_forward)
        schedule = self._schedule_for(tasks)
        numbers = torch.arange(len(tasks))
        schedule._stage.after_backward = after_backward  # type: ignore[attr-defined]
        last, losses = self._stage.last, list[Tensor]()
        schedule.step(*((numbers.float(),) if self._stage.first else ()), number=numbers, return_outputs=False,
                      target=torch.zeros(len(tasks)) if last else None, losses=losses if last else None)

    @torch.no_grad()
    def forward(self, tasks: list[Task]) -> None:
        """Run all micro-batches forward alone, one after the other through each stage."""
        for task in tasks:
            carried = None if self._stage.first else torch.empty_like(self._shapes(task)[0], requires_grad=False,
                                                                         device=task.part.inputs_BL.device)
            if carried is not None:
                dist.recv(carried, group=self._group, group_src=self._group.rank() - 1)
            going = self._stage(carried, task)
            if not self._stage.last:
                dist.send(going.contiguous(), group=self._group, group_dst=self._group.rank() + 1)

    def _schedule_for(self, tasks: list[Task]) -> Schedule1F1B:
        tokens, count = tasks[0].part.inputs_BL.numel(), len(tasks)
        if self._schedule is None or self._schedule[0] != (tokens, count):
            stage = _TakingStage(self._runner, self._group, *self._shapes(tasks[0]))
            schedule = Schedule1F1B(stage, count, loss_fn=_given, scale_grads=False)
            self._schedule = (tokens, count), schedule
        return self._schedule[1]

    def _shapes(self, task: Task) -> tuple[Tensor, Tensor]:
        """Return what comes in and goes out, on the meta device."""
        config, dtype = self._stage.model.config, next(self._stage.model.parameters()).dtype
        width = config.num_streams + self._stage.carries_ahead
        carried = torch.empty(task.part.inputs_BL.numel(), width, config.hidden_size, dtype=dtype, device="meta",
                              requires_grad=True)
        number = torch.empty(1, device="meta")
        loss = torch.empty((), device="meta", requires_grad=True)
        return number if self._stage.first else carried, loss if self._stage.last else carried


def _given(loss: Tensor, target: Tensor) -> Tensor:
    """The last stage's output is the loss."""
    return loss


class _Runner(nn.Module):
    """What a pipeline stage calls: it finds the micro-batch by its number."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage
        self._tasks: list[Task] = []
        self._after: Callable[[], None] = lambda: None

    def begin(self, tasks: list[Task], after_forward: Callable[[], None]) -> None:
        """Take a step's micro-batches."""
        self._tasks, self._after = tasks, after_forward

    def forward(self, carried: Tensor, number: Tensor) -> Tensor:
        """Run the stage on micro-batch `number`; a first stage is handed the number as `carried`."""
        out: Tensor = self.stage(None if self.stage.first else carried, self._tasks[int(number)])
        self._after()
        return out


class _TakingStage(PipelineStage):
    """A stage that says when each micro-batch's backward is done, so that its gradients can be taken."""

    def __init__(self, runner: _Runner, group: dist.ProcessGroup, coming: Tensor, going: Tensor) -> None:
        device = next(runner.parameters()).device
        grads = None if going.dim() == 0 else (torch.empty_like(going),)
        coming_grads = (None,) if coming.dim() == 1 else (torch.empty_like(coming),)
        super().__init__(runner, group.rank(), group.size(), device, (coming,), (going,), grads, coming_grads, group)
        self.after_backward: Callable[[], None] = lambda: None

    def backward_one_chunk(self, *arguments: Any, **options: Any) -> None:
        """Run a micro-batch's backward."""
        super().backward_one_chunk(*arguments, **options)
        self.after_backward()
