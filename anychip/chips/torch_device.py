"""Real accelerators through torch: an NVIDIA GPU (`cuda`) or an Ascend NPU (`npu`), with the plain-torch ops."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass

import torch

from ..errors import ChipError
from ..ops import Ops
from ..record import Kind
from .base import Chip

_NEEDS = {
    "cuda": "an NVIDIA GPU, its driver and a CUDA build of torch (`pip install torch`)",
    "npu": "an Ascend NPU, its driver, CANN and torch_npu (`pip install torch-npu`)",
}


def missing(device: str) -> str:
    """Return why `cuda` or `npu` cannot be used here, or an empty string when it can."""
    if device == "npu":
        if importlib.util.find_spec("torch_npu") is None:
            return f"torch_npu is not installed; it needs {_NEEDS['npu']}"
        importlib.import_module("torch_npu")
    module = getattr(torch, device, None)
    if module is None or not module.is_available():
        return f"torch sees no {device} device; it needs {_NEEDS[device]}"
    return ""


def open_device(device: str) -> Chip:
    """Open device 0 of a kind. Raises ChipError that says what is missing."""
    reason = missing(device)
    if reason:
        raise ChipError(f"chip {device!r} cannot be used here: {reason}. `anychip doctor` says what to install")
    name = getattr(torch, device).get_device_name(0)
    return DeviceChip(device, torch.device(device, 0), "fp32", Kind.MEASURED, Kind.MEASURED, name)


@dataclass(frozen=True)
class DeviceChip(Chip):
    """A torch accelerator. Its ops are the plain-torch definitions run on the device in fp32."""

    def ops(self) -> Ops:
        return Ops()

    def synchronize(self) -> None:
        getattr(torch, self.device.type).synchronize(self.device)

    def versions(self) -> dict[str, str]:
        driver = torch.version.cuda if self.device.type == "cuda" else None
        return {"torch": torch.__version__, "device": self.description, "cuda": str(driver)}
