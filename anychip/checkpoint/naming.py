"""The three ways in which checkpoints name the same tensors.

- `publisher`: the released checkpoints; routed experts one by one, quantised or not.
- `transformers`: the module names of Hugging Face transformers' `DeepseekV4ForCausalLM`; experts stacked.
- `transformers-saved`: what its `save_pretrained` writes by default: the publisher's names, translated back by
  rules that lose a few of them (seen with transformers 5.23).

transformers has no MTP block and passes over `mtp.*`, so those tensors keep the publisher's names everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import groupby

from ..config import ModelConfig
from .layout import Index, Piece, pieces

# (pattern of a model tensor's name, its name in transformers); the first that fits is taken.
_TRANSFORMERS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^embed\.", "model.embed_tokens."),
        (r"^norm\.", "model.norm."),
        (r"^head\.", "lm_head."),
        (r"^hc_head_", "model.hc_head.hc_"),
        (r"^layers\.(\d+)\.attn\.indexer\.compressor\.", r"model.layers.\1.self_attn.compressor.indexer."),
        (
            r"^layers\.(\d+)\.attn\.indexer\.weights_proj\.",
            r"model.layers.\1.self_attn.compressor.indexer.scorer.weights_proj.",
        ),
        (r"^layers\.(\d+)\.attn\.indexer\.", r"model.layers.\1.self_attn.compressor.indexer."),
        (r"^layers\.(\d+)\.attn\.", r"model.layers.\1.self_attn."),
        (r"^layers\.(\d+)\.ffn\.", r"model.layers.\1.mlp."),
        (r"^layers\.(\d+)\.attn_norm\.", r"model.layers.\1.input_layernorm."),
        (r"^layers\.(\d+)\.ffn_norm\.", r"model.layers.\1.post_attention_layernorm."),
        (r"^layers\.(\d+)\.hc_(attn|ffn)_", r"model.layers.\1.\2_hc."),
    )
)
# (end of the name after the rules above, its end in transformers)
_ENDINGS = {
    ".wq_a.weight": ".q_a_proj.weight",
    ".wq_b.weight": ".q_b_proj.weight",
    ".wo_a.weight": ".o_a_proj.weight",
    ".wo_b.weight": ".o_b_proj.weight",
    ".wkv.weight": ".kv_proj.weight",
    ".wgate.weight": ".gate_proj.weight",
    ".q_norm.weight": ".q_a_norm.weight",
    ".compressor.norm.weight": ".compressor.kv_norm.weight",
    ".indexer.norm.weight": ".indexer.kv_norm.weight",
    ".ape": ".position_bias",
    ".attn_sink": ".sinks",
    ".gate.bias": ".gate.e_score_correction_bias",
    ".experts.w13": ".experts.gate_up_proj",
    ".experts.w2": ".experts.down_proj",
    ".shared_experts.w1.weight": ".shared_experts.gate_proj.weight",
    ".shared_experts.w3.weight": ".shared_experts.up_proj.weight",
    ".shared_experts.w2.weight": ".shared_experts.down_proj.weight",
}
_SAVED = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^embed\.", "model.embed_tokens."),
        (r"^head\.", "head."),
        (r"^hc_head_", "model.hc_head.hc_"),
        (r"^layers\.(\d+)\.attn\.kv_norm\.", r"model.layers.\1.attn.norm."),
        (r"^", "model."),
    )
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a piece lies in a checkpoint: the stored tensor's name, and the part of it (all where empty)."""

    name: str
    index: Index


def in_model(piece: Piece) -> Place:
    """The model's own state_dict: the publisher's names, routed experts stacked."""
    return Place(piece.tensor, piece.index)


def publisher(piece: Piece) -> Place:
    """The released checkpoints' naming."""
    return Place(piece.name, ())


def transformers(piece: Piece) -> Place:
    """The naming of transformers' modules."""
    if piece.name.startswith("mtp."):
        return publisher(piece)
    name = _first(piece.tensor, _TRANSFORMERS)
    for ending, new in _ENDINGS.items():
        if name.endswith(ending):
            return Place(name.removesuffix(ending) + new, piece.index)
    return Place(name, piece.index)


def transformers_saved(piece: Piece) -> Place:
    """The naming that transformers' `save_pretrained` writes."""
    return publisher(piece) if piece.name.startswith("mtp.") else Place(_first(piece.name, _SAVED), ())


Naming = Callable[[Piece], Place]
NAMINGS: dict[str, Naming] = {
    "publisher": publisher,
    "transformers": transformers,
    "transformers-saved": transformers_saved,
}


@dataclass(frozen=True)
class Stored:
    """A tensor of a checkpoint in some naming, scales left out, and the pieces that it is made of, in order."""

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


def stored_tensors(config: ModelConfig, naming: Naming) -> Iterator[Stored]:
    """Every tensor that a checkpoint of this model has in this naming, scales left out."""
    for name, group in groupby(pieces(config), key=lambda piece: naming(piece).name):
        members = tuple(group)
        index = naming(members[-1]).index
        yield Stored(name, _whole_shape(members[-1], index), members)


def recognise(names: Collection[str], config: ModelConfig) -> Naming:
    """Return the naming that most of these names belong to."""

    def fitting(naming: Naming) -> int:
        return sum(stored.name in names for stored in stored_tensors(config, naming))

    return max(NAMINGS.values(), key=fitting)


def _whole_shape(last: Piece, index: Index) -> tuple[int, ...]:
    """Shape of the stack whose last piece this is."""
    if not index:
        return last.shape
    experts, rows = (
        index[0],
        index[1].stop if len(index) > 1 and isinstance(index[1], slice) else last.shape[0],
    )
    assert isinstance(experts, int)
    return (experts + 1, rows, last.shape[1])


def _first(name: str, rules: tuple[tuple[re.Pattern[str], str], ...]) -> str:
    for pattern, replacement in rules:
        if pattern.search(name):
            return pattern.sub(replacement, name, count=1)
    raise ValueError(f"no rule names {name}")
