"""An NVIDIA GPU: `cuda` with the suite's Triton kernels, `cuda:reference` with the plain-torch ops on the device."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass, field

import torch

from ..errors import ChipError, KernelError, NotSupported
from ..kernels.launch import TritonLauncher
from ..kernels.ops import KernelOps
from ..ops import Ops
from ..record import Kind
from .base import Chip

_NEEDS = "an NVIDIA GPU, its driver and a CUDA build of torch (`pip install torch`)"


def missing_cuda() -> str:
    """Return why no GPU can be used here, or an empty string when one can."""
    return "" if torch.cuda.is_available() else f"torch sees no cuda device; it needs {_NEEDS}"


def open_cuda(*, reference: bool = False) -> Chip:
    """Open GPU 0. Raises ChipError that says what is missing."""
    reason = missing_cuda()
    if reason:
        raise ChipError(f"chip 'cuda' cannot be used here: {reason}. `anychip doctor` says what to install")
    device, about = torch.device("cuda", 0), torch.cuda.get_device_name(0)
    ops = Ops() if reference else cuda_ops(torch.cuda.get_device_properties(device).multi_processor_count)
    name = "cuda:reference" if reference else "cuda"
    return CudaChip(name, device, "fp32", Kind.MEASURED, Kind.MEASURED, about, None, ops)


def cuda_ops(num_processors: int) -> Ops:
    """Return the ops by Triton kernels on so many streaming multiprocessors, in plain torch where triton is absent.

    A call whose kernel does not fit the device (shared memory, registers) is served by the definition, and `sources`
    says so.
    """
    if importlib.util.find_spec("triton") is None:
        return Ops()
    launcher = TritonLauncher("cuda", num_processors, num_processors)
    return KernelOps(launcher, (NotSupported, KernelError))


@dataclass(frozen=True)
class CudaChip(Chip):
    """A GPU in fp32."""

    implementation: Ops = field(default_factory=Ops)

    def ops(self) -> Ops:
        return self.implementation

    def sources(self) -> dict[str, str]:
        if not isinstance(self.implementation, KernelOps):
            return {}
        return {op: source if source.startswith("plain torch: ") else f"kernel: {source}"
                for op, source in self.implementation.kernels().items()}

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def versions(self) -> dict[str, str]:
        found = {"torch": torch.__version__, "device": self.description, "cuda": str(torch.version.cuda)}
        if isinstance(self.implementation, KernelOps):
            found["triton"] = importlib.metadata.version("triton")
        return found
