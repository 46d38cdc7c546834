"""Sums in one order, whatever the number of ranks: a binary tree over a step's parts.

Rounding depends on the order of a sum, and training amplifies rounding. So the parts of a step (micro-batches, blocks
of tokens) are leaves of a tree, ranks hold whole subtrees wherever their number is a power of two, and the bits of a
gradient do not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter


def tree_sum(parts: Sequence[Tensor]) -> Tensor:
    """Return ((p0 + p1) + (p2 + p3)) + ...: neighbours first; an odd last one waits for the next round."""
    parts = list(parts)
    while len(parts) > 1:
        pairs = [parts[at] + parts[at + 1] for at in range(0, len(parts) - 1, 2)]
        parts = pairs + parts[len(parts) - len(parts) % 2 :]
    return parts[0]


class RunningTree:
    """`tree_sum` of tensors that come one by one; it keeps as many as the logarithm of their number."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, Tensor]] = []  # (leaves, sum), most leaves first

    def add(self, part: Tensor) -> None:
        """Take the next part; it may be kept and written to."""
        leaves = 1
        while self._kept and self._kept[-1][0] == leaves:
            before, part = self._kept.pop()[1], part
            part = before.add_(part)
            leaves *= 2
        self._kept.append((leaves, part))

    def total(self) -> Tensor:
        """Return the sum and begin anew."""
        total = self._kept.pop()[1]
        while self._kept:  # what an odd number leaves: the later, smaller sums are added from the right
            total = self._kept.pop()[1].add_(total)
        return total


def gather_parts(tensor: Tensor, group: dist.ProcessGroup) -> list[Tensor]:
    """Return the ranks' tensors (of one shape) in rank order."""
    parts = [torch.empty_like(tensor) for _ in range(group.size())]
    dist.all_gather(parts, tensor.contiguous(), group=group)
    return parts


def all_sum(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return the tree sum over the ranks of a group, the same bits on all of them.

    Each rank adds one slice of all ranks' tensors and hands it round: as many bytes as an all-reduce.
    """
    ranks = group.size()
    if ranks == 1:
        return tensor
    flat = tensor.flatten()
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % ranks)).contiguous()
    mine = torch.empty(padded.numel() // ranks, dtype=tensor.dtype, device=tensor.device)
    TreeReduceScatter()(mine, padded, group, None)
    return torch.cat(gather_parts(mine, group))[: flat.numel()].view_as(tensor)


class TreeReduceScatter(ReduceScatter):
    """FSDP's reduce-scatter, as an exchange of slices and a tree sum in rank order."""

    def allocate(self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return memory for a buffer."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any,
                 async_op: bool = False) -> None:
        """Write the sum over ranks of this rank's slice of `input_tensor`."""
        got = torch.empty_like(input_tensor)
        dist.all_to_all_single(got, input_tensor.contiguous(), group=group)
        output_tensor.copy_(tree_sum(got.view(group.size(), -1).unbind()))


class Gradients:
    """The gradients of a step: taken from the parameters after each micro-batch, put back as their tree sums."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = list(model.parameters())
        self._sums: dict[nn.Parameter, RunningTree] = {}

    def take(self) -> None:
        """Take what one micro-batch's backward left."""
        for parameter in self._parameters:
            if parameter.grad is not None:
                self._sums.setdefault(parameter, RunningTree()).add(parameter.grad)
                parameter.grad = None

    def finish(self) -> None:
        """Give every parameter that got a gradient its sum."""
        for parameter, tree in self._sums.items():
            parameter.grad = tree.total()
        self._sums = {}
