"""A real Ascend NPU through torch_npu: `npu`, `npu:kernels` (Triton), `npu:reference` (plain definitions), and
`npu:deterministic`.

fp32, as every real chip of this version: weights and activations are fp32 and matrix products are not allowed to
fall to HF32. Facts (peak rates, memory) are taken by the name that the driver gives the device.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ChipError, NotSupported
from ..kernels.launch import TritonLauncher
from ..ops import Ops
from ..record import Kind
from .base import Chip
from .facts import ChipFacts, load_facts
from .npu_ops import NpuKernelOps, NpuOps

COLLECTIVES = "hccl"  # torch.distributed's backend name on this device; torch_npu registers it
TARGETS = ("", "kernels", "reference", "deterministic")
_NEEDS = "an Ascend NPU, its driver, CANN in this shell (`source .../set_env.sh`) and torch_npu"
# Device name (torch.npu.get_device_name) -> facts. 910B4-1 is the 910B4 with 64 GB; 910_93xx are the 910C's dies.
_FACTS = (
    (r"Ascend910B1", "ascend910b1"), (r"Ascend910B2C?", "ascend910b2"), (r"Ascend910B3", "ascend910b3"),
    (r"Ascend910B4-1", "ascend910b4"), (r"Ascend910B4", "ascend910b4"), (r"Ascend910_93\d\d", "ascend910c"),
    (r"Ascend950PR\w*", "ascend950pr"), (r"Ascend950DT\w*", "ascend950dt"),
)


def missing_npu() -> str:
    """Return why no NPU can be used here, or an empty string when one can."""
    if importlib.util.find_spec("torch_npu") is None:
        return f"torch_npu is not installed; it needs {_NEEDS}"
    try:
        importlib.import_module("torch_npu")
    except (ImportError, OSError, RuntimeError) as error:  # CANN's libraries are not on the loader's path
        return f"torch_npu cannot be loaded ({_first_line(error)}); it needs {_NEEDS}"
    device = getattr(torch, "npu", None)
    if device is None or not device.is_available():
        return f"torch_npu sees no device; it needs {_NEEDS}"
    return ""


def open_npu(target: str = "") -> Chip:
    """Open NPU 0 with torch_npu's fused operators. `kernels` runs Triton kernels where an op has one, `reference` the
    plain-torch definitions, `deterministic` orders every sum (slower).

    Raises ChipError that says what is missing, NotSupported for kernels without triton_ascend.
    """
    reason = missing_npu()
    if reason:
        raise ChipError(f"chip 'npu' cannot be used here: {reason}. `anychip doctor` says what to install")
    if target == "kernels" and importlib.util.find_spec("triton") is None:
        raise NotSupported("npu:kernels compiles Triton kernels on this machine, which needs triton_ascend: "
                           "pip install triton-ascend, or open npu")
    device = torch.device("npu", 0)
    name = str(_npu().get_device_name(0))
    _npu().set_device(device)
    _npu().matmul.allow_hf32 = False
    facts = facts_of(name, _npu().mem_get_info(0)[1])
    chip = f"npu:{target}" if target else "npu"
    return NpuChip(chip, device, "fp32", Kind.MEASURED, Kind.MEASURED, name, facts, target)


def facts_of(name: str, memory_bytes: int) -> ChipFacts | None:
    """Return the facts of a device by its driver's name; None (unknown) for a name that no facts file covers.

    A 910B4 is two parts of one name: the one with 32 GB has half the bandwidth too.
    """
    found = next((facts for pattern, facts in _FACTS if re.fullmatch(pattern, name)), None)
    if found == "ascend910b4" and memory_bytes < 40 * 2**30:
        found = "ascend910b4_32g"
    return None if found is None else load_facts(found)


@dataclass(frozen=True)
class NpuChip(Chip):
    """Device 0 of torch_npu."""

    target: str = ""

    def ops(self) -> Ops:
        """Return the chip's ops. `deterministic` takes effect here, for the process: torch_npu keeps the first
        setting under which an operator ran."""
        if self.target == "deterministic":
            torch.use_deterministic_algorithms(True)
        is_950 = self.description.startswith("Ascend950")
        clipped = not is_950  # its page names A2 and A3 alone
        if self.target == "reference":
            return Ops()
        if self.target == "kernels":
            cores = _npu().get_device_properties(0)
            launch = TritonLauncher("ascend", cores.cube_core_num, cores.vector_core_num, keeps_zeros=not is_950)
            return NpuKernelOps(launch, clipped_swiglu=clipped)
        return NpuOps(clipped_swiglu=clipped)

    def sources(self) -> dict[str, str]:
        ops = self.ops()
        return ops.sources() if isinstance(ops, NpuOps) else {}

    def synchronize(self) -> None:
        _npu().synchronize(self.device)

    def versions(self) -> dict[str, str]:
        """Return torch, torch_npu, CANN and driver versions, the device's name, and what rounds or orders."""
        package = importlib.import_module("torch_npu")
        cann = _npu().utils.get_cann_version
        return {"torch": torch.__version__, "torch_npu": str(package.__version__), "cann": _text(cann("CANN")),
                "driver": _text(cann("DRIVER")), "device": self.description,
                "hf32": str(bool(_npu().matmul.allow_hf32)),
                "deterministic": str(torch.are_deterministic_algorithms_enabled())}


def _npu() -> Any:
    """torch.npu, which exists once torch_npu is imported."""
    return torch.npu  # type: ignore[attr-defined]


def _text(version: object) -> str:
    return str(version) or "unknown"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
