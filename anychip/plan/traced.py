"""The work of a model of this project: its own code, run on the meta device with one layer of each kind.

Nothing is computed; every op call is noted with its arguments. Runs are kept, so that a plan takes milliseconds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..config import ModelConfig
from ..config.specs import AttentionSpec, CompressedAttention, GroupedAttention, LatentAttention, LayerSpec, Mixture
from ..model import Layout, State, Transformer
from ..model.block import MTPBlock
from ..model.plan import Plan
from ..ops.recorded import RecordedOps
from ..ops.shapes import ShapeOps
from ..ops.trees import flat_tensors
from ..record import Event, Kind, Recorder
from .keep import kept_bytes
from .work import Batch, Call, Part, Shape, Split, Weight, Work

# How each parameter is cut, by the end of its name. What is not here is held whole by every rank.
_SPLITS = {
    "indexer.wq_b.weight": Split.COLUMN, "indexer.weights_proj.weight": Split.COLUMN, "indexer.wk.weight": Split.NONE,
    "attn.wq.weight": Split.COLUMN, "attn.wk.weight": Split.COLUMN, "attn.wv.weight": Split.COLUMN,
    "attn.wq_b.weight": Split.COLUMN, "attn.wkv_b.weight": Split.COLUMN, "attn.wo.weight": Split.ROW,
    "attn.wo_a.weight": Split.COLUMN, "attn.wo_b.weight": Split.ROW, "attn.attn_sink": Split.HEADS,
    "experts.w13": Split.EXPERTS, "experts.w2": Split.EXPERTS,
    "shared_experts.w1.weight": Split.COLUMN, "shared_experts.w3.weight": Split.COLUMN,
    "shared_experts.w2.weight": Split.ROW, "ffn.w1.weight": Split.COLUMN, "ffn.w3.weight": Split.COLUMN,
    "ffn.w2.weight": Split.ROW, "embed.weight": Split.VOCAB, "head.weight": Split.VOCAB,
    "e_proj.weight": Split.COLUMN, "h_proj.weight": Split.COLUMN,
}
_BY_OP = {"mlp": Split.FFN, "experts": Split.EXPERTS, "attention": Split.HEADS, "grouped_attention": Split.HEADS,
          "index_topk": Split.HEADS, "grouped_linear": Split.COLUMN, "embed": Split.VOCAB,
          "cross_entropy": Split.VOCAB, "route": Split.TOKENS, "add": Split.TOKENS, "hc_pre": Split.TOKENS,
          "hc_post": Split.TOKENS, "hc_head": Split.TOKENS}
_COMPRESSED = {0: "SWA", 4: "CSA", 128: "HCA"}


def kind_names(config: ModelConfig) -> list[str]:
    """Return the kind of every layer: its attention (SWA, CSA, HCA, MLA, DSA, GQA), and its feed-forward where the
    model has both dense and routed ones. Layers of a kind cost the same."""
    specs = [_costing(config.layer(i)) for i in range(config.num_hidden_layers)]
    both = len({isinstance(spec.ffn, Mixture) for spec in specs}) > 1
    names: dict[LayerSpec, str] = {}
    for spec in dict.fromkeys(specs):
        ffn = " moe" if isinstance(spec.ffn, Mixture) else " dense"
        name = _attention_name(spec.attention) + (ffn if both else "")
        alike = sum(known == name or known.startswith(f"{name} ") for known in names.values())
        names[spec] = f"{name} {alike + 1}" if alike else name
    return [names[spec] for spec in specs]


def _attention_name(attention: AttentionSpec) -> str:
    if isinstance(attention, CompressedAttention):
        return _COMPRESSED[attention.ratio]
    if isinstance(attention, GroupedAttention):
        return "GQA"
    return "MLA" if attention.indexer is None else "shared DSA" if attention.indexer.shared else "DSA"


def _costing(spec: LayerSpec, source: int = -1) -> LayerSpec:
    """The spec without what costs nothing: which experts a token's id fixes, a bias of the choice, whose rows a layer
    without an indexer of its own takes (`source`'s)."""
    attention, ffn = spec.attention, spec.ffn
    if isinstance(attention, LatentAttention) and attention.indexer is not None:
        attention = replace(attention, indexer=replace(attention.indexer, source=source, reused=True))
    return LayerSpec(attention, replace(ffn, hashed=False, bias=True) if isinstance(ffn, Mixture) else ffn)


@lru_cache(maxsize=256)
def traced_work(config: ModelConfig, batch: Batch, name: str = "own", dtype: torch.dtype = torch.bfloat16) -> Work:
    """Return the work of one pass of this model with tensors of `dtype`. Raises InputError where the batch exceeds its
    context."""
    kinds = kind_names(config)
    distinct = list(dict.fromkeys(kinds))
    calls, model = _run(_only(config, [kinds.index(kind) for kind in distinct]), batch, dtype)
    places = {f"layers.{i}.": kind for i, kind in enumerate([*distinct, "mtp"])} | {"mtp.0": "mtp", "head": "head"}
    parts = {}
    for part in ("embed", *distinct, "head", *(["mtp"] if config.num_nextn_predict_layers else [])):
        own = [call for place, call in calls if _part_of(place, places) == part]
        weights = tuple(_weights(model, part, distinct))
        parts[part] = Part(part, tuple(own), weights, any(call.op == "experts" for call in own),
                           kept_bytes(own) if batch.training else 0.0)
    order = ("embed", *kinds, "head", *(["mtp"] * config.num_nextn_predict_layers))
    return Work(_shape(config, name), batch, parts, order)


def _only(config: ModelConfig, layers: Sequence[int]) -> ModelConfig:
    """The same configuration with these layers alone, and its MTP block."""
    kept = [*layers, *range(config.num_hidden_layers, config.num_blocks)]
    source = next((i for i, at in enumerate(kept) if "shared" not in _attention_name(config.layer(at).attention)), -1)
    few = copy.copy(config)
    for cached in ("mixture", "kinds"):
        few.__dict__.pop(cached, None)
    few.__dict__.update(num_hidden_layers=len(layers), layer=lambda index: _costing(config.layer(kept[index]), source))
    return few


def _part_of(place: str, places: dict[str, str]) -> str:
    for start, part in places.items():
        if place.startswith(start):
            return part
    return "embed"


def _shape(c: ModelConfig, name: str) -> Shape:
    attention, mixture = c.layer(0).attention, c.mixture
    return Shape(name, c.hidden_size, c.num_attention_heads, getattr(attention, "kv_heads", 1),
                 mixture.num_experts if mixture else 0, mixture.topk if mixture else 0, c.num_streams,
                 c.vocab_size, c.num_nextn_predict_layers, c.max_position_embeddings)


def _run(config: ModelConfig, batch: Batch, dtype: torch.dtype) -> tuple[list[tuple[str, Call]], Transformer]:
    """One pass on the meta device: every call with its place, and the model."""
    calls: list[tuple[str, Call]] = []
    names: dict[int, str] = {}  # by storage: parts of a parameter have its name
    cached: set[int] = set()

    def keep(event: Event, arguments: tuple[Any, ...], result: object) -> None:
        *positional, named = arguments
        storages = [t.untyped_storage()._cdata for t in flat_tensors(tuple(positional))]
        own = next((names[storage] for storage in storages if storage in names), event.op)
        reads = any(storage in cached for storage in storages)
        split = _split(event, own, positional)
        calls.append((event.layer, Call(event.op, own, split, tuple(positional), named, reads)))

    with torch.device("meta"):
        model = Transformer(config, RecordedOps(ShapeOps(), Recorder(watch=keep), Kind.SIMULATED)).to(dtype)
        names.update((p.untyped_storage()._cdata, name) for name, p in model.named_parameters())

    def state_of(chunk: int) -> State | None:
        """The cache before `chunk` tokens; none in training, nor for whole prompts where attention is dense: MLA takes
        its un-absorbed form without."""
        dense = all(_attention_name(attention) in ("MLA", "GQA") for attention in config.kinds.values())
        if batch.training or (dense and not batch.context):
            return None
        state = State(config, batch.context + chunk, num_sequences=batch.sequences, chunk=chunk, device="meta",
                      dtype=dtype)
        state.assume(batch.context)
        cached.update(t.untyped_storage()._cdata for i in range(config.num_blocks) for t in state.buffers(i).values())
        return state

    with torch.no_grad(), _ShapesOnly():
        _pass(model, batch, state_of)
    return calls, model


class _ShapesOnly(TorchFunctionMode):
    """Gives sums, products and joins of the model's own code their shapes at once.

    torch works these out through its compiler's front end on the meta device, which takes seconds to import.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _ARITHMETIC and isinstance(args[0], Tensor):
            other = args[1].shape if isinstance(args[1], Tensor) else ()
            if args[0].device.type == "meta":
                return args[0].new_empty(max(args[0].shape, other, key=lambda shape: (len(shape), shape)))
        if func is torch.cat and args[0][0].device.type == "meta":
            shape = list(args[0][0].shape)
            shape[args[1]] = sum(part.shape[args[1]] for part in args[0])
            return args[0][0].new_empty(shape)
        return func(*args, **(kwargs or {}))


_ARITHMETIC = frozenset({torch.Tensor.mul, torch.Tensor.__mul__, torch.Tensor.add, torch.Tensor.__add__})


def _pass(model: Transformer, batch: Batch, state_of: Callable[[int], State | None]) -> None:
    """The model's forward pass, its losses in training, its logits in serving; MTP likewise: in serving it drafts from
    the last token of every sequence."""
    rows, ids = batch.sequences, torch.empty(batch.tokens, dtype=torch.int64, device="meta")
    layout = Layout((batch.context,) * rows, (batch.length,) * rows)
    hidden = model(ids, layout, state_of(batch.length))
    head, drafting = model.ops.at("head"), model.ops.at("mtp.0")
    if batch.training:
        head.cross_entropy(hidden.hidden_Td, model.head.weight, ids)
        if model.mtp:
            ahead_Td = model.predict_next(hidden.streams_Tnd, ids, layout)
            drafting.cross_entropy(ahead_Td, model.head.weight, ids)
        return
    head.linear(hidden.hidden_Td[: batch.judged], model.head.weight)
    if model.mtp:
        last, state = Layout((batch.context,) * rows, (1,) * rows), state_of(1)
        if state is not None:
            state.begin(last)
        plan = Plan(model.config, last, state, ids.device)
        embed_Td = drafting.embed(ids[:rows], model.embed.weight)
        block = cast(MTPBlock, model.mtp[0])
        ahead_Td = block.predict(hidden.streams_Tnd[:rows], embed_Td, ids[:rows], plan, model.ops)
        drafting.linear(ahead_Td, model.head.weight)


def _split(event: Event, name: str, arguments: list[Any]) -> Split:
    if event.op in _BY_OP:
        return _BY_OP[event.op]
    for end, split in _SPLITS.items():
        if name.endswith(end):
            return split
    if event.op in ("norm_rope", "rope"):
        return Split.HEADS if arguments[0].dim() == 3 else Split.NONE
    if event.op == "rms_norm" and not name.endswith(("q_norm.weight", "k_norm.weight", "kv_norm.weight")):
        return Split.TOKENS
    return Split.NONE


def _weights(model: Transformer, part: str, distinct: list[str]) -> Iterable[Weight]:
    """The parameters of one part; the head part also holds the final norm and the streams' mixing."""
    starts: dict[str, tuple[str, ...]] = {kind: (f"layers.{i}.",) for i, kind in enumerate(distinct)}
    starts |= {"embed": ("embed.",), "head": ("head.", "norm.", "hc_head"), "mtp": ("mtp.",)}
    for name, parameter in model.named_parameters():
        if name.startswith(starts[part]):
            split = next((s for end, s in _SPLITS.items() if name.endswith(end)), Split.NONE)
            yield Weight(name, tuple(parameter.shape), split, weight_kind(name, parameter.dim()))


def weight_kind(name: str, dims: int) -> str:
    """Return what a parameter is to memory and optimizers: expert, linear, embedding or small."""
    if ".experts." in name:
        return "expert"
    if name in ("embed.weight", "head.weight"):
        return "embedding"
    if "gate.weight" in name or "compressor" in name or "weights_proj" in name:
        return "plain"  # a matrix that the publisher keeps in bf16
    return "linear" if dims > 1 and "hc_" not in name and not name.endswith("ape") else "small"
