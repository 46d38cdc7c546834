"""The names that checkpoints give to the model's tensors.

- DeepSeek publishes V4 under the model's own names; Hugging Face transformers has others for it.
- Every other family is published under transformers' names. Its MTP block is the layer after the last one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from ..config import ModelConfig

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")  # of a layer, an expert or an MTP block
Rules = tuple[tuple[re.Pattern[str], str], ...]


def _compiled(*rules: tuple[str, str]) -> Rules:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in rules)


# To transformers' names from the model's; each rule that fits is applied.
_MODEL = _compiled(
    (r"^embed\.", "model.embed_tokens."),
    (r"^norm\.", "model.norm."),
    (r"^head\.", "lm_head."),
    (r"^layers\.", "model.layers."),
    (r"\.attn_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
    (r"\.ffn\.", ".mlp."),
    (r"\.gate\.bias$", ".gate.e_score_correction_bias"),
    (r"\.w1\.weight$", ".gate_proj.weight"),
    (r"\.w3\.weight$", ".up_proj.weight"),
    (r"\.w2\.weight$", ".down_proj.weight"),
    (r"\.experts\.w13$", ".experts.gate_up_proj"),
    (r"\.experts\.w2$", ".experts.down_proj"),
)
_V4 = _compiled(
    (r"^hc_head_", "model.hc_head.hc_"),
    (r"\.attn\.indexer\.compressor\.", ".self_attn.compressor.indexer."),
    (r"\.attn\.indexer\.weights_proj\.", ".self_attn.compressor.indexer.scorer.weights_proj."),
    (r"\.attn\.indexer\.wq_b\.", ".self_attn.compressor.indexer.q_b_proj."),
    (r"\.attn\.", ".self_attn."),
    (r"\.hc_(attn|ffn)_", r".\1_hc."),
    (r"\.w([qo]_[ab])\.weight$", r".\1_proj.weight"),
    (r"\.wkv\.weight$", ".kv_proj.weight"),
    (r"\.wgate\.weight$", ".gate_proj.weight"),
    (r"\.q_norm\.weight$", ".q_a_norm.weight"),
    (r"(\.compressor\.|\.indexer\.)norm\.weight$", r"\1kv_norm.weight"),
    (r"\.ape$", ".position_bias"),
    (r"\.attn_sink$", ".sinks"),
)
_MTP = _compiled((r"\.[eh]_proj\.weight$", ".eh_proj.weight"), (r"^(mtp\.\W)\.norm\.", r"\1.shared_head.norm."))
_GROUPED = _compiled((r"\.attn\.w([qkvo])\.", r".self_attn.\1_proj."), (r"\.attn\.", ".self_attn."))
_LATENT = _compiled(
    (r"\.attn\.wq\.", ".self_attn.q_proj."),
    (r"\.attn\.wkv_a\.", ".self_attn.kv_a_proj_with_mqa."),
    (r"\.attn\.w(q_a|q_b|kv_b|o)\.", r".self_attn.\1_proj."),
    (r"\.attn\.(q|kv)_norm\.", r".self_attn.\1_a_layernorm."),
    (r"\.attn\.indexer\.", ".self_attn.indexer."),
)
_RULES = {"v4": _V4 + _MODEL, "v3": _MTP + _LATENT + _MODEL, "qwen3": _GROUPED + _MODEL}
_RULES |= {"v32": _RULES["v3"], "glm5": _RULES["v3"], "qwen3-moe": _RULES["qwen3"]}

# To V4's own names from any mixture of both: transformers' `save_pretrained` writes mixtures, which depend on what the
# model was loaded from (seen with 5.23). Each rule that fits is applied.
_FROM_ANY_V4 = _compiled(
    (r"^lm_head\.", "head."),
    (r"^model\.", ""),
    (r"^embed_tokens\.", "embed."),
    (r"^hc_head\.hc_", "hc_head_"),
    (r"\.self_attn\.", ".attn."),
    (r"\.mlp\.", ".ffn."),
    (r"\.input_layernorm\.", ".attn_norm."),
    (r"\.post_attention_layernorm\.", ".ffn_norm."),
    (r"\.(attn|ffn)_hc\.", r".hc_\1_"),
    (r"\.compressor\.indexer\.", ".indexer.compressor."),
    (r"\.indexer\.compressor\.scorer\.", ".indexer."),
    (r"\.indexer\.compressor\.(q_b_proj|wq_b)\.", ".indexer.wq_b."),
    (r"\.attn\.([qo]_[ab])_proj\.", r".attn.w\1."),
    (r"(\.attn\..*)\bkv_proj\.", r"\1wkv."),
    (r"(\.attn\..*)\bgate_proj\.", r"\1wgate."),
    (r"\.attn\.q_a_norm\.", ".attn.q_norm."),
    (r"\.attn\.norm\.", ".attn.kv_norm."),
    (r"\.compressor\.kv_norm\.", ".compressor.norm."),
    (r"(\.attn\..*)\bposition_bias$", r"\1ape"),
    (r"\.attn\.sinks$", ".attn.attn_sink"),
    (r"\.e_score_correction_bias$", ".bias"),
    (r"\.shared_experts\.gate_proj\.", ".shared_experts.w1."),
    (r"\.shared_experts\.up_proj\.", ".shared_experts.w3."),
    (r"\.shared_experts\.down_proj\.", ".shared_experts.w2."),
    (r"\.experts\.gate_up_proj$", ".experts.w13"),
    (r"\.experts\.down_proj$", ".experts.w2"),
)


def module_name(config: ModelConfig, tensor: str) -> str:
    """Return transformers' name of a tensor of the model, or of one expert's matrix by the model's name."""
    numbers = _NUMBER.findall(tensor)
    if tensor.startswith("mtp."):
        numbers[0] = str(int(numbers[0]) + config.num_hidden_layers)
    return _module_form(config.family, _NUMBER.sub("#", tensor)) % tuple(numbers)


@lru_cache
def _module_form(family: str, tensor: str) -> str:
    """The name with a `#` for each number to transformers' with a `%s`."""
    return re.sub(r"^mtp\.", "model.layers.", _rewritten(tensor, _RULES[family])).replace("#", "%s")


def published_name(config: ModelConfig, tensor: str) -> str:
    """Return the publisher's name of a tensor of the model, or of one expert's matrix by the model's name."""
    return tensor if config.family == "v4" else module_name(config, tensor)


def mtp_prefix(config: ModelConfig, block: int = 0) -> str:
    """Return what the published names of an MTP block's tensors begin with."""
    return f"mtp.{block}." if config.family == "v4" else f"model.layers.{config.num_hidden_layers + block}."


def shared_copies(config: ModelConfig) -> tuple[str, ...]:
    """Return what the names of copies of the embedding or head, which the model shares, begin with."""
    mtp = mtp_prefix(config)
    if config.family == "v4":
        return mtp + "emb.", mtp + "embed.", mtp + "head."
    tied = ("lm_head.",) if config.tie_word_embeddings else ()
    return mtp + "embed_tokens.", mtp + "shared_head.head.", *tied


def canonical_v4(name: str) -> str:
    """Return V4's published name (of a stack of experts: the model's) of a tensor in any naming or mixture."""
    return name if name.startswith("mtp.") else _rewritten(name, _FROM_ANY_V4)


def _rewritten(name: str, rules: Iterable[tuple[re.Pattern[str], str]]) -> str:
    for pattern, replacement in rules:
        name = pattern.sub(replacement, name, count=1)
    return name
