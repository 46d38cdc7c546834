"""The work of a DeepSeek-V4 model: its own code, run on the meta device with one layer of each kind.

Nothing is computed; every op call is noted with its arguments. Runs are kept, so that a plan takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..config import DeepseekV4Config, ModelConfig, only
from ..model import Layout, State, Transformer
from ..ops.recorded import RecordedOps
from ..ops.shapes import ShapeOps
from ..ops.trees import flat_tensors
from ..record import Event, Kind, Recorder
from .keep import kept_bytes
from .work import Batch, Call, Part, Shape, Split, Weight, Work

# How each parameter is cut, by the end of its name. What is not here is held whole by every rank.
_SPLITS = {
    "attn.wq_b.weight": Split.COLUMN, "attn.wo_a.weight": Split.COLUMN, "attn.wo_b.weight": Split.ROW,
    "attn.attn_sink": Split.HEADS, "indexer.wq_b.weight": Split.COLUMN, "indexer.weights_proj.weight": Split.COLUMN,
    "experts.w13": Split.EXPERTS, "experts.w2": Split.EXPERTS,
    "shared_experts.w1.weight": Split.COLUMN, "shared_experts.w3.weight": Split.COLUMN,
    "shared_experts.w2.weight": Split.ROW, "embed.weight": Split.VOCAB, "head.weight": Split.VOCAB,
    "e_proj.weight": Split.COLUMN, "h_proj.weight": Split.COLUMN,
}
_BY_OP = {"mlp": Split.FFN, "experts": Split.EXPERTS, "attention": Split.HEADS, "index_topk": Split.HEADS,
          "embed": Split.VOCAB, "cross_entropy": Split.VOCAB, "route": Split.TOKENS, "hc_pre": Split.TOKENS,
          "hc_post": Split.TOKENS, "hc_head": Split.TOKENS}


def kind_names(config: DeepseekV4Config) -> list[str]:
    """Return the kind of every layer: SWA, CSA or HCA. Layers where token ids choose the experts cost the same."""
    names = {0: "SWA", 4: "CSA", 128: "HCA"}
    return [names[ratio] for ratio in config.compress_ratios[: config.num_hidden_layers]]


@lru_cache(maxsize=256)
def v4_work(config: ModelConfig, batch: Batch, name: str = "v4", dtype: torch.dtype = torch.bfloat16) -> Work:
    """Return the work of one pass of this model with tensors of `dtype`. Raises InputError where the batch exceeds its
    context."""
    config = only(config, DeepseekV4Config, "this plan")
    kinds = kind_names(config)
    distinct = list(dict.fromkeys(kinds))
    small = replace(config, num_hidden_layers=len(distinct), num_hash_layers=0,
                    compress_ratios=(*(config.compress_ratios[kinds.index(kind)] for kind in distinct),
                                     *config.compress_ratios[config.num_hidden_layers:]))
    calls, model = _run(small, batch, dtype)
    places = {f"layers.{i}.": kind for i, kind in enumerate([*distinct, "mtp"])} | {"mtp.0": "mtp", "head": "head"}
    parts = {}
    for part in ("embed", *distinct, "head", *(["mtp"] if config.num_nextn_predict_layers else [])):
        own = [call for place, call in calls if _part_of(place, places) == part]
        weights = tuple(_weights(model, part, distinct))
        parts[part] = Part(part, tuple(own), weights, any(call.op == "experts" for call in own),
                           kept_bytes(own) if batch.training else 0.0)
    order = ("embed", *kinds, "head", *(["mtp"] * config.num_nextn_predict_layers))
    return Work(_shape(config, name), batch, parts, order)


def _part_of(place: str, places: dict[str, str]) -> str:
    for start, part in places.items():
        if place.startswith(start):
            return part
    return "embed"


def _shape(c: DeepseekV4Config, name: str) -> Shape:
    return Shape(name, c.hidden_size, c.num_attention_heads, 1, c.n_routed_experts, c.num_experts_per_tok, c.hc_mult,
                 c.vocab_size, c.num_nextn_predict_layers, c.max_position_embeddings)


def _run(config: ModelConfig, batch: Batch, dtype: torch.dtype) -> tuple[list[tuple[str, Call]], Transformer]:
    """One pass on the meta device: every call with its place, and the model."""
    calls: list[tuple[str, Call]] = []
    names: dict[int, str] = {}
    cached: set[int] = set()

    def keep(event: Event, arguments: tuple[Any, ...], result: object) -> None:
        *positional, named = arguments
        own = next((names[id(t)] for t in flat_tensors(tuple(positional)) if id(t) in names), event.op)
        reads = any(t.untyped_storage()._cdata in cached for t in flat_tensors(tuple(positional)))
        split = _split(event, own, positional)
        calls.append((event.layer, Call(event.op, own, split, tuple(positional), named, reads)))

    with torch.device("meta"):
        model = Transformer(config, RecordedOps(ShapeOps(), Recorder(watch=keep), Kind.SIMULATED)).to(dtype)
        names.update((id(parameter), name) for name, parameter in model.named_parameters())
        ids = torch.empty(batch.tokens, dtype=torch.int64)
        state = None
        if not batch.training:
            state = State(config, batch.context + batch.length, num_sequences=batch.sequences, chunk=batch.length,
                          device="meta", dtype=dtype)
            state.assume(batch.context)
            cached.update(t.untyped_storage()._cdata for i in range(config.num_blocks)
                          for t in state.buffers(i).values())
        layout = Layout((batch.context,) * batch.sequences, (batch.length,) * batch.sequences)
    with torch.no_grad(), _ShapesOnly():
        _pass(model, ids, layout, state)
    return calls, model


class _ShapesOnly(TorchFunctionMode):
    """Gives sums and products of the model's own code their shapes at once.

    torch works these out through its compiler's front end on the meta device, which takes seconds to import.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _ARITHMETIC and isinstance(args[0], Tensor):
            other = args[1].shape if isinstance(args[1], Tensor) else ()
            if args[0].device.type == "meta":
                return args[0].new_empty(max(args[0].shape, other, key=lambda shape: (len(shape), shape)))
        return func(*args, **(kwargs or {}))


