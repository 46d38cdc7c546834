"""The publishers' checkpoint layouts: every tensor of a model by name, shape and role.

Written from the configuration's specs alone, so that it can be held against the model. Published and model's tensors
differ in three ways: names (`spelling`); the model stacks the routed experts, `ffn.experts.w13` [E, 2F, d] holding each
expert's w1 (gate) and w3 (up), `ffn.experts.w2` [E, d, F] its w2; and where the publisher joins the MTP block's
projections of embedding and hidden state as `eh_proj` [d, 2d], the model has `e_proj` and `h_proj`.
Sources: the published checkpoints, V4's inference/convert.py, DeepSeek-V3's README_WEIGHTS.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from ..config import ModelConfig
from ..config.specs import CSA, CompressedAttention, Dense, GroupedAttention, LatentAttention, Mixture
from .spelling import module_name, published_name

Index = tuple[int | slice, ...]


class Role(Enum):
    """How the publisher stores a tensor."""

    LINEAR = "FP8 E4M3 with a scale a 128x128 block (BF16 or FP32 where the checkpoint is not quantised)"
    EXPERT = "packed FP4 E2M1 with a scale a 1x32 block (V4), or as LINEAR"
    DENSE = "BF16"
    EXACT = "FP32"
    TABLE = "INT64"


class Scaling(NamedTuple):
    """How a family's FP8 weights are scaled: the scales' name behind the weight's, whether they are stored as E8M0
    (else FP32), and whether they fit the block's largest value (else they are powers of two)."""

    suffix: str
    e8m0: bool = False
    fitted: bool = False


SCALINGS = {"v4": Scaling(".scale", e8m0=True), "v32": Scaling(".weight_scale_inv")}
FITTED = Scaling(".weight_scale_inv", fitted=True)


@dataclass(frozen=True)
class Piece:
    """What lies whole in one published tensor and in one tensor of the model.

    name: the published tensor; shape: the piece's. tensor, index: the model's tensor and where in it the piece lies.
    module: transformers' name of the model's tensor. column of columns: which part of the published tensor it is, of
    equal parts side by side.
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    tensor: str
    module: str
    index: Index = ()
    scaling: Scaling = FITTED
    column: int = 0
    columns: int = 1

    @property
    def scale(self) -> str:
        """The name of its scale, where it is quantised."""
        return self.name.removesuffix(".weight") + self.scaling.suffix

    @property
    def part(self) -> Index:
        """Where in the published tensor it lies; empty where it is all of it."""
        width = self.shape[-1]
        return () if self.columns == 1 else (slice(None), slice(self.column * width, (self.column + 1) * width))

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """The shape of the published tensor."""
        return (*self.shape[:-1], self.shape[-1] * self.columns)


@dataclass(frozen=True)
class Tensor:
    """A tensor of the model, or a matrix of one of its experts: the model's name, role and shape."""

    name: str
    role: Role
    shape: tuple[int, ...]
    stack: str = ""  # the model's tensor that holds an expert's matrix
    index: Index = ()
    column: int = 0  # see Piece
    columns: int = 1


def pieces(config: ModelConfig) -> Iterator[Piece]:
    """Every piece of a model, scales left out; the parts of one model tensor follow in its order."""
    scaling = SCALINGS.get(config.family, FITTED)
    for each in _tensors(config):
        tensor = each.stack or each.name
        yield Piece(published_name(config, each.name), each.shape, each.role, tensor, module_name(config, tensor),
                    each.index, scaling, each.column, each.columns)


def _tensors(c: ModelConfig) -> Iterator[Tensor]:
    yield _of("embed.weight", Role.DENSE, c.vocab_size, c.hidden_size)
    for i in range(c.num_hidden_layers + c.num_nextn_predict_layers):
        is_mtp, layer = i >= c.num_hidden_layers, c.layer(i)
        prefix = f"mtp.{i - c.num_hidden_layers}." if is_mtp else f"layers.{i}."
        yield from _attention(layer.attention, c.hidden_size, prefix + "attn.")
        if isinstance(layer.ffn, Mixture):
            yield from _mixture(layer.ffn, c, prefix + "ffn.")
        else:
            yield from _mlp(layer.ffn, c.hidden_size, prefix + "ffn.")
        yield from _norms_and_streams(c, prefix)
        if is_mtp:
            yield from _mtp_only(c, prefix)
    yield from _head_streams(c, "")
    yield _of("norm.weight", Role.DENSE, c.hidden_size)
    if not c.tie_word_embeddings:
        yield _of("head.weight", Role.DENSE, c.vocab_size, c.hidden_size)


