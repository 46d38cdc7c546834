"""Formats that a served model's weights come in, and the bytes of each kind of weight."""

from __future__ import annotations

from dataclasses import dataclass

from ..chips.facts import ChipFacts
from ..errors import InputError, nearest
from .work import Part, Split, Work


@dataclass(frozen=True)
class WeightFormat:
    """Bytes of an expert's weight and of a linear layer's, scales included; the rest is bf16, small tensors fp32.

    `compute` is the format that the products need natively; `fallback` what a chip without it computes in, after
    expanding the weights in its kernels.
    """

    name: str
    expert: float
    linear: float
    compute: str
    about: str


# FP8 scales: one byte a 128x128 block. FP4: one byte a 32 weights. INT8: a bf16 scale a channel. INT4: one a 128.
FORMATS = {
    "bf16": WeightFormat("bf16", 2.0, 2.0, "bf16", "everything in bf16"),
    "fp8": WeightFormat("fp8", 1 + 1 / 16384, 1 + 1 / 16384, "fp8", "FP8 experts and linear layers (Base models)"),
    "fp4": WeightFormat("fp4", 0.5 + 1 / 32, 1 + 1 / 16384, "fp4",
                        "FP4 experts, FP8 linear layers: the publisher's release"),
    "w8a8": WeightFormat("w8a8", 1 + 1 / 2048, 1 + 1 / 2048, "int8", "INT8 experts and linear layers"),
    "w4a8": WeightFormat("w4a8", 0.5 + 1 / 64, 1 + 1 / 2048, "int8", "INT4 experts, INT8 linear layers"),
}


def find_format(name: str) -> WeightFormat:
    """Return the format of that name. Raises InputError with the choices."""
    if name not in FORMATS:
        raise InputError(f"no weight format {name!r}.{nearest(name, FORMATS)} Choose one of {', '.join(FORMATS)}")
    return FORMATS[name]


def part_bytes(part: Part, fmt: WeightFormat, tensor: int = 1) -> float:
    """Return the bytes of a part's weights on one rank, routed experts left out: what can be cut is cut."""
    total = 0.0
    for weight in part.weights:
        if weight.kind != "expert":
            width = {"linear": fmt.linear, "small": 4.0}.get(weight.kind, 2.0)
            total += weight.numel * width / (tensor if weight.split is not Split.NONE else 1)
    return total


def weight_bytes(work: Work, fmt: WeightFormat, tensor: int = 1) -> float:
    """Return the bytes of all weights but the routed experts' on one rank, MTP included."""
    return sum(part_bytes(work.parts[name], fmt, tensor) * n for name, n in work.count.items())


def native(facts: ChipFacts, fmt: WeightFormat) -> bool:
    """Tell whether the chip's matrix units take the format that the products need."""
    return fmt.compute in facts.formats
