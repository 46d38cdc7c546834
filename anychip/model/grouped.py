"""Qwen3's attention sub-layer (GQA): heads of keys and values that groups of query heads share.

Parameter names are ours: wq, wk, wv, wo, q_norm, k_norm. Shape suffixes: T tokens, d hidden, N cached rows, H query
heads, G key heads, C channels.
"""

from __future__ import annotations

from torch import Tensor

from ..config.specs import GroupedAttention
from ..ops import Ops
from .attention import Attention
from .plan import LayerPlan
from .state import LayerCache
from .weight import Weight


class Grouped(Attention):
    """One layer's attention: every token reads all tokens so far."""

    def __init__(self, spec: GroupedAttention, hidden: int, eps: float) -> None:
        super().__init__()
        query, key = spec.heads * spec.channels, spec.kv_heads * spec.channels
        self.wq, self.wk, self.wv, self.wo = (Weight(query, hidden), Weight(key, hidden), Weight(key, hidden),
                                              Weight(hidden, query))
        self.q_norm, self.k_norm = Weight(spec.channels), Weight(spec.channels)
        self.channels, self.eps = spec.channels, eps

    def forward(self, x_Td: Tensor, plan: LayerPlan, cache: LayerCache, ops: Ops) -> Tensor:
        """Return the sub-layer's output [T, d]."""
        query_THC, key_TGC = (
            ops.norm_rope(ops.linear(x_Td, matrix.weight).unflatten(1, (-1, self.channels)), norm.weight, self.eps,
                          plan.cos_TR, plan.sin_TR, half=True)
            for matrix, norm in ((self.wq, self.q_norm), (self.wk, self.k_norm)))
        key_NGC, value_NGC = (
            cache.write(name, rows).unflatten(1, (-1, self.channels))
            for name, rows in (("key", key_TGC.flatten(1)), ("value", ops.linear(x_Td, self.wv.weight))))
        out_THC = ops.grouped_attention(query_THC, key_NGC, value_NGC, plan.window, self.channels**-0.5)
        return ops.linear(out_THC.flatten(1), self.wo.weight)
