"""Virtual chips: the model really runs, in the target's number formats, and each op gets a simulated time.

Rules of a virtual chip (the chip's formats, emulated in fp32 on this machine):
- weights and activations are stored in `storage` (bf16 or fp16; fp32 where the precision is fp32, tf32, hf32),
  so every op's inputs and outputs are rounded to it, gradients too;
- matrix products take inputs in the chip's `precision` and accumulate in fp32: fp8 quantises weights in 128x128
  blocks and activations in 1x128 blocks with power-of-two scales, fp4 the routed experts' weights in 1x32 blocks;
- inside an op (softmax, norms, Sinkhorn, router scores) the maths is fp32, as in the publisher's code.
The order of accumulation is this machine's, not the chip's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import NotSupported
from ..ops import Keys, Ops
from ..ops.formats import fake_quantize_fp4, fake_quantize_fp8, round_to
from ..ops.orthogonal import Matrices, MuonRule
from ..ops.seam import COSTS
from ..record import Kind
from .base import Chip
from .facts import load_facts
from .timing import PRECISIONS, WEIGHT_OPS

_FP32_INPUTS = frozenset({"hc_pre", "hc_post", "hc_head"})  # mixing weights stay fp32; streams are stored rounded


def open_virtual(target: str, inner: Ops) -> Chip:
    """Open `virtual:<target>`, where target is a chip of the facts, optionally `@precision` (default bf16).

    Raises ChipError for an unknown chip and NotSupported for a format that it lacks.
    """
    chip, _, precision = target.partition("@")
    facts, precision = load_facts(chip), precision or "bf16"
    if precision not in PRECISIONS:
        raise NotSupported(f"precision {precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
    if precision not in facts.formats:
        raise NotSupported(f"{facts.name} has no {precision} matrix unit; it has {', '.join(facts.formats)}")
    from .virtual_kernels import KernelVirtualChip, why_not  # they build on this module

    reason = why_not(facts.name, precision)
    about = (f"virtual:{target}", torch.device("cpu"), precision, Kind.EMULATED, Kind.SIMULATED,
             f"{facts.device}, {precision}", facts, inner)
    return VirtualChip(*about, reason) if reason else KernelVirtualChip(*about, "", facts.name)


@dataclass(frozen=True)
class VirtualChip(Chip):
    """A chip that is not here: `inner` computes, the chip's formats round, the roofline times.

    `no_kernels` says why its ops are not compiled kernels.
    """

    inner: Ops | None = None
    no_kernels: str = ""

    def ops(self) -> Ops:
        assert self.inner is not None
        return VirtualOps(self.inner, self.precision)

    def sources(self) -> dict[str, str]:
        return dict.fromkeys(COSTS, f"emulated: {self.no_kernels}")


class VirtualOps(Ops):
    """`inner`'s ops between roundings to a chip's formats; gradients are rounded on their way back."""

    def __init__(self, inner: Ops, precision: str) -> None:
        self._inner, self._storage, self._precision = inner, PRECISIONS[precision][0], precision
        for name in COSTS:
            setattr(self, name, partial(self._call, name))

    def at(self, layer: str) -> Ops:
        return self

    def orthogonalize(self, stack_BMN: Tensor) -> Tensor:
        return self._inner.orthogonalize(stack_BMN)  # the optimizer's master weights are fp32 on every chip

    def muon(self, groups: Sequence[Matrices], rule: MuonRule) -> None:
        self._inner.muon(groups, rule)

    def _call(self, name: str, *arguments: Any, **named: Any) -> Any:
        if name in WEIGHT_OPS and self._precision in ("fp8", "fp4", "tf32", "hf32"):
            arguments = self._quantised(name, arguments)
        elif name in _FP32_INPUTS:
            arguments = (self._stored(arguments[0]), *arguments[1:])
        elif name != "embed":
            arguments = tuple(self._stored(value) for value in arguments)
        result = getattr(self._inner, name)(*arguments, **named)
        if isinstance(result, tuple):  # hc_pre and route: the mixing and routing weights stay fp32
            return (self._stored(result[0]), *result[1:])
        return result if name == "cross_entropy" else self._stored(result)

    def _stored(self, value: Any) -> Any:
        """Round tensors to the storage format, inside Keys and tuples too; everything else passes."""
        if isinstance(value, Tensor) and value.is_floating_point() and self._storage != "fp32":
            rounded: Tensor = _Round.apply(value, self._storage)
            return rounded
        if isinstance(value, Keys):
            rows = self._stored(value.window_NC), self._stored(value.compressed_MC)
            return replace(value, window_NC=rows[0], compressed_MC=rows[1])
        return tuple(self._stored(item) for item in value) if type(value) is tuple else value

    def _quantised(self, name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Quantise a product's activations (first argument) and weights (the other matrices)."""
        fp4 = self._precision == "fp4" and name == "experts"
        first, rest = arguments[0], arguments[1:]
        if name == "experts":
            ids, weight, banks, limit = rest
            return (self._activation(first), ids, weight, tuple(self._weight(bank, fp4) for bank in banks), limit)
        return (self._activation(first), *(self._weight(w, fp4) if isinstance(w, Tensor) else w for w in rest))

    def _activation(self, x: Tensor) -> Tensor:
        if self._precision in ("tf32", "hf32"):
            return _Round.apply(x, self._precision)
        return fake_quantize_fp8(self._stored(x), (1, 128))

    def _weight(self, weight: Tensor, fp4: bool) -> Tensor:
        if self._precision in ("tf32", "hf32"):
            return _Round.apply(weight, self._precision)
        return fake_quantize_fp4(weight) if fp4 else fake_quantize_fp8(weight, (128, 128))


class _Round(torch.autograd.Function):
    """Round to a format going forward, and round the gradient to the same format coming back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fmt: str) -> Tensor:
        ctx.fmt = fmt
        return round_to(x, fmt)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return round_to(grad, ctx.fmt), None
