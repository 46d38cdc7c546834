"""The model's configuration: DeepSeek-V4's own `config.json` fields, checked all at once, and the presets."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from .errors import ConfigError, nearest

# Fields that published config.json files carry and that do not change the maths here.
_IGNORED = frozenset(
    "architectures auto_map torch_dtype dtype transformers_version model_type use_cache attention_bias "
    "attention_dropout mlp_bias hidden_act pad_token_id n_group topk_group ep_size pretraining_tp "
    "tie_word_embeddings num_key_value_heads scoring_func topk_method norm_topk_prob quantization_config "
    "expert_dtype output_router_logits router_aux_loss_coef router_jitter_noise n_shared_experts".split()
)
# Of those, the ones whose other values would change the maths: only this value can be run.
_FIXED = {
    "model_type": "deepseek_v4",
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "num_key_value_heads": 1,
    "n_shared_experts": 1,
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
}
PRESETS = ("nano", "tiny", "mini", "v4-flash", "v4-pro")


@dataclass(frozen=True)
class YarnScaling:
    """YaRN's frequency ramp (no mscale): `factor` over the `original_max_position_embeddings` tokens."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    type: str = "yarn"


@dataclass(frozen=True)
class ModelConfig:
    """A DeepSeek-V4 model. Field names are the publisher's; sizes are counts of elements or tokens.

    `compress_ratios` holds one ratio a layer (0 sliding window, 4 CSA, 128 HCA) and one for each MTP block.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
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
    rope_theta: float
    compress_rope_theta: float
    rope_scaling: YarnScaling | None
    max_position_embeddings: int
    rms_norm_eps: float
    initializer_range: float
    num_nextn_predict_layers: int
    bos_token_id: int = 0
    eos_token_id: int = 1

    def __post_init__(self) -> None:
        problems = [text for text in _contradictions(self) if text]
        if problems:
            raise ConfigError("this configuration cannot be built:\n  " + "\n  ".join(problems))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ModelConfig:
        """Build from a published `config.json` mapping. Raises ConfigError naming every wrong field."""
        known = {field.name: field for field in dataclasses.fields(cls)}
        problems = _wrong_fields(fields, known)
        if problems:
            raise ConfigError("config.json cannot be used:\n  " + "\n  ".join(problems))
        values = {name: fields[name] for name in known if name in fields}
        values["compress_ratios"] = tuple(values["compress_ratios"])
        values["rope_scaling"] = _read_scaling(fields.get("rope_scaling"))
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the publisher's `config.json` mapping of this configuration."""
        values = dataclasses.asdict(self)
        values["compress_ratios"] = list(self.compress_ratios)
        return {"architectures": ["DeepseekV4ForCausalLM"], **_FIXED, **values}


def load_config(where: str | Path) -> ModelConfig:
    """Return the preset of that name, or read a `config.json` file or a folder that holds one."""
    if str(where) in PRESETS:
        text = resources.files("anychip.presets").joinpath(f"{where}.json").read_text()
        return ModelConfig.from_dict(json.loads(text))
    path = Path(where)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(
            f"no preset and no config.json at {str(where)!r}; presets are {', '.join(PRESETS)}."
            + nearest(str(where), PRESETS)
        )
    try:
        fields = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not JSON: {error}; write the publisher's config.json there") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"{path} holds a {type(fields).__name__}, not the fields of a config.json")
    return ModelConfig.from_dict(fields)


def _read_scaling(value: Mapping[str, Any] | None) -> YarnScaling | None:
    if value is None:
        return None
    fields = {"type": value.get("rope_type", value.get("type", "yarn"))}
    fields |= {f.name: value[f.name] for f in dataclasses.fields(YarnScaling) if f.name in value and f.name != "type"}
    return YarnScaling(**fields)


def _wrong_fields(fields: Mapping[str, Any], known: Mapping[str, dataclasses.Field[Any]]) -> list[str]:
    problems = []
    for name, value in fields.items():
        if name in _FIXED and value != _FIXED[name]:
            problems.append(f"{name}={value!r}: only {_FIXED[name]!r} can be run")
        elif name not in known and name not in _IGNORED:
            problems.append(f"{name}: no such field.{nearest(name, known)}")
        elif name in known and not _has_type(name, value, str(known[name].type)):
            problems.append(f"{name}={value!r}: expected {known[name].type}")
    for name, field in known.items():
        if name not in fields and field.default is dataclasses.MISSING:
            problems.append(f"{name}: missing")
    return problems


def _has_type(name: str, value: object, wanted: str) -> bool:
    if name == "compress_ratios":
        return isinstance(value, (list, tuple)) and all(type(item) is int for item in value)
    if name == "rope_scaling":
        return value is None or (isinstance(value, Mapping) and "factor" in value
                                 and "original_max_position_embeddings" in value)
    if wanted == "int":
        return type(value) is int
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _contradictions(c: ModelConfig) -> list[str | None]:
    """Every reason why the configuration cannot be built (None where a rule holds)."""
    heads, layers = c.num_attention_heads, c.num_hidden_layers
    positive = [f.name for f in dataclasses.fields(c) if f.type == "int" and f.name not in
                ("num_hash_layers", "num_nextn_predict_layers", "bos_token_id", "eos_token_id")]

    def rule(holds: bool, text: str) -> str | None:
        return None if holds else text

    return [
        *(rule(getattr(c, name) > 0, f"{name}={getattr(c, name)} must be positive") for name in positive),
        rule(len(c.compress_ratios) == layers + c.num_nextn_predict_layers,
             f"compress_ratios has {len(c.compress_ratios)} entries; num_hidden_layers={layers} + "
             f"num_nextn_predict_layers={c.num_nextn_predict_layers} are needed"),
        rule(all(ratio in (0, 4, 128) for ratio in c.compress_ratios),
             f"compress_ratios={list(c.compress_ratios)}: each must be 0 (window), 4 (CSA) or 128 (HCA)"),
        rule(all(ratio == 0 for ratio in c.compress_ratios[layers:]),
             "compress_ratios: the MTP block's ratio must be 0"),
        rule(c.num_nextn_predict_layers in (0, 1),
             f"num_nextn_predict_layers={c.num_nextn_predict_layers}: 0 or 1 can be run"),
        rule(c.o_groups > 0 and heads % max(c.o_groups, 1) == 0,
             f"o_groups={c.o_groups} does not divide num_attention_heads={heads}"),
        rule(c.qk_rope_head_dim % 2 == 0 and c.qk_rope_head_dim <= min(c.head_dim, c.index_head_dim),
             f"qk_rope_head_dim={c.qk_rope_head_dim} must be even and at most head_dim={c.head_dim} and "
             f"index_head_dim={c.index_head_dim}"),
        rule(c.num_experts_per_tok <= c.n_routed_experts,
             f"num_experts_per_tok={c.num_experts_per_tok} exceeds n_routed_experts={c.n_routed_experts}"),
        rule(0 <= c.num_hash_layers <= layers, f"num_hash_layers={c.num_hash_layers} exceeds {layers} layers"),
        rule(c.rope_scaling is None or c.rope_scaling.type == "yarn",
             f"rope_scaling type {c.rope_scaling.type if c.rope_scaling else ''!r}: only 'yarn' can be run"),
        rule(c.swiglu_limit > 0, f"swiglu_limit={c.swiglu_limit} must be positive"),
    ]
