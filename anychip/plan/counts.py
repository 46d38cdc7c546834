"""The numbers that a model is known by, from its own calls: parameters, cache bytes, FLOPs of a decoded token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..config import ModelConfig
from ..config.specs import AttentionSpec, Buffer, CompressedAttention, GroupedAttention
from ..errors import InputError
from .cut import CLASSES, Cuts, Share, cut
from .work import Work

CACHE_FORMATS = ("fp8", "int8", "bf16")


class Flops(NamedTuple):
    """FLOPs of a pass: of all matrix products, and the same in FP8 equivalents (BF16 counts 2, FP4 counts 0.5)."""

    raw: float
    fp8_equivalent: float


def decode_flops(work: Work) -> Flops:
    """Return the products' FLOPs of one pass of the main model (no MTP block).

    The equivalents are the V4 report's: linear layers in FP8, attention in BF16, V4's indexer in FP4. The weighted
    ReLU sum of the indexer is no matrix product and is left out, as in the published figures.
    """
    raw = equivalent = 0.0
    for name, times in work.count.items():
        if name in ("mtp", "embed"):
            continue
        cuts = cut(work.parts[name], Share())
        for kind, label in enumerate(CLASSES):
            if label == "vector":
                continue
            flops = times * _product_flops(work, name, cuts, kind)
            raw += flops
            equivalent += flops * _weight_of(label, work)
    return Flops(raw, equivalent)


def _product_flops(work: Work, name: str, cuts: Cuts, kind: int) -> float:
    """FLOPs of one class, the indexer's without its ReLU and weighted sum (2 of 2 I + 2 a pair and head)."""
    flops = float(cuts.flops[cuts.kind == kind].sum())
    if CLASSES[kind] == "index":
        for call in work.parts[name].calls:
            if call.op == "index_topk":
                channels = call.arguments[0].shape[-1]
                return flops * channels / (channels + 1)
    return flops


def _weight_of(label: str, work: Work) -> float:
    if label == "attention":
        return 2.0
    return 0.5 if label == "index" and work.shape.streams > 1 else 1.0


class CacheBytes(NamedTuple):
    """Bytes of cache: for each token of context, and fixed for each sequence (windows, compressors' open tokens)."""

    per_token: float
    per_sequence: float


def cache_bytes(config: ModelConfig, fmt: str = "fp8") -> CacheBytes:
    """Return the cache of one sequence, from the buffers of the main model's layers, and the MTP block's window.

    `fp8` is each publisher's format. Open tokens of compressors are fp32. Raises InputError for a format that is not in
    CACHE_FORMATS.
    """
    if fmt not in CACHE_FORMATS:
        raise InputError(f"no cache format {fmt!r}; choose one of {', '.join(CACHE_FORMATS)}")
    per_token = per_sequence = 0.0
    for index in range(config.num_blocks):
        attention = config.layer(index).attention
        for buffer in attention.buffers:
            if buffer.keep is not None:  # the last `keep` rows and the new one
                per_sequence += (buffer.keep + 1) * _row_bytes(buffer, attention, fmt)
            elif index < config.num_hidden_layers:
                per_token += _row_bytes(buffer, attention, fmt) / buffer.ratio
    return CacheBytes(per_token, per_sequence)


def _row_bytes(buffer: Buffer, attention: AttentionSpec, fmt: str) -> float:
    """Bytes of one cached row. GQA's keys and values have one byte a channel in `fp8` and `int8`.

    V4 in `fp8`: 448 FP8, 64 BF16, 8 bytes of scales; its indexer's keys FP4 with 4. MLA in both is FlashMLA's format:
    512 of a byte, 64 BF16, 16 bytes of scales; its indexer's keys 128 of a byte and 4.
    """
    width, rope = buffer.width, attention.rope.channels
    if buffer.name.endswith((".value", ".gate")):
        return 4.0 * width
    if fmt == "bf16":
        return 2.0 * width
    if isinstance(attention, GroupedAttention):
        return float(width)
    compressed = isinstance(attention, CompressedAttention)
    if buffer.name.startswith("indexer."):
        return width / (2 if compressed and fmt == "fp8" else 1) + 4
    if compressed:
        return width + (rope + 8.0 if fmt == "fp8" else 4.0)
    return width + rope + 16.0


def described_cache_bytes(fields: Mapping[str, int], fmt: str = "fp8") -> CacheBytes:
    """Return the cache of a described model; `fields` are its kv_lora, rope, index_dim, kv_heads, head_dim, layers.

    MLA in `fp8` is FlashMLA's format: 512 FP8, 16 bytes of scales, 64 BF16; its indexer key 128 FP8 and a scale.
    """
    width = {"fp8": 1.0, "int8": 1.0, "bf16": 2.0}[fmt]
    if fields["kv_lora"]:
        scales = 16 if fmt != "bf16" else 0
        entry = fields["kv_lora"] * width + scales + 2 * fields["rope"]
        entry += (fields["index_dim"] * width + (4 if fmt != "bf16" else 0)) if fields["index_dim"] else 0
    else:
        entry = 2 * fields["kv_heads"] * fields["head_dim"] * width
    return CacheBytes(entry * fields["layers"], 0.0)
