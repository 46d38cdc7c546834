"""config.json in the publisher's form and in transformers' form, both ways."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..config import DeepseekV4Config, ModelConfig
from ..errors import ConfigError
from .files import CONFIG
from .layout import FITTED, SCALINGS
from .spelling import mtp_prefix

_LAYER_TYPES = {0: "sliding_attention", 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}
_RATIOS = {name: ratio for ratio, name in _LAYER_TYPES.items()}
_OWN = frozenset(field.name for field in dataclasses.fields(DeepseekV4Config))
# Fields of the maths that transformers' form holds in another way; the rest have one name in both.
_RESHAPED = frozenset(
    {"compress_ratios", "num_hash_layers", "rope_scaling", "rope_theta", "qk_rope_head_dim"}
)
# Fields whose other values would change the maths: passed on, so that ModelConfig refuses them.
_CHECKED = (
    "model_type",
    "hidden_act",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "num_key_value_heads",
    "n_shared_experts",
    "scoring_func",
    "norm_topk_prob",
)
# Of the other families: what transformers derives from the fields that the publisher writes.
_DERIVED = ("rope_parameters", "layer_types", "mlp_layer_types", "qk_head_dim", "num_local_experts")


def read_config(folder: str | Path, names: Collection[str] = ()) -> ModelConfig:
    """Read config.json of either form. Raises ConfigError with every reason why it cannot be used.

    `names` are the folder's tensors: transformers' form keeps the number of MTP blocks that it once read and drops
    the blocks, so there the model has an MTP block only where a tensor is of one.
    """
    path = Path(folder) / CONFIG
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror or error}); it belongs beside the weights"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}); download it again") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"{path} holds a {type(fields).__name__}, not the fields of a config.json")
    if ("layer_types" if fields.get("model_type") == "deepseek_v4" else "rope_parameters") not in fields:
        return ModelConfig.from_dict(fields)
    config = from_transformers(fields)
    if any(name.startswith(mtp_prefix(config)) for name in names):
        return config
    return from_transformers(fields | {"num_nextn_predict_layers": 0})


def publisher_config(config: ModelConfig, format: str) -> dict[str, Any]:
    """Return the publisher's config.json of a checkpoint stored in this format (fp32, bf16, fp8 or fp4)."""
    fields = config.to_dict() | {"torch_dtype": "float32" if format == "fp32" else "bfloat16"}
    if format in ("fp8", "fp4"):
        scaling = SCALINGS.get(config.family, FITTED)
        fields["quantization_config"] = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            **({} if scaling.fitted else {"scale_fmt": "ue8m0"}),
            "weight_block_size": [128, 128],
            "activation_scheme": "dynamic",
        }
        if config.family == "v4":
            fields["expert_dtype"] = format  # transformers reads fp8 and fp4
    return fields


def transformers_config(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """Return the config.json that transformers' configuration of this model type writes."""
    if isinstance(config, DeepseekV4Config):
        return _v4_to_transformers(config, dtype)
    fields = config.to_dict()
    theta, scaling = fields.pop("rope_theta", config.rope_theta), fields.pop("rope_scaling", None)
    rope = {"rope_type": "default", "rope_theta": theta}
    if scaling is not None:
        rope |= {name: value for name, value in scaling.items() if name != "type"} | {"rope_type": "yarn"}
    return fields | {"dtype": dtype, "rope_parameters": rope}


def from_transformers(fields: Mapping[str, Any]) -> ModelConfig:
    """Return the model of a transformers config.json. Raises ConfigError with every reason why there is none."""
    if fields.get("model_type") == "deepseek_v4":
        return _v4_from_transformers(fields)
    rope = {name: value for name, value in (fields.get("rope_parameters") or {}).items() if name != "type"}
    theta, kind = rope.pop("rope_theta", None), rope.pop("rope_type", "default")
    values = {name: value for name, value in fields.items() if name not in _DERIVED}
    values |= {"rope_theta": theta, "rope_scaling": None if kind == "default" else {"type": kind, **rope}}
    if "num_local_experts" in fields:
        values["num_experts"] = fields["num_local_experts"]
    if "kv_lora_rank" in fields:
        values.pop("head_dim", None)  # transformers sets it to qk_rope_head_dim
    dense = fields.get("first_k_dense_replace", 0)
    kinds = fields.get("mlp_layer_types")
    if kinds is not None and kinds != ["dense"] * dense + ["sparse"] * (len(kinds) - dense):
        raise ConfigError(f"transformers' config.json cannot be used:\n  mlp_layer_types={kinds}: only "
                          f"first_k_dense_replace={dense} dense layers, then sparse ones, can be run")
    return ModelConfig.from_dict(values)


def _v4_to_transformers(config: DeepseekV4Config, dtype: str) -> dict[str, Any]:
    fields = {
        name: value for name, value in config.to_dict().items() if name not in _RESHAPED | {"topk_method"}
    }
    layers, rotary = config.num_hidden_layers, config.qk_rope_head_dim / config.head_dim
    main = {"rope_type": "default", "rope_theta": config.rope_theta, "partial_rotary_factor": rotary}
    compress = main | {"rope_theta": config.compress_rope_theta}
    if config.rope_scaling is not None:
        compress |= config.to_dict()["rope_scaling"] | {"rope_type": "yarn", "attention_factor": 1.0}
        del compress["type"]
    return fields | {
        "dtype": dtype,
        "layer_types": [_LAYER_TYPES[ratio] for ratio in config.compress_ratios[:layers]],
        "compress_rates": {_LAYER_TYPES[ratio]: ratio for ratio in (4, 128)},
        "mlp_layer_types": ["hash_moe"] * config.num_hash_layers
        + ["moe"] * (layers - config.num_hash_layers),
        "partial_rotary_factor": rotary,
        "qk_rope_head_dim": config.qk_rope_head_dim,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"main": main, "compress": compress},
    }


