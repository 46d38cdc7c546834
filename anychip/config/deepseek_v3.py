"""DeepSeek-V3, V3.2 and GLM-5: latent attention, sigmoid routing in groups, dense first layers; DSA's indexer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .base import ModelConfig, rule
from .specs import Dense, IndexerSpec, LatentAttention, LayerSpec, Mixture, yarn_mscale


@dataclass(frozen=True, kw_only=True)
class DeepseekV3Config(ModelConfig):
    """A DeepSeek-V3 model. The first `first_k_dense_replace` layers have one SwiGLU of `intermediate_size`."""

    model_type: ClassVar[str] = "deepseek_v3"
    architecture: ClassVar[str] = "DeepseekV3ForCausalLM"
    family: ClassVar[str] = "v3"
    fixed: ClassVar = {"hidden_act": "silu", "attention_bias": False, "scoring_func": "sigmoid",
                       "topk_method": "noaux_tc", "moe_layer_freq": 1, "rope_interleave": True}
    equal: ClassVar = {"num_key_value_heads": "num_attention_heads"}
    ignored: ClassVar = frozenset(("aux_loss_alpha", "seq_aux", "head_dim", "qk_head_dim", "mlp_bias"))
    may_be_zero: ClassVar = ("first_k_dense_replace", "n_shared_experts")

    intermediate_size: int
    moe_intermediate_size: int
    first_k_dense_replace: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    n_group: int
    topk_group: int
    norm_topk_prob: bool
    routed_scaling_factor: float
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int

    def layer(self, index: int) -> LayerSpec:
        if index < self.first_k_dense_replace:
            return LayerSpec(self._attention(index), Dense(self.intermediate_size))
        return LayerSpec(self._attention(index), Mixture(
            self.n_routed_experts, self.num_experts_per_tok, self.moe_intermediate_size, "sigmoid",
            self.routed_scaling_factor, groups=self.n_group, kept_groups=self.topk_group,
            normalize=self.norm_topk_prob, shared_width=self.n_shared_experts * self.moe_intermediate_size))

    def _attention(self, index: int) -> LatentAttention:
        yarn, scale = self.rope_scaling, (self.qk_nope_head_dim + self.qk_rope_head_dim) ** -0.5
        if yarn is not None and yarn.mscale_all_dim:
            scale *= yarn_mscale(yarn.factor, yarn.mscale_all_dim) ** 2
        return LatentAttention(self.num_attention_heads, self.q_lora_rank, self.kv_lora_rank, self.qk_nope_head_dim,
                               self.rotary(self.qk_rope_head_dim), self.v_head_dim, scale, self._indexer(index))

    def _indexer(self, index: int) -> IndexerSpec | None:
        return None

    def _rules(self) -> Iterator[str | None]:
        experts, groups = self.n_routed_experts, self.n_group
        yield rule(self.q_lora_rank is None or self.q_lora_rank > 0, f"q_lora_rank={self.q_lora_rank} must be positive")
        yield rule(self.qk_rope_head_dim % 2 == 0, f"qk_rope_head_dim={self.qk_rope_head_dim} must be even")
        yield rule(groups > 0 and experts % groups == 0 and experts // groups > 1,
                   f"n_group={groups} must divide n_routed_experts={experts} into groups of 2 or more")
        yield rule(self.topk_group <= groups, f"topk_group={self.topk_group} exceeds n_group={groups}")
        most = self.topk_group * experts // max(groups, 1)
        yield rule(self.num_experts_per_tok <= most,
                   f"num_experts_per_tok={self.num_experts_per_tok} exceeds the {most} experts of topk_group groups")


@dataclass(frozen=True, kw_only=True)
class DeepseekV32Config(DeepseekV3Config):
    """A DeepSeek-V3.2 model: V3 whose attention reads the `index_topk` tokens that an indexer picks (DSA)."""

    model_type: ClassVar[str] = "deepseek_v32"
    architecture: ClassVar[str] = "DeepseekV32ForCausalLM"
    family: ClassVar[str] = "v32"

    q_lora_rank: int
    index_n_heads: int
    index_head_dim: int
    index_topk: int

    def _indexer(self, index: int) -> IndexerSpec:
        return IndexerSpec(self.index_n_heads, self.index_head_dim, self.index_topk, half_split=True)

    def _rules(self) -> Iterator[str | None]:
        yield from super()._rules()
        yield rule(self.qk_rope_head_dim <= self.index_head_dim,
                   f"qk_rope_head_dim={self.qk_rope_head_dim} exceeds index_head_dim={self.index_head_dim}")


@dataclass(frozen=True, kw_only=True)
class GlmMoeDsaConfig(DeepseekV32Config):
    """A GLM-5 model: V3.2 whose indexer turns neighbouring channels, and may run in some layers only.

    `indexer_types`: for each layer `full`, or `shared` where it takes the rows of the full layer before it.
    """

    model_type: ClassVar[str] = "glm_moe_dsa"
    architecture: ClassVar[str] = "GlmMoeDsaForCausalLM"
    family: ClassVar[str] = "glm5"
    fixed: ClassVar = DeepseekV3Config.fixed | {"indexer_rope_interleave": True}
    ignored: ClassVar = DeepseekV3Config.ignored | {
        "index_topk_freq", "index_skip_topk_offset", "index_topk_pattern", "index_share_for_mtp_iteration",
        "moe_router_dtype", "layer_types"}

    bos_token_id: int | None = None
    indexer_types: tuple[str, ...]

    @classmethod
    def read_published(cls, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        fields = dict(super().read_published(fields))
        layers, ffns = fields.get("num_hidden_layers", 0), fields.pop("mlp_layer_types", None)
        if ffns is not None:
            dense = ffns.count("dense")
            if ffns[:dense] == ["dense"] * dense:
                fields.setdefault("first_k_dense_replace", dense)
        if fields.get("indexer_types") is None:
            fields["indexer_types"] = _indexer_types(fields, layers if isinstance(layers, int) else 0)
        return fields

    def _indexer(self, index: int) -> IndexerSpec:
        types = (*self.indexer_types, "full", "full")  # the MTP block has an indexer of its own
        source = max(i for i in range(index + 1) if types[i] == "full")
        return IndexerSpec(self.index_n_heads, self.index_head_dim, self.index_topk, shared=source < index,
                           source=source, reused=types[index + 1] == "shared")

    def _rules(self) -> Iterator[str | None]:
        yield from super()._rules()
        types = self.indexer_types
        yield rule(len(types) == self.num_hidden_layers,
                   f"indexer_types has {len(types)} entries for num_hidden_layers={self.num_hidden_layers}")
        yield rule(set(types) <= {"full", "shared"} and types[:1] == ("full",),
                   f"indexer_types={list(types)}: each must be full or shared, the first full")


def _indexer_types(fields: Mapping[str, Any], layers: int) -> list[str]:
    """The layers' indexers by a pattern of F and S, or by one full layer in `index_topk_freq` from the offset on."""
    pattern = fields.get("index_topk_pattern")
    if pattern is not None:
        return [{"F": "full", "S": "shared"}.get(each, each) for each in pattern]
    every, offset = fields.get("index_topk_freq") or 1, fields.get("index_skip_topk_offset", 2)
    return ["full" if max(i - offset + 1, 0) % every == 0 else "shared" for i in range(layers)]
