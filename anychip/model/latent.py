"""V3's attention sub-layer (MLA), with V3.2's and GLM-5's indexer (DSA) where the spec has one.

A token's entry is its normalised latent and a rotated key that all heads share. In training each head's keys and values
are worked out of the entries; with a state, or where an indexer selects, queries are turned into the entries' space
instead ("absorbed": the same numbers), and the state holds entries alone. Parameter names are DeepSeek's. Shape
suffixes: T tokens, d hidden, H heads, N cached rows, r latent, C = r + rotated channels, I indexer channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config.specs import IndexerSpec, LatentAttention
from ..errors import NotSupported
from ..ops import Keys, Ops, Ranges
from .attention import Attention, Indexer
from .plan import LayerPlan
from .state import LayerCache
from .weight import Biased, Weight

_INDEX_EPS = 1e-6  # of the indexer's LayerNorm: the publisher's code


class TokenIndexer(Indexer):
    """DSA's indexer: one key a token."""

    def __init__(self, spec: IndexerSpec, hidden: int, latent: int) -> None:
        super().__init__(spec, hidden, latent, half=spec.half_split, first=True)
        self.wk, self.k_norm = Weight(spec.channels, hidden), Biased(spec.channels)

    def keys(self, x_Td: Tensor, plan: LayerPlan, cache: LayerCache, ops: Ops) -> Tensor:
        key_TI = ops.layer_norm(ops.linear(x_Td, self.wk.weight), self.k_norm.weight, self.k_norm.bias, _INDEX_EPS)
        return cache.write("indexer.key", ops.rope(key_TI, plan.cos_TR, plan.sin_TR, **self.turn))


class Latent(Attention):
    """One layer's attention over all tokens so far, or those that an indexer picks."""

    def __init__(self, spec: LatentAttention, hidden: int, eps: float) -> None:
        super().__init__()
        query, latent, rank = spec.heads * (spec.nope + spec.rope.channels), spec.q_lora_rank, spec.kv_lora_rank
        if latent is None:
            self.wq = Weight(query, hidden)
        else:
            self.wq_a, self.q_norm, self.wq_b = Weight(latent, hidden), Weight(latent), Weight(query, latent)
        self.wkv_a, self.kv_norm = Weight(rank + spec.rope.channels, hidden), Weight(rank)
        self.wkv_b = Weight(spec.heads * (spec.nope + spec.value), rank)
        self.wo = Weight(hidden, spec.heads * spec.value)
        if spec.indexer is not None and not spec.indexer.shared:
            assert latent is not None
            self.indexer = TokenIndexer(spec.indexer, hidden, latent)
        self.spec, self.eps = spec, spec.latent_eps

    def forward(self, x_Td: Tensor, plan: LayerPlan, cache: LayerCache, ops: Ops) -> Tensor:
        """Return the sub-layer's output [T, d]."""
        query_THC, latent_Tr = self._query(x_Td, plan, ops)
        entry_TC = self._entry(x_Td, plan, ops)
        rows = self._rows(x_Td, latent_Tr, plan, cache, ops)
        entry_NC = cache.write("entry", entry_TC)
        if cache.state is None and isinstance(rows, Ranges) and not self._watches:
            out_THV = self._by_head(query_THC, entry_NC, rows, ops)
        else:
            out_THV = self._absorbed(query_THC, entry_NC, rows, ops)
        return ops.linear(out_THV.flatten(1), self.wo.weight)

    @property
    def _watches(self) -> bool:
        """Whether the indexer's loss needs this pass: it wants the entries' space, and its rows apart from a window."""
        return self.indexer is not None and self.indexer.kept is not None

    def _query(self, x_Td: Tensor, plan: LayerPlan, ops: Ops) -> tuple[Tensor, Tensor]:
        """Return each head's query, its last channels rotated, and the latent that an indexer reads (else the input).
        """
        if self.spec.q_lora_rank is None:
            latent_Tr, matrix = x_Td, self.wq
        else:
            latent_Tr = ops.rms_norm(ops.linear(x_Td, self.wq_a.weight), self.q_norm.weight, self.eps)
            matrix = self.wq_b
        query_THC = ops.linear(latent_Tr, matrix.weight).unflatten(1, (self.spec.heads, -1))
        return ops.rope(query_THC, plan.cos_TR, plan.sin_TR), latent_Tr

    def _entry(self, x_Td: Tensor, plan: LayerPlan, ops: Ops) -> Tensor:
        latent_Tr, key_TR = ops.linear(x_Td, self.wkv_a.weight).split(
            (self.spec.kv_lora_rank, self.spec.rope.channels), 1)
        latent_Tr = ops.rms_norm(latent_Tr, self.kv_norm.weight, self.eps)
        return ops.rope(torch.cat((latent_Tr, key_TR), 1), plan.cos_TR, plan.sin_TR)

    def _rows(self, x_Td: Tensor, latent_Tr: Tensor, plan: LayerPlan, cache: LayerCache, ops: Ops) -> Ranges | Tensor:
        spec = self.spec.indexer
        if spec is None:
            return plan.window
        if self.indexer is None:
            if spec.source not in plan.chosen:
                raise NotSupported(f"layer {cache.layer} takes the rows that the indexer of layer {spec.source} picks, "
                                   "and that did not run here: cut the model before a layer with an indexer of its own")
            return plan.chosen[spec.source]
        rows: Ranges | Tensor = self.indexer(x_Td, latent_Tr, plan, cache, ops)
        if spec.reused:
            plan.chosen[cache.layer] = rows
        return rows

    def _by_head(self, query_THC: Tensor, entry_NC: Tensor, rows: Ranges, ops: Ops) -> Tensor:
        """Attention with each head's own keys and values; returns [T, H, V]."""
        spec = self.spec
        latent_Nr, turned_NR = entry_NC.split((spec.kv_lora_rank, spec.rope.channels), 1)
        both_NHC = ops.linear(latent_Nr, self.wkv_b.weight).unflatten(1, (spec.heads, -1))
        key_NHC, value_NHV = both_NHC.split((spec.nope, spec.value), 2)
        key_NHC = torch.cat((key_NHC, turned_NR[:, None].expand(-1, spec.heads, -1)), 2)
        return ops.grouped_attention(query_THC, key_NHC, value_NHV, rows, spec.scale)

    def _absorbed(self, query_THC: Tensor, entry_NC: Tensor, rows: Ranges | Tensor, ops: Ops) -> Tensor:
        """Attention over the entries, with wkv_b taken into the query and applied to the result; returns [T, H V]."""
        spec = self.spec
        key_HCr, value_HVr = self.wkv_b.weight.unflatten(0, (spec.heads, -1)).split((spec.nope, spec.value), 1)
        plain_THC, turned_THR = query_THC.split((spec.nope, spec.rope.channels), 2)
        query_THr = ops.grouped_linear(plain_THC, key_HCr.transpose(1, 2)).unflatten(1, (spec.heads, -1))
        query_THC = torch.cat((query_THr, turned_THR), 2)
        plain = isinstance(rows, Ranges) and not self._watches
        keys = Keys(entry_NC, rows) if plain else Keys.chosen(entry_NC, rows)  # type: ignore[arg-type]
        self.watch(query_THC, keys, None, spec.scale)
        out_THr = ops.attention(query_THC, keys, None, scale=spec.scale, value_width=spec.kv_lora_rank)
        return ops.grouped_linear(out_THr, value_HVr)
