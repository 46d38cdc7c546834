"""What a model is built from, part by part: frozen specs that a family's configuration makes. The model reads these."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

CSA, HCA = 4, 128  # tokens that a compressed entry pools


@dataclass(frozen=True)
class YarnScaling:
    """YaRN's frequency ramp: `factor` over the `original_max_position_embeddings` tokens."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    type: str = "yarn"


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
    """A lightning indexer: `topk` rows a token by `heads` of `channels`."""

    heads: int
    channels: int
    topk: int


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


AttentionSpec = CompressedAttention


@dataclass(frozen=True)
class Mixture:
    """`num_experts` routed SwiGLU experts of `width`, `topk` a token, and a shared one of `shared_width` (0: none).

    Choice is by score plus a bias where there is one (`bias`), or by token id (`hashed`). Weights sum to `scale`.
    SwiGLU clamps at `limit` (inf: not).
    """

    num_experts: int
    topk: int
    width: int
    scale: float = 1.0
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