_ARITHMETIC = frozenset({torch.Tensor.mul, torch.Tensor.__mul__, torch.Tensor.add, torch.Tensor.__add__})


def _pass(model: Transformer, ids: Tensor, layout: Layout, state: State | None) -> None:
    """The model's forward pass, its losses in training, its logits (one a sequence) in serving; MTP likewise."""
    hidden = model(ids, layout, state)
    head = model.ops.at("head")
    if state is None:
        head.cross_entropy(hidden.hidden_Td, model.head.weight, ids)
        if model.mtp:
            ahead_Td = model.predict_next(hidden.streams_Tnd, ids, layout)
            model.ops.at("mtp.0").cross_entropy(ahead_Td, model.head.weight, ids)
    else:
        head.linear(hidden.hidden_Td[: len(layout.lengths)], model.head.weight)
        if model.mtp:
            rows = len(layout.lengths)
            first = Layout.whole((1,) * rows)  # the MTP block drafts from the last token; its window is 128 tokens
            ahead_Td = model.predict_next(hidden.streams_Tnd[:rows], ids[:rows], first)
            model.ops.at("mtp.0").linear(ahead_Td, model.head.weight)


def _split(event: Event, name: str, arguments: list[Any]) -> Split:
    if event.op in _BY_OP:
        return _BY_OP[event.op]
    for end, split in _SPLITS.items():
        if name.endswith(end):
            return split
    if event.op in ("norm_rope", "rope"):
        return Split.HEADS if arguments[0].dim() == 3 else Split.NONE
    if event.op == "rms_norm" and not name.endswith(("q_norm.weight", "kv_norm.weight")):
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
