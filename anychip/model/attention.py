"""What all kinds of attention share: how one is made from its spec, and what the indexer's loss needs of a pass.

Shape suffixes: T tokens, d hidden, H heads, C channels of a key, M rows of keys, I indexer channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..config.specs import IndexerSpec
from ..ops import Keys, Ops, Ranges
from .plan import LayerPlan
from .state import LayerCache
from .weight import Weight


class Watched(NamedTuple):
    """What the indexer's loss needs of a pass: attention's query, keys, sink (None: it has none) and scale, without
    gradients, and the indexer's query [T, H, I], weights [T, H] and keys [M, I] with gradients to its parameters alone.
    """

    query_THC: Tensor
    keys: Keys
    sink_H: Tensor | None
    scale: float
    index_query_THI: Tensor
    index_weight_TH: Tensor
    index_key_MI: Tensor


class Indexer(nn.Module):
    """A lightning indexer: picks the `topk` rows that each token attends to. How keys are made is a subclass's; `turn`
    is the form of its RoPE.

    Two switches for training: `dense` selects every visible row; with `watch` a pass that builds gradients keeps in
    `kept` what the indexer's loss needs, where the indexer selects (or where `dense` says it would not).
    """

    def __init__(self, spec: IndexerSpec, hidden: int, latent: int, **turn: bool) -> None:
        super().__init__()
        self.wq_b, self.weights_proj = Weight(spec.heads * spec.channels, latent), Weight(spec.heads, hidden)
        self.heads, self.topk, self.scale = spec.heads, spec.topk, spec.channels**-0.5 * spec.heads**-0.5
        self.turn = turn
        self.dense = self.watch = False
        self.kept: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, x_Td: Tensor, latent_Tr: Tensor, plan: LayerPlan, cache: LayerCache, ops: Ops) -> Ranges | Tensor:
        """Return the rows each token selects; every visible row while there are at most `topk`."""
        assert plan.visible is not None
        dense, self.kept = self.dense or plan.visible.max_count <= self.topk, None
        watch = self.watch and torch.is_grad_enabled() and (self.dense or not dense)
        if dense and cache.state is None and not watch:
            return plan.visible
        if watch:  # the indexer learns from its own loss, and nothing else from it
            x_Td, latent_Tr = x_Td.detach(), latent_Tr.detach()
        key_MI = self.keys(x_Td, plan, cache, ops)
        if dense and not watch:
            return plan.visible
        query_THI, weight_TH = self.queries(x_Td, latent_Tr, plan, ops)
        if watch:
            self.kept = query_THI, weight_TH, key_MI
        return plan.visible if dense else ops.index_topk(query_THI, weight_TH, key_MI, plan.visible, self.topk)

    def keys(self, x_Td: Tensor, plan: LayerPlan, cache: LayerCache, ops: Ops) -> Tensor:
        """Return all keys [M, I] that this pass may score, the new ones included."""
        raise NotImplementedError

    def queries(self, x_Td: Tensor, latent_Tr: Tensor, plan: LayerPlan, ops: Ops) -> tuple[Tensor, Tensor]:
        """Return queries [T, H, I] and the heads' weights [T, H], the scale in them."""
        query_THI = ops.linear(latent_Tr, self.wq_b.weight).unflatten(1, (self.heads, -1))
        query_THI = ops.rope(query_THI, plan.cos_TR, plan.sin_TR, **self.turn)
        return query_THI, ops.linear(x_Td, self.weights_proj.weight) * self.scale


class Attention(nn.Module):
    """One layer's attention; what differs is in its subclasses. `indexer` is None where every visible row is read."""

    def __init__(self) -> None:
        super().__init__()
        self.indexer: Indexer | None = None
        self.watched: Watched | None = None

    def forward(self, x_Td: Tensor, plan: LayerPlan, cache: LayerCache, ops: Ops) -> Tensor:
        """Return the sub-layer's output [T, d]."""
        raise NotImplementedError

    def watch(self, query_THC: Tensor, keys: Keys, sink_H: Tensor | None, scale: float) -> None:
        """Keep what the indexer's loss needs, where the indexer kept its part."""
        if self.indexer is None or self.indexer.kept is None:
            return
        assert keys.compressed_MC is not None
        detached = Keys(keys.window_NC.detach(), keys.window, keys.compressed_MC.detach(), keys.selected)
        sink_H = None if sink_H is None else sink_H.detach().clone()  # a sharded one is given back after the block
        self.watched = Watched(query_THC.detach(), detached, sink_H, scale, *self.indexer.kept)
        self.indexer.kept = None
