"""Experts spread over ranks: each token's rows travel to the owners of its experts and back.

An owner works out each source rank's rows by calls of their own, so that they are the very calls that a rank with all
experts would make. Shape suffixes: T tokens, d hidden, K experts a token, P = T * K (token, choice) pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..ops import Ops
from .exchange import exchange_rows, owner_copies

Banks = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ExpertExchange:
    """The ranks that share the experts: rank r of `group` owns the r-th run of `per_rank`."""

    group: dist.ProcessGroup
    context: dist.ProcessGroup
    per_rank: int

    def copies(self, banks: Banks, blocks: int) -> list[list[Banks]]:
        """Return the owned banks for each block held and each source rank."""
        w13, w2 = (owner_copies(bank.to_local() if isinstance(bank, DTensor) else bank, blocks, self.group.size(),
                                self.context) for bank in banks)
        return [list(zip(*pair, strict=True)) for pair in zip(w13, w2, strict=True)]

    def run(self, ops: Ops, tokens: tuple[Tensor, Tensor, Tensor], banks: list[Banks], limit: float) -> Tensor:
        """Return `ops.experts` of this rank's tokens (x [T, d], ids [T, K], weights [T, K]), done by the owners."""
        x_Td, ids_TK, weight_TK = tokens
        order_P, sent, got = self._routes(ids_TK)
        local_P = (ids_TK.flatten() % self.per_rank)[order_P]
        rows = torch.cat((_Spread.apply(x_Td, ids_TK.shape[1]), weight_TK.reshape(-1, 1).to(x_Td.dtype)), 1)[order_P]
        arrived = exchange_rows(rows, sent, got, self.group)
        ids = exchange_rows(local_P, sent, got, self.group)
        done = [_experts(ops, part, local, bank, limit)
                for part, local, bank in zip(arrived.split(got), ids.split(got), banks, strict=True)]
        back = exchange_rows(torch.cat(done), got, sent, self.group)
        pairs = torch.empty_like(back).index_copy(0, order_P, back)
        return _in_order(pairs.view(*ids_TK.shape, -1))

    def _routes(self, ids_TK: Tensor) -> tuple[Tensor, list[int], list[int]]:
        """Return the pairs sorted by owner, and how many go to and come from each rank."""
        owner_P = ids_TK.flatten() // self.per_rank
        ranks = self.group.size()
        sent = torch.zeros(ranks, dtype=torch.int64, device=ids_TK.device)
        sent.scatter_add_(0, owner_P, torch.ones_like(owner_P))
        got = torch.empty_like(sent)
        dist.all_to_all_single(got, sent, group=self.group)
        return owner_P.argsort(stable=True), sent.tolist(), got.tolist()


def _experts(ops: Ops, rows: Tensor, ids_P: Tensor, banks: Banks, limit: float) -> Tensor:
    if not rows.shape[0]:
        return rows[:, :-1]  # still part of the graph: the exchange back must be made by every rank
    return ops.experts(rows[:, :-1].contiguous(), ids_P[:, None], rows[:, -1:].float().contiguous(), banks, limit)


class _Spread(torch.autograd.Function):
    """Repeat each token's row for each of its choices; gradients add up in the order of the choices."""

    @staticmethod
    def forward(ctx: object, x_Td: Tensor, choices: int) -> Tensor:
        ctx.choices = choices  # type: ignore[attr-defined]
        return x_Td.repeat_interleave(choices, 0)

    @staticmethod
    def backward(ctx: object, grad_Pd: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _in_order(grad_Pd.unflatten(0, (-1, ctx.choices))), None  # type: ignore[attr-defined]


def _in_order(rows_TKd: Tensor) -> Tensor:
    """Return the sum over choices, first to last."""
    first, *rest = rows_TKd.unbind(1)
    for row in rest:
        first = first + row
    return first
