"""Chips by name: `cpu`, `cuda`, `npu`, virtual ones such as `virtual:ascend910b`, patched ones (`patched:FILE.py`)."""

from __future__ import annotations

from ..errors import ChipError, nearest
from ..record import Kind
from .base import Chip, ChipStatus
from .cpu import CpuChip, open_cpu
from .facts import chip_aliases, known_chips, load_facts
from .npu import TARGETS, missing_npu, open_npu
from .patched import open_fault, open_patched
from .torch_device import missing_cuda, open_cuda
from .virtual import open_virtual

__all__ = ["Chip", "ChipStatus", "CpuChip", "known_names", "list_chips", "open_chip"]


def open_chip(name: str) -> Chip:
    """Open a chip. Names are exact: a virtual chip is never chosen for a real one that is absent.

    Raises ChipError for an unknown or unavailable chip, NotSupported for a precision that it lacks.
    """
    given, _, path = name.strip().partition(":")
    family, target = given.lower(), path.lower()
    if family == "cpu" and target in ("", "reference"):
        return open_cpu(reference=target == "reference")
    if family == "cuda" and target in ("", "reference"):
        return open_cuda(reference=target == "reference")
    if family == "npu" and target in TARGETS:
        return open_npu(target)
    if family == "virtual" and target:
        return open_virtual(target, open_cpu(reference=False).ops())
    if family == "fault" and target:
        return open_fault(target, open_cpu(reference=False))
    if family == "patched" and path:
        return open_patched(path, open_cpu(reference=False))
    names = known_names()
    raise ChipError(f"there is no chip {name!r}.{nearest(name, names)} Chips: {', '.join(names)}; "
                    "virtual ones take @precision, for example virtual:h100@fp8; patched:FILE.py is the "
                    "cpu with a module's ops, fault:NAME the cpu with a planted fault")


def known_names() -> list[str]:
    """Return every name that `open_chip` takes (without precisions)."""
    virtual = sorted({*known_chips(), *chip_aliases()})
    npus = [f"npu:{target}".rstrip(":") for target in TARGETS]
    return ["cpu", "cpu:reference", "cuda", "cuda:reference", *npus, *(f"virtual:{name}" for name in virtual)]


def list_chips() -> list[ChipStatus]:
    """Return the real chips with the reason where one cannot be used, then every virtual chip."""
    measured, found = Kind.MEASURED, []
    try:
        found.append(ChipStatus("cpu", open_cpu(reference=False).description, measured, measured))
    except ChipError as error:
        found.append(ChipStatus("cpu", "this machine's processor", measured, measured, str(error)))
    found.append(ChipStatus("cpu:reference", "the plain-torch definition of every op, fp32", measured, measured))
    found.append(ChipStatus("cuda", "NVIDIA GPU", measured, measured, missing_cuda()))
    found.append(ChipStatus("npu", "Huawei Ascend NPU", measured, measured, missing_npu()))
    for chip in known_chips():
        facts = load_facts(chip)
        names = ", ".join(alias for alias in facts.aliases)
        text = f"{facts.device}: {', '.join(facts.formats)}" + (f" (also {names})" if names else "")
        found.append(ChipStatus(f"virtual:{chip}", text, Kind.EMULATED, Kind.SIMULATED))
    return found

