"""An NVIDIA GPU through torch: `cuda`, with the plain-torch ops."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import ChipError
from ..ops import Ops
from ..record import Kind
from .base import Chip

_NEEDS = "an NVIDIA GPU, its driver and a CUDA build of torch (`pip install torch`)"


def missing_cuda() -> str:
    """Return why no GPU can be used here, or an empty string when one can."""
    return "" if torch.cuda.is_available() else f"torch sees no cuda device; it needs {_NEEDS}"


def open_cuda() -> Chip:
    """Open GPU 0. Raises ChipError that says what is missing."""
    reason = missing_cuda()
    if reason:
        raise ChipError(f"chip 'cuda' cannot be used here: {reason}. `anychip doctor` says what to install")
    name = torch.cuda.get_device_name(0)
    return CudaChip("cuda", torch.device("cuda", 0), "fp32", Kind.MEASURED, Kind.MEASURED, name)


@dataclass(frozen=True)
class CudaChip(Chip):
    """A GPU. Its ops are the plain-torch definitions run on the device in fp32."""

    def ops(self) -> Ops:
        return Ops()

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__, "device": self.description, "cuda": str(torch.version.cuda)}
