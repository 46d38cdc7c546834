"""The numbers that a model is known by, from its own calls: parameters, cache bytes, FLOPs of a decoded token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..config import DeepseekV4Config
from ..errors import InputError
from .cut import CLASSES, Cuts, Share, cut
from .work import Work

# The publisher's cache: 448 channels of FP8, 64 of BF16, 8 bytes of scales; the indexer's key 128 of FP4, 4 of scales.
ENTRY_BYTES, INDEX_BYTES = 448 + 2 * 64 + 8, 64 + 4
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


def v4_cache_bytes(config: DeepseekV4Config, fmt: str = "fp8") -> CacheBytes:
    """Return the cache of one sequence of a V4 model. `fp8` is the publisher's format with FP4 indexer keys.

    The compressors' open tokens (8 slots of CSA, 128 of HCA, value and gate) are fp32. Raises InputError for a
    format that is not in CACHE_FORMATS.
    """
    if fmt not in CACHE_FORMATS:
        raise InputError(f"no cache format {fmt!r}; choose one of {', '.join(CACHE_FORMATS)}")
    entry, key = {"fp8": (ENTRY_BYTES, INDEX_BYTES), "int8": (config.head_dim + 4, config.index_head_dim + 4),
                  "bf16": (2 * config.head_dim, 2 * config.index_head_dim)}[fmt]
    ratios = config.compress_ratios
    per_token = sum((entry + (key if ratio == 4 else 0)) / ratio for ratio in ratios if ratio)
    window = len(ratios) * config.sliding_window * entry
    open_tokens = sum(4 * 2 * (8 * 2 * (config.head_dim + config.index_head_dim) if ratio == 4 else
                               128 * config.head_dim) for ratio in ratios if ratio)
    return CacheBytes(per_token, float(window + open_tokens))


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