def _v4_from_transformers(fields: Mapping[str, Any]) -> ModelConfig:
    problems: list[str] = []
    values = {name: fields[name] for name in fields if name in (_OWN - _RESHAPED) or name in _CHECKED}
    values["compress_ratios"] = [_ratio(name, problems) for name in fields["layer_types"]]
    values["compress_ratios"] += [0] * int(fields.get("num_nextn_predict_layers", 0))
    values["num_hash_layers"] = _num_hash_layers(fields, problems)
    values["qk_rope_head_dim"] = _rotary_dim(fields)
    values |= _rope(fields.get("rope_parameters") or {}, problems)
    rates = fields.get("compress_rates")
    if rates is not None and rates != {_LAYER_TYPES[ratio]: ratio for ratio in (4, 128)}:
        problems.append(f"compress_rates={rates}: only 4 for CSA and 128 for HCA can be run")
    if problems:
        raise ConfigError("transformers' config.json cannot be used:\n  " + "\n  ".join(problems))
    return ModelConfig.from_dict(values)


def _ratio(name: str, problems: list[str]) -> int:
    if name not in _RATIOS:
        problems.append(f"layer_types has {name!r}; there are {', '.join(_RATIOS)}")
    return _RATIOS.get(name, 0)


def _num_hash_layers(fields: Mapping[str, Any], problems: list[str]) -> int:
    kinds = fields.get("mlp_layer_types")
    if kinds is None:
        return int(fields.get("num_hash_layers", 3))  # transformers' default
    count = kinds.count("hash_moe")
    if kinds != ["hash_moe"] * count + ["moe"] * (len(kinds) - count):
        problems.append(f"mlp_layer_types={kinds}: hash_moe layers must come first, the others must be moe")
    return int(count)


def _rotary_dim(fields: Mapping[str, Any]) -> int:
    factor = fields.get("partial_rotary_factor")
    return int(fields["head_dim"] * factor) if factor is not None else fields.get("qk_rope_head_dim", 64)


def _rope(parameters: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    main, compress = parameters.get("main"), parameters.get("compress")
    if not isinstance(main, Mapping) or not isinstance(compress, Mapping):
        problems.append("rope_parameters needs `main` and `compress`, as transformers >= 5 writes them")
        return {}
    scaling = compress.get("rope_type", "default")
    if main.get("rope_type", "default") != "default" or scaling not in ("default", "yarn"):
        problems.append(
            f"rope types {main.get('rope_type')!r} and {scaling!r}: only 'default' (main) and "
            "'default' or 'yarn' (compress) can be run"
        )
    if compress.get("attention_factor", 1.0) != 1.0:
        problems.append(f"rope attention_factor={compress['attention_factor']}: only 1.0 can be run")
    yarn = {
        key: compress[key]
        for key in ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow")
        if key in compress
    }
    return {
        "rope_theta": main.get("rope_theta"),
        "compress_rope_theta": compress.get("rope_theta"),
        "rope_scaling": {"type": "yarn", **yarn} if scaling == "yarn" else None,
    }
