"""V4's attention sub-layer: shared K=V head, sliding window, compressed entries (CSA, HCA), grouped output.

Report section 2.3; parameter names are the checkpoint's. Shape suffixes: T tokens, d hidden, H heads, C head_dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..ops import Keys, Ops, Ranges
from .plan import LayerPlan
from .state import CSA, LayerCache


class Weight(nn.Module):
    """A named parameter called `weight`, as checkpoints spell it."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(*shape))


class Compressor(nn.Module):
    """Pools each closed window of `ratio` tokens into one entry of `channels` (CSA windows overlap)."""

    def __init__(self, config: ModelConfig, ratio: int, channels: int, name: str) -> None:
        super().__init__()
        width = channels * (2 if ratio == CSA else 1)
        self.wkv, self.wgate = Weight(width, config.hidden_size), Weight(width, config.hidden_size)
        self.norm = Weight(channels)
        self.ape = nn.Parameter(torch.empty(ratio, width))
        self.eps, self.name = config.rms_norm_eps, name

    def forward(self, x_Td: Tensor, plan: LayerPlan, cache: LayerCache, ops: Ops) -> Tensor:
        """Return all entries [M, channels] that this pass may read, the new ones included."""
        assert plan.pooling is not None
        pooling = plan.pooling
        value = cache.write(f"{self.name}.value", ops.linear(x_Td, self.wkv.weight))
        gate = cache.write(f"{self.name}.gate", ops.linear(x_Td, self.wgate.weight))
        pooled = ops.compress(value, gate, self.ape, pooling.first_E, pooling.previous_E)
        entries = ops.norm_rope(pooled, self.norm.weight, self.eps, pooling.cos_ER, pooling.sin_ER)
        return cache.write(f"{self.name}.entry", entries)


class Watched(NamedTuple):
    """What the indexer's loss needs of a pass: attention's query, keys and sink without gradients, and the indexer's
    query [T, H, I], weights [T, H] and keys [M, I] with gradients to the indexer's parameters alone."""

    query_THC: Tensor
    keys: Keys
    sink_H: Tensor
    index_query_THI: Tensor
    index_weight_TH: Tensor
    index_key_MI: Tensor


class Indexer(nn.Module):
    """The lightning indexer: picks the index_topk entries that each token attends to.

    Two switches for training: `dense` selects every visible entry; with `watch` a pass that builds gradients keeps
    in `kept` what the indexer's loss needs, where the indexer selects (or where `dense` says it would not).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        heads, channels = config.index_n_heads, config.index_head_dim
        self.wq_b = Weight(heads * channels, config.q_lora_rank)
        self.weights_proj = Weight(heads, config.hidden_size)
        self.compressor = Compressor(config, CSA, channels, "indexer")
        self.heads, self.topk, self.scale = heads, config.index_topk, channels**-0.5 * heads**-0.5
        self.dense = self.watch = False
        self.kept: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, x_Td: Tensor, latent_Tr: Tensor, plan: LayerPlan, cache: LayerCache, ops: Ops) -> Ranges | Tensor:
        """Return the rows each token selects; every visible entry while there are at most index_topk."""
        assert plan.visible is not None
        dense, self.kept = self.dense or plan.visible.max_count <= self.topk, None
        watch = self.watch and torch.is_grad_enabled() and (self.dense or not dense)
        if dense and cache.state is None and not watch:
            return plan.visible
        if watch:  # the indexer learns from its own loss, and nothing else from it
            x_Td, latent_Tr = x_Td.detach(), latent_Tr.detach()
        key_MI = self.compressor(x_Td, plan, cache, ops)
        if dense and not watch:
            return plan.visible
        query_THI = ops.linear(latent_Tr, self.wq_b.weight).view(x_Td.shape[0], self.heads, -1)
        query_THI = ops.rope(query_THI, plan.cos_TR, plan.sin_TR)
        weight_TH = ops.linear(x_Td, self.weights_proj.weight) * self.scale
        if watch:
            self.kept = query_THI, weight_TH, key_MI
        return plan.visible if dense else ops.index_topk(query_THI, weight_TH, key_MI, plan.visible, self.topk)


class Attention(nn.Module):
    """One layer's attention. `ratio` 0: window only; 4: CSA with indexer; 128: HCA."""

    def __init__(self, config: ModelConfig, ratio: int) -> None:
        super().__init__()
        d, heads, channels = config.hidden_size, config.num_attention_heads, config.head_dim
        self.wq_a, self.q_norm = Weight(config.q_lora_rank, d), Weight(config.q_lora_rank)
        self.wq_b = Weight(heads * channels, config.q_lora_rank)
        self.wkv, self.kv_norm = Weight(channels, d), Weight(channels)
        self.wo_a = Weight(config.o_groups * config.o_lora_rank, heads * channels // config.o_groups)
        self.wo_b = Weight(d, config.o_groups * config.o_lora_rank)
        self.attn_sink = nn.Parameter(torch.empty(heads))
        self.compressor = Compressor(config, ratio, channels, "compressor") if ratio else None
        self.indexer = Indexer(config) if ratio == CSA else None
        self.heads, self.groups, self.eps = heads, config.o_groups, config.rms_norm_eps
        self.watched: Watched | None = None

    def forward(self, x_Td: Tensor, plan: LayerPlan, cache: LayerCache, ops: Ops) -> Tensor:
        """Return the sub-layer's output [T, d]."""
        tokens = x_Td.shape[0]
        latent_Tr = ops.rms_norm(ops.linear(x_Td, self.wq_a.weight), self.q_norm.weight, self.eps)
        query_THC = ops.linear(latent_Tr, self.wq_b.weight).view(tokens, self.heads, -1)
        query_THC = ops.norm_rope(query_THC, None, self.eps, plan.cos_TR, plan.sin_TR)
        entry_TC = ops.linear(x_Td, self.wkv.weight)
        entry_TC = ops.norm_rope(entry_TC, self.kv_norm.weight, self.eps, plan.cos_TR, plan.sin_TR)
        keys = Keys(cache.write("window", entry_TC), plan.window, *self._long_range(x_Td, latent_Tr, plan, cache, ops))
        self._watch(query_THC, keys)
        out_THC = ops.attention(query_THC, keys, self.attn_sink)
        out_THC = ops.rope(out_THC, plan.cos_TR, plan.sin_TR, inverse=True)
        mixed = ops.grouped_linear(out_THC.view(tokens, self.groups, -1), self.wo_a.weight)
        return ops.linear(mixed, self.wo_b.weight)

    def _watch(self, query_THC: Tensor, keys: Keys) -> None:
        """Keep what the indexer's loss needs, where the indexer kept its part."""
        if self.indexer is None or self.indexer.kept is None:
            return
        assert keys.compressed_MC is not None
        detached = Keys(keys.window_NC.detach(), keys.window, keys.compressed_MC.detach(), keys.selected)
        self.watched = Watched(query_THC.detach(), detached, self.attn_sink.detach().clone(),
                               *self.indexer.kept)  # a copy: a sharded sink is given back after the block
        self.indexer.kept = None

    def _long_range(
        self, x_Td: Tensor, latent_Tr: Tensor, plan: LayerPlan, cache: LayerCache, ops: Ops
    ) -> tuple[Tensor | None, Ranges | Tensor | None]:
        if self.compressor is None:
            return None, None
        entries = self.compressor(x_Td, plan, cache, ops)
        if self.indexer is None:
            return entries, plan.visible
        return entries, self.indexer(x_Td, latent_Tr, plan, cache, ops)
