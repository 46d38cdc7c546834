"""What every model's configuration has: the publisher's `config.json` fields, checked all at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeVar

from ..errors import ConfigError, NotSupported, nearest
from .specs import AttentionSpec, HyperSpec, LayerSpec, Mixture, Rope, YarnScaling, yarn_amplitude

# Fields that published config.json files carry and that do not change the maths here.
_IGNORED = frozenset(
    "architectures auto_map torch_dtype dtype transformers_version use_cache attention_dropout pad_token_id ep_size "
    "pretraining_tp quantization_config expert_dtype output_router_logits router_aux_loss_coef".split()
)
_SCALING = {"rope_type", *(field.name for field in dataclasses.fields(YarnScaling))}
_MAY_BE_ZERO = ("num_nextn_predict_layers", "bos_token_id", "eos_token_id")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A model of any family. Field names are the publisher's; sizes are counts of elements or tokens.

    A family is a subclass with its own fields. The model does not read fields but specs: `layer`, `hyper`.
    """

    model_type: ClassVar[str] = ""
    architecture: ClassVar[str] = ""  # transformers' class
    family: ClassVar[str] = ""
    fixed: ClassVar[Mapping[str, Any]] = {}  # published fields of which only this value can be run
    equal: ClassVar[Mapping[str, str]] = {}  # published fields that must equal another one
    ignored: ClassVar[frozenset[str]] = frozenset()  # the family's fields that do not change the maths
    may_be_zero: ClassVar[tuple[str, ...]] = ()

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    rope_theta: float
    rope_scaling: YarnScaling | None
    max_position_embeddings: int
    rms_norm_eps: float
    initializer_range: float
    num_nextn_predict_layers: int
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 0
    eos_token_id: int | tuple[int, ...] = 1

    def __post_init__(self) -> None:
        problems = [text for text in (*self._common_rules(), *self._rules()) if text]
        if problems:
            raise ConfigError("this configuration cannot be built:\n  " + "\n  ".join(problems))

    def layer(self, index: int) -> LayerSpec:
        """Return the parts of block `index`; the MTP block's index is num_hidden_layers."""
        raise NotImplementedError

    @property
    def hyper(self) -> HyperSpec | None:
        """mHC's rule, None where the residual is plain."""
        return None

    def rotary(self, channels: int) -> Rope:
        """Return RoPE of so many channels with this model's theta and YaRN."""
        return Rope(channels, self.rope_theta, self.rope_scaling, yarn_amplitude(self.rope_scaling))

    @property
    def end_ids(self) -> tuple[int, ...]:
        """All tokens that end a text, the tokenizer's own first."""
        return self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)

    @property
    def num_streams(self) -> int:
        """Residual streams between blocks: 1 where the residual is plain."""
        return self.hyper.streams if self.hyper else 1

    @property
    def num_blocks(self) -> int:
        """Blocks with those of the MTP."""
        return self.num_hidden_layers + self.num_nextn_predict_layers

    @cached_property
    def mixture(self) -> Mixture | None:
        """The mixture of experts that the model's layers have, None where all are dense."""
        ffns = (self.layer(index).ffn for index in range(self.num_blocks))
        return next((ffn for ffn in ffns if isinstance(ffn, Mixture)), None)

    @cached_property
    def kinds(self) -> Mapping[int, AttentionSpec]:
        """One attention for each ratio: layers of a ratio see a batch alike."""
        found: dict[int, AttentionSpec] = {}
        for index in range(self.num_blocks):
            attention = self.layer(index).attention
            found.setdefault(attention.ratio, attention)
        return found

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ModelConfig:
        """Build from a published `config.json` mapping, by its model_type. Raises ConfigError naming every wrong field.
        """
        if not cls.model_type:
            return _family(fields).from_dict(fields)
        fields = {name: value for name, value in cls.read_published(fields).items() if name != "model_type"}
        known = {field.name: field for field in dataclasses.fields(cls)}
        problems = list(cls._wrong_fields(fields, known))
        if problems:
            raise ConfigError("config.json cannot be used:\n  " + "\n  ".join(problems))
        values: dict[str, Any] = {name: tuple(fields[name]) if isinstance(fields[name], list) else fields[name]
                                  for name in known if name in fields}
        values["rope_scaling"] = _read_scaling(fields.get("rope_scaling"))
        return cls(**values)

    @classmethod
    def read_published(cls, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the fields in the form that this class has them: transformers >= 5 writes `rope_parameters`."""
        rope = fields.get("rope_parameters")
        if not isinstance(rope, Mapping) or "rope_theta" not in rope:
            return fields
        scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
        plain = scaling.get("rope_type", "default") == "default"
        rest = {name: value for name, value in fields.items() if name != "rope_parameters"}
        return rest | {"rope_theta": rope["rope_theta"], "rope_scaling": None if plain else scaling}

    def to_dict(self) -> dict[str, Any]:
        """Return the publisher's `config.json` mapping of this configuration."""
        values: dict[str, Any] = {name: list(value) if isinstance(value, tuple) else value
                                  for name, value in dataclasses.asdict(self).items()}
        if self.rope_scaling is not None:
            given = dataclasses.asdict(self.rope_scaling)
            values["rope_scaling"] = {name: value for name, value in given.items() if value is not None}
        same = {name: values[other] for name, other in self.equal.items()}
        return {"architectures": [self.architecture], "model_type": self.model_type, **self.fixed, **same, **values}

    @classmethod
    def _wrong_fields(cls, fields: Mapping[str, Any], known: Mapping[str, dataclasses.Field[Any]]) -> Iterator[str]:
        for name, value in fields.items():
            if name in cls.fixed and value != cls.fixed[name]:
                yield f"{name}={value!r}: only {cls.fixed[name]!r} can be run"
            elif name in cls.equal and value != fields.get(cls.equal[name]):
                yield f"{name}={value!r}: only {cls.equal[name]}={fields.get(cls.equal[name])!r} can be run"
            elif name == "rope_scaling" and isinstance(value, Mapping) and (odd := sorted(set(value) - _SCALING)):
                yield f"rope_scaling: {', '.join(odd)} cannot be run; there are {', '.join(sorted(_SCALING))}"
            elif name in known and not _has_type(value, str(known[name].type)):
                yield f"{name}={value!r}: expected {known[name].type}"
            elif name not in known and name not in (*_IGNORED, *cls.ignored, *cls.fixed, *cls.equal):
                yield f"{name}: no such field.{nearest(name, known)}"
        for name, field in known.items():
            if name not in fields and field.default is dataclasses.MISSING:
                yield f"{name}: missing"

    def _common_rules(self) -> Iterator[str | None]:
        for field in dataclasses.fields(self):
            if field.type == "int" and field.name not in (*_MAY_BE_ZERO, *self.may_be_zero):
                value = getattr(self, field.name)
                yield rule(value > 0, f"{field.name}={value} must be positive")
        yield rule(self.num_nextn_predict_layers in (0, 1),
                   f"num_nextn_predict_layers={self.num_nextn_predict_layers}: 0 or 1 can be run")
        kind = self.rope_scaling.type if self.rope_scaling else "yarn"
        yield rule(kind == "yarn", f"rope_scaling type {kind!r}: only 'yarn' can be run")

    def _rules(self) -> Iterator[str | None]:
        """Every reason why the family's own fields cannot be built (None where a rule holds)."""
        yield from ()


def rule(holds: bool, text: str) -> str | None:
    """Return the text of a rule that does not hold."""
    return None if holds else text


Family = TypeVar("Family", bound=ModelConfig)


def only(config: ModelConfig, family: type[Family], what: str) -> Family:
    """Return the configuration as one of this family. Raises NotSupported where it is of another."""
    if not isinstance(config, family):
        raise NotSupported(f"{what} was asked for a model of {config.model_type!r} ({config.family}), but is built "
                           f"for {family.model_type!r} ({family.family}) alone: use such a model")
    return config


def _family(fields: Mapping[str, Any]) -> type[ModelConfig]:
    """The subclass of the fields' model_type."""
    found: dict[str, type[ModelConfig]] = {}
    at: list[type[ModelConfig]] = [ModelConfig]
    while at:
        at = [sub for each in at for sub in each.__subclasses__()]
        found |= {sub.model_type: sub for sub in at if sub.model_type}
    kind = fields.get("model_type")
    if kind not in found:
        raise ConfigError(f"config.json cannot be used:\n  model_type={kind!r}: only {', '.join(sorted(found))} can be "
                          f"run.{nearest(str(kind), found)}")
    return found[kind]


def _read_scaling(value: Mapping[str, Any] | None) -> YarnScaling | None:
    if value is None:
        return None
    fields = {"type": value.get("rope_type", value.get("type", "yarn"))}
    fields |= {f.name: value[f.name] for f in dataclasses.fields(YarnScaling) if f.name in value and f.name != "type"}
    return YarnScaling(**fields)


def _has_type(value: object, wanted: str) -> bool:
    if wanted.startswith("YarnScaling"):
        return value is None or (isinstance(value, Mapping) and "factor" in value
                                 and "original_max_position_embeddings" in value)
    if wanted == "int | tuple[int, ...]":
        return _has_type(value, "int") or _has_type(value, "tuple[int, ...]")
    if wanted.startswith("tuple"):
        item = str if "str" in wanted else int
        return isinstance(value, (list, tuple)) and all(type(each) is item for each in value)
    if wanted.endswith("| None"):
        return value is None or _has_type(value, wanted.removesuffix(" | None"))
    if wanted in ("int", "bool"):
        return type(value).__name__ == wanted
    return isinstance(value, (int, float)) and not isinstance(value, bool)
