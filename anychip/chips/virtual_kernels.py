"""Virtual Ascend chips on compiled kernels: ops that have one run as it, compiled for the chip by Huawei's compiler.

Such an op takes and gives what the chip would: activations and weights in bf16 (or fp16), tables, mixing and routing
weights in fp32. What runs is the kernel's linalg stage as machine code of this processor (`ascend.native`). Ops
without a kernel, and calls that a kernel refuses, are emulated as on every virtual chip. Needs the `[ascend]` extra.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ChipError, KernelError, NotSupported
from ..kernels.ops import KernelOps
from ..ops import Ops
from ..ops.trees import map_tensors
from ..record import Event
from .virtual import VirtualChip, VirtualOps

if TYPE_CHECKING:
    from .kernel_times import KernelTimes

STORED = {"bf16": torch.bfloat16, "fp16": torch.float16}
# positions of the arguments that the chip holds in fp32: tables, sinks, position biases, mixing and routing weights
FP32_ARGUMENTS = {"rope": (1, 2), "norm_rope": (3, 4), "attention": (2,), "compress": (2,), "experts": (2,),
                  "hc_pre": (1,), "hc_post": (2, 3), "hc_head": (1,)}


def why_not(chip: str, precision: str) -> str:
    """Return why a virtual chip does not run kernels, or an empty string where it does."""
    if not chip.startswith("ascend"):
        return "kernels are compiled for Ascend chips only"
    if precision not in STORED:
        return f"kernels compute in {' and '.join(STORED)}; {precision} is emulated"
    try:
        from ..ascend.targets import find_target
        from ..ascend.toolchain import INSTALL, find_toolchain

        find_target(chip)
        find_toolchain()
    except (NotSupported, ChipError) as error:
        return str(error)
    if importlib.util.find_spec("llvmlite") is None:
        return f"running kernels on this processor needs llvmlite: {INSTALL}"
    return ""


@dataclass(frozen=True)
class KernelVirtualChip(VirtualChip):
    """A virtual Ascend whose ops are compiled kernels where there is one."""

    target: str = ""

    def ops(self) -> Ops:
        return self._ops

    @cached_property
    def _ops(self) -> KernelVirtualOps:
        from ..ascend.native_launch import NativeLauncher
        from ..ascend.targets import find_target

        assert self.inner is not None
        kernels = KernelOps(NativeLauncher(find_target(self.target)), (NotSupported, KernelError))
        return KernelVirtualOps(self.inner, self.precision, kernels)

    def sources(self) -> dict[str, str]:
        return self._ops.sources()

    def simulate(self, events: Sequence[Event], arguments: Sequence[tuple[Any, ...]] = ()) -> list[Event]:
        """Times of the kernels where they have them, the roofline's for all else; each event says which."""
        timed = [replace(event, source="roofline") for event in super().simulate(events)]
        for at, (event, (*given, named)) in enumerate(zip(timed, arguments, strict=False)):
            op, backward = event.op.removesuffix(" backward"), event.op.endswith(" backward")
            found = self._times.time(op, tuple(given), named, backward=backward)
            time_s = found.backward_s if backward else found.forward_s
            timed[at] = (replace(event, source=f"roofline: {found.reason}") if time_s is None
                         else replace(event, time_s=time_s, source="kernels"))
        return timed

    @cached_property
    def _times(self) -> KernelTimes:
        from ..ascend.targets import find_target
        from .kernel_times import KernelTimes

        return KernelTimes(find_target(self.target), STORED[self.precision])

    def versions(self) -> dict[str, str]:
        from ..ascend.toolchain import find_toolchain

        return {**super().versions(), "kernels": find_toolchain().versions}


class KernelVirtualOps(VirtualOps):
    """Ops by compiled kernels in the chip's storage format; the others emulated."""

    def __init__(self, inner: Ops, precision: str, kernels: KernelOps) -> None:
        super().__init__(inner, precision)
        self._kernels, self._dtype = kernels, STORED[precision]

    def sources(self) -> dict[str, str]:
        """Return for every op `compiled kernel: ` and which, or `emulated: ` and why."""
        found = {}
        for op, source in self._kernels.kernels().items():
            plain = source.startswith("plain torch: ")
            found[op] = ("emulated: " if plain else "compiled kernel: ") + source.removeprefix("plain torch: ").replace(
                "in plain torch", "emulated")
        return found

    def _call(self, name: str, *arguments: Any, **named: Any) -> Any:
        kept = FP32_ARGUMENTS.get(name, ())
        given = tuple(value if at in kept else map_tensors(value, self._narrow) for at, value in enumerate(arguments))
        result = self._kernels.attempt(name, *given, **named)
        if result is NotImplemented:
            return super()._call(name, *arguments, **named)
        return map_tensors(result, self._widen)

    def _narrow(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

    def _widen(self, tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.dtype is self._dtype else tensor
