"""The names that checkpoints give to the same tensors.

- `publisher`: the released checkpoints; routed experts one by one, quantised or not.
- `transformers`: the module names of Hugging Face transformers' `DeepseekV4ForCausalLM`; experts stacked. It has no
  MTP block and passes over `mtp.*`, so those tensors keep the publisher's names.
- transformers' own `save_pretrained` writes mixtures of the two, which depend on what the model was loaded from (seen
  with 5.23): `canonical` reads any of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

from ..config import ModelConfig
from .layout import Index, Piece, pieces


def _compiled(*rules: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in rules)


# To transformers' names from the model's; each rule that fits is applied.
_TO_TRANSFORMERS = _compiled(
    (r"^embed\.", "model.embed_tokens."),
    (r"^norm\.", "model.norm."),
    (r"^head\.", "lm_head."),
    (r"^hc_head_", "model.hc_head.hc_"),
    (r"^layers\.", "model.layers."),
    (r"\.attn\.indexer\.compressor\.", ".self_attn.compressor.indexer."),
    (r"\.attn\.indexer\.weights_proj\.", ".self_attn.compressor.indexer.scorer.weights_proj."),
    (r"\.attn\.indexer\.wq_b\.", ".self_attn.compressor.indexer.q_b_proj."),
    (r"\.attn\.", ".self_attn."),
    (r"\.ffn\.", ".mlp."),
    (r"\.attn_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
    (r"\.hc_(attn|ffn)_", r".\1_hc."),
    (r"\.w([qo]_[ab])\.weight$", r".\1_proj.weight"),
    (r"\.wkv\.weight$", ".kv_proj.weight"),
    (r"\.wgate\.weight$", ".gate_proj.weight"),
    (r"\.q_norm\.weight$", ".q_a_norm.weight"),
    (r"(\.compressor\.|\.indexer\.)norm\.weight$", r"\1kv_norm.weight"),
    (r"\.ape$", ".position_bias"),
    (r"\.attn_sink$", ".sinks"),
    (r"\.gate\.bias$", ".gate.e_score_correction_bias"),
    (r"\.shared_experts\.w1\.", ".shared_experts.gate_proj."),
    (r"\.shared_experts\.w3\.", ".shared_experts.up_proj."),
    (r"\.shared_experts\.w2\.", ".shared_experts.down_proj."),
    (r"\.experts\.w13$", ".experts.gate_up_proj"),
    (r"\.experts\.w2$", ".experts.down_proj"),
)
# To the model's or the publisher's names from any mixture; each rule that fits is applied.
_FROM_ANY = _compiled(
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


@dataclass(frozen=True, slots=True)
class Place:
    """Where a piece lies in a checkpoint: the stored tensor's name, and the part of it (all where empty)."""

    name: str
    index: Index


@dataclass(frozen=True)
class Stored:
    """A tensor of a checkpoint in some naming, scales left out, and the pieces that it is made of, in order."""

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


Naming = Callable[[Piece], Place]


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
    return Place(_rewritten(piece.tensor, _TO_TRANSFORMERS), piece.index)


NAMINGS: dict[str, Naming] = {"publisher": publisher, "transformers": transformers}


def canonical(name: str) -> str:
    """Return the published name (of a stack of experts: the model's) of a tensor in any naming or mixture."""
    return name if name.startswith("mtp.") else _rewritten(name, _FROM_ANY)


def stored_tensors(config: ModelConfig, naming: Naming) -> Iterator[Stored]:
    """Every tensor that a checkpoint of this model has in this naming, scales left out."""
    for name, group in groupby(pieces(config), key=lambda piece: naming(piece).name):
        members = tuple(group)
        yield Stored(name, _whole_shape(members[-1], naming(members[-1]).index), members)


def _whole_shape(last: Piece, index: Index) -> tuple[int, ...]:
    """Shape of the stack whose last piece this is."""
    if not index:
        return last.shape
    experts, rows = index[0], last.shape[0]
    if len(index) > 1 and isinstance(index[1], slice):
        rows = index[1].stop
    assert isinstance(experts, int)
    return (experts + 1, rows, last.shape[1])


def _rewritten(name: str, rules: tuple[tuple[re.Pattern[str], str], ...]) -> str:
    for pattern, replacement in rules:
        name = pattern.sub(replacement, name, count=1)
    return name
