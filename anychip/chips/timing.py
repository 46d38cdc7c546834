"""Simulated times of op events on a chip: which format each op computes in, and the roofline on its facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..record import Event
from ..sim.roofline import simulate
from .facts import ChipFacts

# precision -> (format of stored activations, bytes of one)
PRECISIONS = {"bf16": ("bf16", 2), "fp16": ("fp16", 2), "fp8": ("bf16", 2), "fp4": ("bf16", 2),
              "fp32": ("fp32", 4), "tf32": ("fp32", 4), "hf32": ("fp32", 4)}
MATMUL_OPS = frozenset({"linear", "grouped_linear", "mlp", "experts", "attention", "grouped_attention",
                        "index_topk", "cross_entropy"})
FP32_PRODUCTS = frozenset({"route", "hc_pre", "hc_head"})  # products that the publisher's code runs in fp32
WEIGHT_OPS = frozenset({"linear", "grouped_linear", "mlp", "experts"})  # their weights are quantised in fp8 and fp4


def simulated(events: Sequence[Event], facts: ChipFacts, precision: str) -> list[Event]:
    """Return the events with roofline times: bytes as the chip stores them, products in the chip's format.

    Weight products run in `precision`; attention and the other products in the storage format; the router's and
    mHC's in fp32 on the matrix units, or the vector units where those take no fp32; the rest on the vector units
    in fp32. Bytes count the storage format for weights too, a little too many for fp8 and fp4.
    """
    storage, width = PRECISIONS[precision]

    def format_of(event: Event) -> str:
        op = event.op.removesuffix(" backward")
        if op not in MATMUL_OPS:
            return "fp32"
        return precision if op in WEIGHT_OPS or width == 4 else storage

    stored = [replace(event, bytes=event.bytes * width / _stored_width(event)) for event in events]
    return simulate(stored, facts, fmt_of=format_of,
                    is_matmul=lambda event: is_matrix_product(event, facts))


def is_matrix_product(event: Event, facts: ChipFacts) -> bool:
    """Tell whether an op's arithmetic runs on the chip's matrix units."""
    op = event.op.removesuffix(" backward")
    return op in MATMUL_OPS or (op in FP32_PRODUCTS and "fp32" in facts.formats)


def _stored_width(event: Event) -> int:
    """Bytes of an element as the event counted them: embed's first tensor is ids, its rows are of the weight."""
    dtype = getattr(torch, event.dtype)
    return dtype.itemsize if dtype.is_floating_point else 4
