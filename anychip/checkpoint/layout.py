"""The publisher's checkpoint layout: every tensor of a V4 model by name, shape and role.

Written from the configuration alone, so that it can be held against the model. The model's parameters have the
publisher's names, except that it stacks the routed experts: `ffn.experts.w13` [E, 2F, d] holds each expert's w1
(gate) and w3 (up), `ffn.experts.w2` [E, d, F] its w2. Source: the published checkpoints and inference/convert.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from ..config import DeepseekV4Config, ModelConfig, only

Index = tuple[int | slice, ...]
CSA = 4


class Role(Enum):
    """How the publisher stores a tensor."""

    LINEAR = "FP8 E4M3 with a scale a 128x128 block (BF16 or FP32 where the checkpoint is not quantised)"
    EXPERT = "packed FP4 E2M1 with a scale a 1x32 block, or as LINEAR"
    DENSE = "BF16"
    EXACT = "FP32"
    TABLE = "INT64"


@dataclass(frozen=True)
class Piece:
    """One published tensor: its name, shape and role, and where in the model it lies (`tensor[index]`)."""

    name: str
    shape: tuple[int, ...]
    role: Role
    tensor: str
    index: Index = ()

    @property
    def scale(self) -> str:
        """The name of its scale, where it is quantised."""
        return self.name.removesuffix(".weight") + ".scale"


def pieces(config: ModelConfig) -> Iterator[Piece]:
    """Every published tensor of a model, scales left out; the parts of one model tensor follow in its order."""
    c = only(config, DeepseekV4Config, "this checkpoint layout")
    yield _plain("embed.weight", Role.DENSE, c.vocab_size, c.hidden_size)
    for layer, ratio in enumerate(c.compress_ratios):
        is_mtp = layer >= c.num_hidden_layers
        prefix = f"mtp.{layer - c.num_hidden_layers}." if is_mtp else f"layers.{layer}."
        yield from _attention(c, prefix + "attn.", ratio)
        yield from _experts(c, prefix + "ffn.", hashed=layer < c.num_hash_layers)
        yield from _norms_and_streams(c, prefix)
        if is_mtp:
            yield from _mtp_only(c, prefix)
    yield from _head_streams(c, "")
    yield _plain("norm.weight", Role.DENSE, c.hidden_size)
    yield _plain("head.weight", Role.DENSE, c.vocab_size, c.hidden_size)


def is_shared_copy(name: str) -> bool:
    """Whether this is the MTP block's copy of the embedding or head, which the model shares: skipped on reading."""
    return name.startswith(("mtp.0.emb.", "mtp.0.embed.", "mtp.0.head."))


def _plain(name: str, role: Role, *shape: int) -> Piece:
    return Piece(name, shape, role, name)


def _attention(c: DeepseekV4Config, prefix: str, ratio: int) -> Iterator[Piece]:
    heads = c.num_attention_heads * c.head_dim
    yield _plain(prefix + "wq_a.weight", Role.LINEAR, c.q_lora_rank, c.hidden_size)
    yield _plain(prefix + "wq_b.weight", Role.LINEAR, heads, c.q_lora_rank)
    yield _plain(prefix + "wkv.weight", Role.LINEAR, c.head_dim, c.hidden_size)
    yield _plain(prefix + "wo_a.weight", Role.LINEAR, c.o_groups * c.o_lora_rank, heads // c.o_groups)
    yield _plain(prefix + "wo_b.weight", Role.LINEAR, c.hidden_size, c.o_groups * c.o_lora_rank)
    yield _plain(prefix + "q_norm.weight", Role.DENSE, c.q_lora_rank)
    yield _plain(prefix + "kv_norm.weight", Role.DENSE, c.head_dim)
    yield _plain(prefix + "attn_sink", Role.EXACT, c.num_attention_heads)
    if ratio:
        yield from _compressor(c, prefix + "compressor.", ratio, c.head_dim)
    if ratio == CSA:
        yield _plain(
            prefix + "indexer.wq_b.weight", Role.LINEAR, c.index_n_heads * c.index_head_dim, c.q_lora_rank
        )
        yield _plain(prefix + "indexer.weights_proj.weight", Role.DENSE, c.index_n_heads, c.hidden_size)
        yield from _compressor(c, prefix + "indexer.compressor.", CSA, c.index_head_dim)


def _compressor(c: DeepseekV4Config, prefix: str, ratio: int, channels: int) -> Iterator[Piece]:
    width = channels * (2 if ratio == CSA else 1)  # CSA's windows overlap: each token feeds two entries
    yield _plain(prefix + "wkv.weight", Role.DENSE, width, c.hidden_size)
    yield _plain(prefix + "wgate.weight", Role.DENSE, width, c.hidden_size)
    yield _plain(prefix + "norm.weight", Role.DENSE, channels)
    yield _plain(prefix + "ape", Role.EXACT, ratio, width)


def _experts(c: DeepseekV4Config, prefix: str, hashed: bool) -> Iterator[Piece]:
    count, width, d = c.n_routed_experts, c.moe_intermediate_size, c.hidden_size
    yield _plain(prefix + "gate.weight", Role.DENSE, count, d)
    if hashed:
        yield _plain(prefix + "gate.tid2eid", Role.TABLE, c.vocab_size, c.num_experts_per_tok)
    else:
        yield _plain(prefix + "gate.bias", Role.EXACT, count)
    w13, w2 = prefix + "experts.w13", prefix + "experts.w2"
    for e in range(count):
        yield Piece(f"{prefix}experts.{e}.w1.weight", (width, d), Role.EXPERT, w13, (e, slice(0, width)))
        yield Piece(
            f"{prefix}experts.{e}.w3.weight", (width, d), Role.EXPERT, w13, (e, slice(width, 2 * width))
        )
    for e in range(count):
        yield Piece(f"{prefix}experts.{e}.w2.weight", (d, width), Role.EXPERT, w2, (e,))
    yield _plain(prefix + "shared_experts.w1.weight", Role.LINEAR, width, d)
    yield _plain(prefix + "shared_experts.w3.weight", Role.LINEAR, width, d)
    yield _plain(prefix + "shared_experts.w2.weight", Role.LINEAR, d, width)


def _norms_and_streams(c: DeepseekV4Config, prefix: str) -> Iterator[Piece]:
    n, d = c.hc_mult, c.hidden_size
    for site in ("attn", "ffn"):
        yield _plain(f"{prefix}{site}_norm.weight", Role.DENSE, d)
        yield _plain(f"{prefix}hc_{site}_fn", Role.EXACT, n * (n + 2), n * d)
        yield _plain(f"{prefix}hc_{site}_base", Role.EXACT, n * (n + 2))
        yield _plain(f"{prefix}hc_{site}_scale", Role.EXACT, 3)


def _head_streams(c: DeepseekV4Config, prefix: str) -> Iterator[Piece]:
    yield _plain(prefix + "hc_head_fn", Role.EXACT, c.hc_mult, c.hc_mult * c.hidden_size)
    yield _plain(prefix + "hc_head_base", Role.EXACT, c.hc_mult)
    yield _plain(prefix + "hc_head_scale", Role.EXACT, 1)


def _mtp_only(c: DeepseekV4Config, prefix: str) -> Iterator[Piece]:
    for name in ("e_proj", "h_proj"):
        yield _plain(f"{prefix}{name}.weight", Role.LINEAR, c.hidden_size, c.hidden_size)
    for name in ("enorm", "hnorm", "norm"):
        yield _plain(f"{prefix}{name}.weight", Role.DENSE, c.hidden_size)
    yield from _head_streams(c, prefix)
