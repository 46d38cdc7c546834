"""DeepSeek-V4: compressed attention, mHC residual streams, hash-routed first layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from .base import ModelConfig, rule
from .specs import CSA, CompressedAttention, HyperSpec, IndexerSpec, LayerSpec, Mixture, Rope


@dataclass(frozen=True, kw_only=True)
class DeepseekV4Config(ModelConfig):
    """A DeepSeek-V4 model.

    `compress_ratios` holds one ratio a layer (0 sliding window, 4 CSA, 128 HCA) and one for each MTP block.
    """

    model_type: ClassVar[str] = "deepseek_v4"
    architecture: ClassVar[str] = "DeepseekV4ForCausalLM"
    family: ClassVar[str] = "v4"
    fixed: ClassVar = {"hidden_act": "silu", "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
                       "num_key_value_heads": 1, "n_shared_experts": 1, "scoring_func": "sqrtsoftplus",
                       "topk_method": "noaux_tc", "norm_topk_prob": True}
    ignored: ClassVar = frozenset(("n_group", "topk_group", "router_jitter_noise"))
    may_be_zero: ClassVar = ("num_hash_layers",)

    head_dim: int
    qk_rope_head_dim: int
    q_lora_rank: int
    o_groups: int
    o_lora_rank: int
    sliding_window: int
    compress_ratios: tuple[int, ...]
    index_n_heads: int
    index_head_dim: int
    index_topk: int
    n_routed_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    num_hash_layers: int
    routed_scaling_factor: float
    swiglu_limit: float
    hc_mult: int
    hc_sinkhorn_iters: int
    hc_eps: float
    compress_rope_theta: float

    def rope(self, ratio: int) -> Rope:
        """Layers of ratio 0 use rope_theta as it is; CSA and HCA layers use compress_rope_theta with YaRN."""
        if ratio:
            return Rope(self.qk_rope_head_dim, self.compress_rope_theta, self.rope_scaling)
        return Rope(self.qk_rope_head_dim, self.rope_theta)

    def layer(self, index: int) -> LayerSpec:
        ratio = self.compress_ratios[index]
        indexer = IndexerSpec(self.index_n_heads, self.index_head_dim, self.index_topk) if ratio == CSA else None
        attention = CompressedAttention(self.num_attention_heads, self.head_dim, self.q_lora_rank, self.o_groups,
                                        self.o_lora_rank, self.sliding_window, ratio, self.rope(ratio), indexer)
        hashed, width = index < self.num_hash_layers, self.moe_intermediate_size
        return LayerSpec(attention, Mixture(
            self.n_routed_experts, self.num_experts_per_tok, width, "sqrtsoftplus", self.routed_scaling_factor,
            shared_width=width, bias=not hashed, hashed=hashed, limit=self.swiglu_limit))

    @property
    def hyper(self) -> HyperSpec:
        return HyperSpec(self.hc_mult, self.hc_sinkhorn_iters, self.hc_eps)

    def _rules(self) -> Iterator[str | None]:
        heads, layers, nextn = self.num_attention_heads, self.num_hidden_layers, self.num_nextn_predict_layers
        ratios = self.compress_ratios
        yield rule(not self.tie_word_embeddings, "tie_word_embeddings=True: only False can be run")
        yield rule(len(ratios) == layers + nextn, f"compress_ratios has {len(ratios)} entries; "
                   f"num_hidden_layers={layers} + num_nextn_predict_layers={nextn} are needed")
        yield rule(all(ratio in (0, 4, 128) for ratio in ratios),
                   f"compress_ratios={list(ratios)}: each must be 0 (window), 4 (CSA) or 128 (HCA)")
        yield rule(all(ratio == 0 for ratio in ratios[layers:]), "compress_ratios: the MTP block's ratio must be 0")
        yield rule(self.o_groups > 0 and heads % max(self.o_groups, 1) == 0,
                   f"o_groups={self.o_groups} does not divide num_attention_heads={heads}")
        yield rule(self.qk_rope_head_dim % 2 == 0 and self.qk_rope_head_dim <= min(self.head_dim, self.index_head_dim),
                   f"qk_rope_head_dim={self.qk_rope_head_dim} must be even and at most head_dim={self.head_dim} and "
                   f"index_head_dim={self.index_head_dim}")
        yield rule(self.num_experts_per_tok <= self.n_routed_experts,
                   f"num_experts_per_tok={self.num_experts_per_tok} exceeds n_routed_experts={self.n_routed_experts}")
        yield rule(0 <= self.num_hash_layers <= layers,
                   f"num_hash_layers={self.num_hash_layers} exceeds {layers} layers")
        yield rule(self.swiglu_limit > 0, f"swiglu_limit={self.swiglu_limit} must be positive")
