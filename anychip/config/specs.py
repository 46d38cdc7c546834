"""What a model is built from, part by part: frozen specs that a family's configuration makes. The model reads these."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

CSA, HCA = 4, 128  # tokens that a compressed entry pools


@dataclass(frozen=True)
class YarnScaling:
    """YaRN's frequency ramp: `factor` over the `original_max_position_embeddings` tokens. `mscale` and
    `mscale_all_dim` (None: not given) are V3's; what a family makes of them is in its configuration."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    type: str = "yarn"


def yarn_mscale(factor: float, mscale: float) -> float:
    """Return YaRN's factor of queries and keys: 0.1 mscale ln(factor) + 1, 1 where nothing is stretched."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def yarn_amplitude(yarn: YarnScaling | None) -> float:
    """Return what YaRN multiplies cos and sin by: its mscale over that of all channels, where both are given."""
    if yarn is None:
        return 1.0
    if yarn.mscale and yarn.mscale_all_dim:
        return yarn_mscale(yarn.factor, yarn.mscale) / yarn_mscale(yarn.factor, yarn.mscale_all_dim)
    return yarn_mscale(yarn.factor, 1.0)


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of `channels`: theta, YaRN's ramp if any, and what cos and sin are multiplied by."""

    channels: int
    theta: float
    yarn: YarnScaling | None = None
    amplitude: float = 1.0


class Buffer(NamedTuple):
    """Cached rows of one layer, `width` values for each `ratio` tokens; `keep` rows before the next token are needed
    again (None: all). Buffers of one `book` hold the same positions."""

    name: str
    width: int
    book: str
    ratio: int = 1
    keep: int | None = None


def entries(name: str, width: int, ratio: int = 1) -> Buffer:
    """Return a buffer that keeps a row for each `ratio` tokens for ever."""
    return Buffer(name, width, f"entries{ratio}", ratio)


@dataclass(frozen=True)
class IndexerSpec:
    """A lightning indexer: `topk` rows a token by `heads` of `channels`. `half_split`: its RoPE pairs channels i and
    i + R/2. `shared`: it has no weights and takes the rows that the indexer of layer `source` picked. `reused`: a
    later layer takes the rows of this one."""

    heads: int
    channels: int
    topk: int
    half_split: bool = False
    shared: bool = False
    source: int = -1
    reused: bool = False


@dataclass(frozen=True)
class CompressedAttention:
    """V4's: one shared K=V head of `channels`, a sliding `window`, and entries that pool `ratio` tokens (0: none)."""

    heads: int
    channels: int
    q_lora_rank: int
    o_groups: int
    o_lora_rank: int
    window: int
    ratio: int
    rope: Rope
    indexer: IndexerSpec | None = None

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """The window's entries; a compressor's open tokens and its entries, and the same of the indexer's."""
        found = [Buffer("window", self.channels, "window", keep=self.window - 1)]
        parts = {"compressor": self.channels} if self.ratio else {}
        parts |= {"indexer": self.indexer.channels} if self.indexer else {}
        for part, channels in parts.items():
            overlap = 2 if self.ratio == CSA else 1
            found += [Buffer(f"{part}.{kind}", channels * overlap, f"tokens{self.ratio}",
                             keep=overlap * self.ratio - 1) for kind in ("value", "gate")]
            found.append(entries(f"{part}.entry", channels, self.ratio))
        return tuple(found)


@dataclass(frozen=True)
class LatentAttention:
    """V3's MLA: keys and values come from one latent of `kv_lora_rank` a token, and a rotated key that heads share.

    A head's query and key have `nope` channels and those of `rope`, its value `value`. `q_lora_rank` None: queries come
    straight from the hidden. `scale` multiplies logits; `latent_eps` is the eps of the latents' norms.
    """

    heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    nope: int
    rope: Rope
    value: int
    scale: float
    indexer: IndexerSpec | None = None
    latent_eps: float = 1e-6
    ratio: int = 1

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """The latent with the rotated key, and the key of an indexer of its own."""
        found = (entries("entry", self.kv_lora_rank + self.rope.channels),)
        own = self.indexer is not None and not self.indexer.shared
        return (*found, entries("indexer.key", self.indexer.channels)) if own and self.indexer else found


@dataclass(frozen=True)
class GroupedAttention:
    """Qwen3's GQA: `kv_heads` heads of keys and values, each read by a group of the `heads` of queries. RMSNorm of each
    head's query and key, then RoPE of all `channels` (pairs i and i + C/2)."""

    heads: int
    kv_heads: int
    channels: int
    rope: Rope
    ratio: int = 1
    indexer: None = None

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """Keys after norm and RoPE, and values."""
        return tuple(entries(name, self.kv_heads * self.channels) for name in ("key", "value"))


AttentionSpec = CompressedAttention | LatentAttention | GroupedAttention


@dataclass(frozen=True)
class Mixture:
    """`num_experts` routed SwiGLU experts of `width`, `topk` a token, and a shared one of `shared_width` (0: none).

    Scores are `score` of the gate's product; choice is by score plus a bias where there is one (`bias`), among the
    `kept_groups` best of `groups`, or by token id (`hashed`). Weights are scaled to 1 (`normalize`), then by `scale`.
    SwiGLU clamps at `limit` (inf: not).
    """

    num_experts: int
    topk: int
    width: int
    score: str
    scale: float = 1.0
    groups: int = 1
    kept_groups: int = 1
    normalize: bool = True
    shared_width: int = 0
    bias: bool = True
    hashed: bool = False
    limit: float = math.inf


@dataclass(frozen=True)
class Dense:
    """One SwiGLU of `width`, without a clamp."""

    width: int


@dataclass(frozen=True)
class LayerSpec:
    """A block's two sub-layers."""

    attention: AttentionSpec
    ffn: Mixture | Dense


@dataclass(frozen=True)
class HyperSpec:
    """mHC: `streams` residual streams, mixed by matrices from `sinkhorn_iters` Sinkhorn steps."""

    streams: int
    sinkhorn_iters: int
    eps: float
