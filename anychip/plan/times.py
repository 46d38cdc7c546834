"""Seconds of one rank's calls on a chip: launch + max(compute, memory), with the planner's fitted constants.

    forward  = launch + max(flops / (peak * efficiency), bytes / (bandwidth * efficiency)) + quantising
    backward = the same with twice the FLOPs and bytes (attention: 2.5 times the FLOPs), and the gradients of weights
               added to in fp32

`peak`, `bandwidth` and `launch` are the chip's facts; what share of them whole models reach is fitted (`constants`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..chips.facts import ChipFacts
from ..errors import NotSupported
from .constants import Constants
from .cut import CLASSES, Array, Cuts
from .kernels import Kernels

WIDTHS = {"fp32": 4.0, "tf32": 4.0, "hf32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.53125,
          "int4": 0.53125}
PRODUCT, EXPERTS, ATTENTION, INDEX, VECTOR, SCAN = range(len(CLASSES))
H100_FLOPS_PER_JOULE = 989.4e12 / 700
GRADIENT_BYTES = 8.0  # a weight's gradient is read and written in fp32 at each micro-batch


@dataclass(frozen=True)
class Rates:
    """What a chip does in a precision: FLOP/s of each class (low-precision products apart), bytes/s, launches.

    Widths are bytes of a weight of the linear layers, of an expert's weight and of a cached element.
    """

    low: Array  # by class, in the run's precision
    wide: Array  # by class, in bf16
    bytes_per_s: float
    launch_s: float
    passes: float
    quantising: float  # passes over the inputs of low-precision products, 0 where there are none
    weight_width: float = 2.0
    expert_width: float = 2.0
    cache_width: float = 2.0
    attention_back: float = 2.5
    kernels: Kernels | None = None  # times of kernels instead, where there are any


def rates(facts: ChipFacts, precision: str, c: Constants, *, group: str = "train", graphs: bool = False,
          attention_kernels: str = "") -> Rates:
    """Return the rates of a chip in bf16, fp16, fp8, fp4 or int8 with the constants of `group` (train or serve).

    `graphs`: calls are started from recorded graphs, not one by one. `attention_kernels`: `torch` for those of torch
    itself, else the vendor's.

    Raises NotSupported for a precision that the chip lacks.
    """
    peaks = facts.peak_flops_per_s
    if precision not in peaks:
        raise NotSupported(f"{facts.name} has no {precision} matrix unit; it has {', '.join(facts.formats)}")
    vendor = "ascend" if facts.vendor == "Huawei" else "cuda"
    best = facts.facts["efficiency.matmul"].si
    vector = facts.vector_peak_flops_per_s.get("fp32", peaks["bf16"] / 16) * facts.facts["efficiency.vector"].si
    share = {fmt: c.get(f"{group}.product_{fmt}", c[f"{group}.product_bf16"]) for fmt in (precision, "bf16")}
    sustained = sustained_share(facts, c[f"{group}.power"])
    attention = peaks["bf16"] * best * sustained * c[f"{group}.attention_{attention_kernels or vendor}"]
    by_class = {}
    for fmt in (precision, "bf16"):
        product = peaks[fmt] * best * sustained * share[fmt]
        by_class[fmt] = np.array([product, product * c[f"{group}.experts"], attention, attention, vector,
                                  peaks["bf16"] * best * sustained * c.get(f"{group}.scan", 1.0)])
    return Rates(by_class[precision], by_class["bf16"],
                 facts.memory_bytes_per_s * facts.facts["efficiency.memory"].si * c[f"{group}.memory"],
                 c[f"{group}.launch_{'graph' if graphs else vendor}"], c[f"{group}.passes_{vendor}"],
                 c.get(f"{group}.quantise_{precision}", 0.0))


def sustained_share(facts: ChipFacts, exponent: float) -> float:
    """Return the share of its peak that the chip's power lets it keep: 1 up to the H100's FLOP/s a watt, then less.

    Known for chips whose power is known; the others are taken as 1.
    """
    power = facts.power_w
    if power is None:
        return 1.0
    return min(1.0, (H100_FLOPS_PER_JOULE * power / facts.peak_flops_per_s["bf16"]) ** exponent)


def forward_s(cuts: Cuts, r: Rates) -> Array:
    """Return the seconds of every call, forward."""
    return _seconds(cuts, r, 1.0, backward=False)


def backward_s(cuts: Cuts, r: Rates) -> Array:
    """Return the seconds of every call's gradients."""
    return _seconds(cuts, r, 2.0, backward=True)


def _seconds(cuts: Cuts, r: Rates, times: float, *, backward: bool) -> Array:
    rate = np.where(cuts.low, r.low[cuts.kind], r.wide[cuts.kind])
    flops = cuts.flops * times
    if backward:
        flops = np.where(cuts.kind == ATTENTION, cuts.flops * r.attention_back, flops)
        flops = np.where(cuts.kind == INDEX, 0.0, flops)  # the selection has no gradient
    flops = flops * cuts.narrow
    width = np.where(cuts.kind == EXPERTS, r.expert_width, np.where(cuts.low, r.weight_width, 2.0))
    moved = cuts.moved * np.where(cuts.kind == VECTOR, r.passes, 1.0) * times
    weights = cuts.weights * width * times + (cuts.weights * GRADIENT_BYTES if backward else 0.0)
    memory = (moved + weights + cuts.cache * r.cache_width * times) / r.bytes_per_s
    quantising = np.where(cuts.low, cuts.inputs * 4.0 * r.quantising * times / r.bytes_per_s, 0.0)
    seconds = r.launch_s * times + np.maximum(flops / rate, memory) + quantising
    if r.kernels is None:
        return seconds
    return np.where(by_kernels(cuts, r), r.kernels.seconds(cuts, backward=backward), seconds)


def by_kernels(cuts: Cuts, r: Rates) -> Any:
    """Tell for every call whether its time is a kernel's: where there is one, and it computes in bf16."""
    if r.kernels is None:
        return np.zeros(len(cuts.names), dtype=bool)
    width = np.where(cuts.kind == EXPERTS, r.expert_width, r.weight_width)
    return r.kernels.covers(cuts, np.where(cuts.low, width == 2.0, 1.0))
