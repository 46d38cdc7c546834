"""V4's attention sub-layer: shared K=V head, sliding window, compressed entries (CSA, HCA), grouped output.

Report section 2.3; parameter names are the checkpoint's. Shape suffixes: T tokens, d hidden, H heads, C head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config.specs import CSA, CompressedAttention, IndexerSpec
from ..ops import Keys, Ops, Ranges
from .attention import Attention, Indexer
from .plan import LayerPlan
from .state import LayerCache
from .weight import Weight


class Compressor(nn.Module):
    """Pools each closed window of `ratio` tokens into one entry of `channels` (CSA windows overlap)."""

    def __init__(self, hidden: int, ratio: int, channels: int, eps: float, name: str) -> None:
        super().__init__()
        width = channels * (2 if ratio == CSA else 1)
        self.wkv, self.wgate = Weight(width, hidden), Weight(width, hidden)
        self.norm = Weight(channels)
        self.ape = nn.Parameter(torch.empty(ratio, width))
        self.eps, self.name = eps, name

    def forward(self, x_Td: Tensor, plan: LayerPlan, cache: LayerCache, ops: Ops) -> Tensor:
        """Return all entries [M, channels] that this pass may read, the new ones included."""
        assert plan.pooling is not None
        pooling = plan.pooling
        value = cache.write(f"{self.name}.value", ops.linear(x_Td, self.wkv.weight))
        gate = cache.write(f"{self.name}.gate", ops.linear(x_Td, self.wgate.weight))
        pooled = ops.compress(value, gate, self.ape, pooling.first_E, pooling.previous_E)
        entries = ops.norm_rope(pooled, self.norm.weight, self.eps, pooling.cos_ER, pooling.sin_ER)
        return cache.write(f"{self.name}.entry", entries)


class PooledIndexer(Indexer):
    """CSA's indexer: its keys are pooled as attention's entries are."""

    def __init__(self, spec: IndexerSpec, hidden: int, latent: int, eps: float) -> None:
        super().__init__(spec, hidden, latent)
        self.compressor = Compressor(hidden, CSA, spec.channels, eps, "indexer")

    def keys(self, x_Td: Tensor, plan: LayerPlan, cache: LayerCache, ops: Ops) -> Tensor:
        entries: Tensor = self.compressor(x_Td, plan, cache, ops)
        return entries


class Compressed(Attention):
    """One layer's attention. `ratio` 0: window only; 4: CSA with indexer; 128: HCA."""

    def __init__(self, spec: CompressedAttention, hidden: int, eps: float) -> None:
        super().__init__()
        heads, channels, latent = spec.heads, spec.channels, spec.q_lora_rank
        self.wq_a, self.q_norm = Weight(latent, hidden), Weight(latent)
        self.wq_b = Weight(heads * channels, latent)
        self.wkv, self.kv_norm = Weight(channels, hidden), Weight(channels)
        self.wo_a = Weight(spec.o_groups * spec.o_lora_rank, heads * channels // spec.o_groups)
        self.wo_b = Weight(hidden, spec.o_groups * spec.o_lora_rank)
        self.attn_sink = nn.Parameter(torch.empty(heads))
        self.compressor = Compressor(hidden, spec.ratio, channels, eps, "compressor") if spec.ratio else None
        self.indexer = PooledIndexer(spec.indexer, hidden, latent, eps) if spec.indexer else None
        self.heads, self.groups, self.eps = heads, spec.o_groups, eps

    def forward(self, x_Td: Tensor, plan: LayerPlan, cache: LayerCache, ops: Ops) -> Tensor:
        """Return the sub-layer's output [T, d]."""
        tokens = x_Td.shape[0]
        latent_Tr = ops.rms_norm(ops.linear(x_Td, self.wq_a.weight), self.q_norm.weight, self.eps)
        query_THC = ops.linear(latent_Tr, self.wq_b.weight).view(tokens, self.heads, -1)
        query_THC = ops.norm_rope(query_THC, None, self.eps, plan.cos_TR, plan.sin_TR)
        entry_TC = ops.linear(x_Td, self.wkv.weight)
        entry_TC = ops.norm_rope(entry_TC, self.kv_norm.weight, self.eps, plan.cos_TR, plan.sin_TR)
        keys = Keys(cache.write("window", entry_TC), plan.window, *self._long_range(x_Td, latent_Tr, plan, cache, ops))
        self.watch(query_THC, keys, self.attn_sink, query_THC.shape[-1] ** -0.5)
        out_THC = ops.attention(query_THC, keys, self.attn_sink)
        out_THC = ops.rope(out_THC, plan.cos_TR, plan.sin_TR, inverse=True)
        mixed = ops.grouped_linear(out_THC.view(tokens, self.groups, -1), self.wo_a.weight)
        return ops.linear(mixed, self.wo_b.weight)

    def _long_range(
        self, x_Td: Tensor, latent_Tr: Tensor, plan: LayerPlan, cache: LayerCache, ops: Ops
    ) -> tuple[Tensor | None, Ranges | Tensor | None]:
        if self.compressor is None:
            return None, None
        entries = self.compressor(x_Td, plan, cache, ops)
        if self.indexer is None:
            return entries, plan.visible
        return entries, self.indexer(x_Td, latent_Tr, plan, cache, ops)
