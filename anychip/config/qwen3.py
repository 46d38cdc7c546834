"""Qwen3: grouped-query attention with a norm of each head's query and key; experts without a shared one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from .base import ModelConfig, rule
from .specs import Dense, GroupedAttention, LayerSpec, Mixture


@dataclass(frozen=True, kw_only=True)
class _Qwen3(ModelConfig):
    """What Qwen3's families share."""

    fixed: ClassVar = {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False,
                       "sliding_window": None}
    ignored: ClassVar = frozenset(("max_window_layers", "layer_types"))

    num_nextn_predict_layers: int = 0
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int

    @property
    def _attention(self) -> GroupedAttention:
        return GroupedAttention(self.num_attention_heads, self.num_key_value_heads, self.head_dim,
                                self.rotary(self.head_dim))

    def _rules(self) -> Iterator[str | None]:
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        yield rule(groups > 0 and heads % groups == 0,
                   f"num_key_value_heads={groups} does not divide num_attention_heads={heads}")
        yield rule(self.head_dim % 2 == 0, f"head_dim={self.head_dim} must be even")


@dataclass(frozen=True, kw_only=True)
class Qwen3Config(_Qwen3):
    """A dense Qwen3 model."""

    model_type: ClassVar[str] = "qwen3"
    architecture: ClassVar[str] = "Qwen3ForCausalLM"
    family: ClassVar[str] = "qwen3"

    def layer(self, index: int) -> LayerSpec:
        return LayerSpec(self._attention, Dense(self.intermediate_size))


@dataclass(frozen=True, kw_only=True)
class Qwen3MoeConfig(_Qwen3):
    """A Qwen3 mixture of experts; `intermediate_size` is that of dense layers, of which it has none."""

    model_type: ClassVar[str] = "qwen3_moe"
    architecture: ClassVar[str] = "Qwen3MoeForCausalLM"
    family: ClassVar[str] = "qwen3-moe"
    fixed: ClassVar = _Qwen3.fixed | {"decoder_sparse_step": 1, "mlp_only_layers": []}

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    norm_topk_prob: bool

    def layer(self, index: int) -> LayerSpec:
        return LayerSpec(self._attention, Mixture(
            self.num_experts, self.num_experts_per_tok, self.moe_intermediate_size, "softmax",
            normalize=self.norm_topk_prob, bias=False))

    def _rules(self) -> Iterator[str | None]:
        yield from super()._rules()
        yield rule(self.num_experts_per_tok <= self.num_experts,
                   f"num_experts_per_tok={self.num_experts_per_tok} exceeds num_experts={self.num_experts}")
