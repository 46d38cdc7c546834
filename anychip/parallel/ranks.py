"""A model spread over ranks: sharded parameters, owned experts, pipeline stages and blocks of sequences at once."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from ..errors import NotSupported
from ..model import Transformer
from ..model.block import Block
from ..model.moe import Experts, MoE
from .batch import Batch
from .context import Blocks
from .degrees import StepShape
from .expert import ExpertExchange
from .pipeline import Pipeline
from .placement import Losses, Objective, RouterLoads, local_part, square_sum
from .rank_ops import Copies, RankOps
from .routes import Routes, named, of_part, place
from .stage import Stage, Task, cut_model
from .sums import Gradients, TreeReduceScatter, all_sum
from .world import World


class Ranks:
    """This rank's place in a layout. Build it on every rank with the same whole model; it keeps its part. Of a model on
    the meta device it makes room for its part alone, which `fill` then fills.

    Micro-batch m of a step belongs to data rank m mod `num_data`, and gradients are summed in a tree over micro-batches
    and blocks: with numbers that are powers of two they have the bits of one process that runs the same ones.
    Raises ConfigError where the layout does not fit, NotSupported for a model that is not on the world's device.
    """

    def __init__(self, model: Transformer, world: World, settings: StepShape) -> None:
        world.degrees.check(model.config, settings)
        if model.embed.weight.device.type not in (world.mesh.device_type, "meta"):
            raise NotSupported(f"the model lies on {model.embed.weight.device}, the ranks are "
                               f"{world.mesh.device_type}: move it there first")
        self.world, self.model = world, model
        self.micro_batches = settings.micro_batches
        self.blocks = Blocks.of_rank(settings.context_blocks, world.group("context"))
        weights = Copies(self.blocks.held, apart=self.blocks.total > 1)
        model.ops = RankOps(model.ops, weights, self._own_experts())
        cut_model(model, world.at("pipeline"), world.degrees.pipeline)
        self.stage = Stage(model, self.blocks, weights, (world.at("pipeline"), world.degrees.pipeline))
        self._shard()
        if any(parameter.is_meta for parameter in model.parameters()):
            self.stage.to_empty(device=world.mesh.device_type)
        self._layers = {f"layers.{block.index}.ffn" for block in model.modules() if isinstance(block, Block)}
        self._loads, self._grads = RouterLoads(), Gradients(model)
        self._pipeline = Pipeline(self.stage, world.group("pipeline")) if world.degrees.pipeline > 1 else None

    @property
    def rank(self) -> int:
        return self.world.rank

    @property
    def num_ranks(self) -> int:
        return self.world.degrees.num_ranks

    @property
    def is_writer(self) -> bool:
        return self.rank == 0

    def _own_experts(self) -> ExpertExchange | None:
        """Keep only the experts that this rank owns, as DTensors over the expert axis."""
        ranks = self.world.degrees.expert
        mixture = self.model.config.mixture
        if ranks == 1 or mixture is None:
            return None
        for module in self.model.modules():
            if isinstance(module, Experts):
                for name, bank in list(module.named_parameters()):
                    owned = distribute_tensor(bank.detach(), self.world.mesh["expert"], [Shard(0)], src_data_rank=None)
                    module.register_parameter(name, nn.Parameter(owned))
        return ExpertExchange(self.world.group("expert"), self.world.group("context"),
                              mixture.num_experts // ranks)

    def _owned(self) -> list[nn.Parameter]:
        """Return the expert banks that this rank owns; none where experts are not spread."""
        if self.world.degrees.expert == 1:
            return []
        return [p for module in self.model.modules() if isinstance(module, Experts) for p in module.parameters()]

    def _shard(self) -> None:
        """Shard all other parameters over the stage's ranks (FSDP2), block by block."""
        mesh = self.world.data
        if mesh.size() == 1:
            return
        owned = set(self._owned())
        blocks: list[nn.Module] = [module for module in self.model.layers.modules() if isinstance(module, Block)]
        for module in (*blocks, self.stage):
            wrapped: FSDPModule = fully_shard(module, mesh=mesh, ignored_params=owned)
            wrapped.set_gradient_divide_factor(1.0)
            wrapped.set_force_sum_reduction_for_comms(True)  # a factor of one as a premultiplied sum is not in gloo
            wrapped.set_custom_reduce_scatter(TreeReduceScatter())
            # an indexer's own loss reaches its parameters before the block's gradient does, which would gather them
            if isinstance(module, Block) and module.attn.indexer is not None:
                wrapped.set_reshard_after_forward(False)

    def step(self, batch: Batch, objective: Objective, routes: Routes | None = None) -> Losses:
        """Run this rank's micro-batches and blocks of them; return the whole step's losses."""
        return self._run(batch, self._tasks(batch, objective, self.world.data_index, routes))

    def again(self, batch: Batch, objective: Objective, routes: Routes | None = None) -> Losses:
        return self._run(batch, self._tasks(batch, objective, self.world.partner, self._everyones(routes)))

    def _tasks(self, batch: Batch, objective: Objective, rank: int, routes: Routes | None) -> list[Task]:
        """Return the micro-batches of data rank `rank`."""
        ranks, whole = self.world.degrees.num_data, self.blocks.all().cut(batch)
        mine = list(enumerate(batch.split(self.micro_batches)))[rank::ranks]
        return [Task(number, self.blocks.cut(part), whole, objective, of_part(routes, number, self.blocks.range))
                for number, part in mine]

    @torch.no_grad()
    def routes(self, batch: Batch, objective: Objective) -> Routes:
        tasks = self._tasks(batch, objective, self.world.data_index, None)
        for task in tasks:
            task.chosen = {}
        if self._pipeline is not None:
            self._pipeline.forward(tasks)
        else:
            for task in tasks:
                self.stage(None, task)
        return {name: ids for task in tasks for name, ids in named(task.chosen or {}, task.number,
                                                                   self.blocks.range).items()}

    def owns(self, route: str) -> bool:
        layer, micro_batch, block = place(route)
        return (micro_batch % self.world.degrees.num_data == self.world.data_index and block in self.blocks.range
                and layer in self._layers)

    def _everyones(self, routes: Routes | None) -> Routes | None:
        """Return the routes of all data ranks of this stage: a rank that does another's work needs that one's."""
        if routes is None:
            return None
        group = self.world.data.get_group()
        found: list[Any] = [None] * group.size()
        dist.all_gather_object(found, routes, group=group)
        return {name: ids for of_rank in found for name, ids in of_rank.items()}

    def _run(self, batch: Batch, tasks: list[Task]) -> Losses:
        self._loads.clear()
        if self._pipeline is not None:
            self._pipeline.run(tasks, self._after_forward, self._after_backward)
        else:
            for task in tasks:
                loss = self.stage(None, task)
                self._after_forward()
                loss.backward()
                self._after_backward()
        self._grads.finish()
        return self._global(tasks)

    def _after_forward(self) -> None:
        self._loads.add(self.model)

    def _after_backward(self) -> None:
        """Add up the owned experts' gradients over the ranks that own the same ones, and take all gradients."""
        for parameter in self._owned():
            if isinstance(parameter.grad, DTensor):
                local = parameter.grad.to_local()
                for axis in ("context", "shard"):
                    local.copy_(all_sum(local, self.world.group(axis)))
        self._grads.take()

    def _global(self, tasks: list[Task]) -> Losses:
        """Add up the losses of all ranks, exactly, so that it does not matter who had which."""
        found = [task.losses for task in tasks if task.losses is not None]
        own = {name: [float(losses.named[name]) for losses in found if name in losses.named]
               for name in sorted({name for losses in found for name in losses.named})}
        own["total"] = [float(losses.total) for losses in found]
        everyone: list[Any] = [None] * self.num_ranks
        dist.all_gather_object(everyone, own)
        names = sorted({name for losses in everyone for name in losses})
        sums = {name: torch.tensor(math.fsum(value for losses in everyone for value in losses.get(name, ())),
                                   dtype=torch.float32, device=tasks[0].part.inputs_BL.device) for name in names}
        return Losses(sums.pop("total"), sums)

    def loads(self) -> list[tuple[MoE, Tensor]]:
        counts = self._loads.of_layers()
        if not counts:
            return []
        total = self.sum(torch.stack([count for _, count in counts]))
        return list(zip((layer for layer, _ in counts), total.unbind(), strict=True))

    def sum(self, tensor: Tensor) -> Tensor:
        return all_sum(tensor, self.world.data.get_group())

    def grad_norm(self) -> Tensor:
        owned, device = set(self._owned()), next(self.model.parameters()).device
        first = self.world.at("shard") == 0 and self.world.at("context") == 0  # experts' gradients are on all of these
        grads = [p.grad for p in self.model.parameters() if p.grad is not None and (first or p not in owned)]
        total = square_sum([local_part(grad) for grad in grads], device)
        dist.all_reduce(total)
        return total.sqrt().float()

    def full(self, tensor: Tensor) -> Tensor:
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def local(self, whole: Tensor, like: Tensor) -> Tensor:
        if not isinstance(like, DTensor):
            return whole
        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)

    def describe(self) -> str:
        blocks = f", sequences in {self.blocks.total} blocks" if self.blocks.total > 1 else ""
        who = f"{self.num_ranks} processes ({self.world.degrees.describe()})" if self.num_ranks > 1 else "one process"
        return f"{who}, {self.micro_batches} micro-batch{'es' * (self.micro_batches > 1)} a step{blocks}"