def _of(name: str, role: Role, *shape: int) -> Tensor:
    return Tensor(name, role, shape)


def _attention(spec: CompressedAttention | LatentAttention | GroupedAttention, d: int, prefix: str) -> Iterator[Tensor]:
    if isinstance(spec, CompressedAttention):
        return _compressed(spec, d, prefix)
    return _latent(spec, d, prefix) if isinstance(spec, LatentAttention) else _grouped(spec, d, prefix)


def _compressed(a: CompressedAttention, d: int, prefix: str) -> Iterator[Tensor]:
    heads = a.heads * a.channels
    yield _of(prefix + "wq_a.weight", Role.LINEAR, a.q_lora_rank, d)
    yield _of(prefix + "wq_b.weight", Role.LINEAR, heads, a.q_lora_rank)
    yield _of(prefix + "wkv.weight", Role.LINEAR, a.channels, d)
    yield _of(prefix + "wo_a.weight", Role.LINEAR, a.o_groups * a.o_lora_rank, heads // a.o_groups)
    yield _of(prefix + "wo_b.weight", Role.LINEAR, d, a.o_groups * a.o_lora_rank)
    yield _of(prefix + "q_norm.weight", Role.DENSE, a.q_lora_rank)
    yield _of(prefix + "kv_norm.weight", Role.DENSE, a.channels)
    yield _of(prefix + "attn_sink", Role.EXACT, a.heads)
    if a.ratio:
        yield from _compressor(a.ratio, a.channels, d, prefix + "compressor.")
    if a.indexer:
        index = a.indexer
        yield _of(prefix + "indexer.wq_b.weight", Role.LINEAR, index.heads * index.channels, a.q_lora_rank)
        yield _of(prefix + "indexer.weights_proj.weight", Role.DENSE, index.heads, d)
        yield from _compressor(CSA, index.channels, d, prefix + "indexer.compressor.")


def _compressor(ratio: int, channels: int, d: int, prefix: str) -> Iterator[Tensor]:
    width = channels * (2 if ratio == CSA else 1)  # CSA's windows overlap: each token feeds two entries
    yield _of(prefix + "wkv.weight", Role.DENSE, width, d)
    yield _of(prefix + "wgate.weight", Role.DENSE, width, d)
    yield _of(prefix + "norm.weight", Role.DENSE, channels)
    yield _of(prefix + "ape", Role.EXACT, ratio, width)


def _latent(a: LatentAttention, d: int, prefix: str) -> Iterator[Tensor]:
    query = a.heads * (a.nope + a.rope.channels)
    if a.q_lora_rank is None:
        yield _of(prefix + "wq.weight", Role.LINEAR, query, d)
    else:
        yield _of(prefix + "wq_a.weight", Role.LINEAR, a.q_lora_rank, d)
        yield _of(prefix + "q_norm.weight", Role.DENSE, a.q_lora_rank)
        yield _of(prefix + "wq_b.weight", Role.LINEAR, query, a.q_lora_rank)
    yield _of(prefix + "wkv_a.weight", Role.LINEAR, a.kv_lora_rank + a.rope.channels, d)
    yield _of(prefix + "kv_norm.weight", Role.DENSE, a.kv_lora_rank)
    yield _of(prefix + "wkv_b.weight", Role.LINEAR, a.heads * (a.nope + a.value), a.kv_lora_rank)
    yield _of(prefix + "wo.weight", Role.LINEAR, d, a.heads * a.value)
    if a.indexer and not a.indexer.shared:
        index = a.indexer
        yield _of(prefix + "indexer.wq_b.weight", Role.LINEAR, index.heads * index.channels, a.q_lora_rank or d)
        yield _of(prefix + "indexer.wk.weight", Role.LINEAR, index.channels, d)
        yield _of(prefix + "indexer.k_norm.weight", Role.DENSE, index.channels)
        yield _of(prefix + "indexer.k_norm.bias", Role.DENSE, index.channels)
        yield _of(prefix + "indexer.weights_proj.weight", Role.DENSE, index.heads, d)


def _grouped(a: GroupedAttention, d: int, prefix: str) -> Iterator[Tensor]:
    for name, heads in (("wq", a.heads), ("wk", a.kv_heads), ("wv", a.kv_heads)):
        yield _of(f"{prefix}{name}.weight", Role.LINEAR, heads * a.channels, d)
    yield _of(prefix + "wo.weight", Role.LINEAR, d, a.heads * a.channels)
    for name in ("q_norm", "k_norm"):
        yield _of(f"{prefix}{name}.weight", Role.DENSE, a.channels)


def _mixture(m: Mixture, c: ModelConfig, prefix: str) -> Iterator[Tensor]:
    d, width = c.hidden_size, m.width
    yield _of(prefix + "gate.weight", Role.DENSE, m.num_experts, d)
    if m.hashed:
        yield _of(prefix + "gate.tid2eid", Role.TABLE, c.vocab_size, m.topk)
    elif m.bias:
        yield _of(prefix + "gate.bias", Role.EXACT, m.num_experts)
    w13, w2 = prefix + "experts.w13", prefix + "experts.w2"
    for e in range(m.num_experts):
        for row, name in enumerate(("w1", "w3")):
            rows = slice(row * width, (row + 1) * width)
            yield Tensor(f"{prefix}experts.{e}.{name}.weight", Role.EXPERT, (width, d), w13, (e, rows))
    for e in range(m.num_experts):
        yield Tensor(f"{prefix}experts.{e}.w2.weight", Role.EXPERT, (d, width), w2, (e,))
    if m.shared_width:
        yield from _mlp(Dense(m.shared_width), d, prefix + "shared_experts.")


def _mlp(m: Dense, d: int, prefix: str) -> Iterator[Tensor]:
    yield _of(prefix + "w1.weight", Role.LINEAR, m.width, d)
    yield _of(prefix + "w3.weight", Role.LINEAR, m.width, d)
    yield _of(prefix + "w2.weight", Role.LINEAR, d, m.width)


def _norms_and_streams(c: ModelConfig, prefix: str) -> Iterator[Tensor]:
    for site in ("attn", "ffn"):
        yield _of(f"{prefix}{site}_norm.weight", Role.DENSE, c.hidden_size)
        if c.hyper:
            n = c.hyper.streams
            yield _of(f"{prefix}hc_{site}_fn", Role.EXACT, n * (n + 2), n * c.hidden_size)
            yield _of(f"{prefix}hc_{site}_base", Role.EXACT, n * (n + 2))
            yield _of(f"{prefix}hc_{site}_scale", Role.EXACT, 3)


def _head_streams(c: ModelConfig, prefix: str) -> Iterator[Tensor]:
    if c.hyper:
        n = c.hyper.streams
        yield _of(prefix + "hc_head_fn", Role.EXACT, n, n * c.hidden_size)
        yield _of(prefix + "hc_head_base", Role.EXACT, n)
        yield _of(prefix + "hc_head_scale", Role.EXACT, 1)


def _mtp_only(c: ModelConfig, prefix: str) -> Iterator[Tensor]:
    joined = c.family != "v4"
    for column, name in enumerate(("e_proj", "h_proj")):
        yield Tensor(f"{prefix}{name}.weight", Role.DENSE if joined else Role.LINEAR, (c.hidden_size, c.hidden_size),
                     column=column if joined else 0, columns=2 if joined else 1)
    for name in ("enorm", "hnorm", "norm"):
        yield _of(f"{prefix}{name}.weight", Role.DENSE, c.hidden_size)
    yield from _head_streams(c, prefix)
