"""Exchanges between ranks that gradients flow back through. All sums over ranks or copies are tree sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .sums import gather_parts, tree_sum


def copies(tensor: Tensor, count: int) -> tuple[Tensor, ...]:
    """Return `count` views of a tensor whose gradients are tree-summed, whatever the order they arrive in."""
    if count == 1 or not (torch.is_grad_enabled() and tensor.requires_grad):
        return (tensor,) * count
    views: tuple[Tensor, ...] = _Copies.apply(tensor, count)
    return views


class _Copies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, count: int) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for _ in range(count))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return tree_sum(grads), None


def owner_copies(bank: Tensor, blocks: int, sources: int, context: dist.ProcessGroup) -> list[tuple[Tensor, ...]]:
    """Return views of an owned expert bank by block and source rank: [blocks][sources].

    Their gradients are summed as those of a rank that holds all experts are: over the blocks of a sequence first (all
    context ranks' blocks), then over the sources. The sum goes to the first context rank; the others get zeros.
    """
    if not (torch.is_grad_enabled() and bank.requires_grad):
        return [(bank,) * sources] * blocks
    views: tuple[Tensor, ...] = _OwnerCopies.apply(bank, blocks, sources, context)
    return [views[at * sources : (at + 1) * sources] for at in range(blocks)]


class _OwnerCopies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, bank: Tensor, blocks: int, sources: int, context: dist.ProcessGroup) -> tuple[Tensor, ...]:
        ctx.sources, ctx.context = sources, context
        return tuple(bank.view_as(bank) for _ in range(blocks * sources))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        sources, context = ctx.sources, ctx.context
        sums = [tree_sum(grads[source::sources]) for source in range(sources)]
        if context.size() > 1:
            sums = [tree_sum(gather_parts(part, context)) for part in sums]
        total = tree_sum(sums)
        return (total if context.rank() == 0 else torch.zeros_like(total)), None, None, None


def exchange_rows(rows: Tensor, sent: Sequence[int], got: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """Send `sent[r]` rows to each rank r, in order, and return the rows received: `got[r]` of rank r."""
    received: Tensor = _Rows.apply(rows, list(sent), list(got), group)
    return received


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], got: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.splits = sent, got, group
        return _all_to_all(rows, sent, got, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        sent, got, group = ctx.splits
        return _all_to_all(grad, got, sent, group), None, None, None


def _all_to_all(rows: Tensor, sent: list[int], got: list[int], group: dist.ProcessGroup) -> Tensor:
    received = rows.new_empty((sum(got), *rows.shape[1:]))
    dist.all_to_all_single(received, rows.contiguous(), got, sent, group=group)
    return received


def from_previous(tails: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Return, for each block held [blocks, ...], what the block before it gave; zeros for the first of all."""
    shifted: Tensor = _Shift.apply(tails, group)
    return shifted


class _Shift(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tails: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        return torch.cat((_neighbour(tails[-1:], group, 1), tails[:-1]))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return torch.cat((grad[1:], _neighbour(grad[:1], ctx.group, -1))), None


def _neighbour(mine: Tensor, group: dist.ProcessGroup | None, step: int) -> Tensor:
    """Send `mine` to the rank `step` further and return what the rank `step` before sends; zeros beyond the ends."""
    if group is None or group.size() == 1:
        return torch.zeros_like(mine)
    ranks, rank = group.size(), group.rank()
    sent, got = [int(rank + step == r) for r in range(ranks)], [int(rank - step == r) for r in range(ranks)]
    received = _all_to_all(mine[: sum(sent)], sent, got, group)
    return received if sum(got) else torch.zeros_like(mine)


def from_all(entries: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Return, for each block held, the entries of all blocks [blocks held, all blocks, ...] of [blocks held, ...]."""
    gathered: Tensor = _Gather.apply(entries, group)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, entries: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        whole = entries if group is None or group.size() == 1 else torch.cat(gather_parts(entries, group))
        return whole[None].expand(entries.shape[0], *whole.shape).contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        """Each block's entries get the tree sum, over the blocks that read them, of their gradients."""
        held, group = grad.shape[0], ctx.group
        if group is None or group.size() == 1:
            return tree_sum(grad.unbind()), None
        ranks = group.size()
        sent = grad.unflatten(1, (ranks, held)).transpose(0, 1).contiguous()  # [owner, reader block, own block, ...]
        got = torch.empty_like(sent)
        dist.all_to_all_single(got, sent, group=group)
        return tree_sum(got.flatten(0, 1).unbind()), None
