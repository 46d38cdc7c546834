"""How the report says what ran a chip's ops and what their simulated times come from, op by op."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KERNEL, EMULATED = "compiled kernel: ", "emulated: "


def sources_note(limits: Mapping[str, Any]) -> str:
    """Return sentences on a virtual chip whose ops may be compiled kernels; nothing for any other chip."""
    ops: dict[str, str] = limits.get("ops") or {}
    if not any(source.startswith((KERNEL, EMULATED)) for source in ops.values()):
        return ""
    kernels = {op: source for op, source in ops.items() if source.startswith(KERNEL)}
    others = {op: source.removeprefix(EMULATED) for op, source in ops.items() if op not in kernels}
    if not kernels:
        return f". No op ran as a compiled kernel ({_reasons(others)}); every simulated time is a roofline's"
    said = f". Ran as compiled kernels: {', '.join(kernels)}"
    refused = {op: source.split("; some calls emulated: ", 1)[1] for op, source in kernels.items()
               if "; some calls emulated: " in source}
    if refused:
        said += f" (some calls of {_reasons(refused)})"
    if others:
        said += f". Emulated: {_reasons(others)}"
    return f"{said}. {_times(limits.get('times') or {})}"


def _reasons(sources: Mapping[str, str]) -> str:
    """`a, b: why; c: why`, ops with one reason together; `why` alone where it is that of many ops."""
    by_reason: dict[str, list[str]] = {}
    for op, reason in sources.items():
        by_reason.setdefault(reason, []).append(op)
    if len(by_reason) == 1 and len(sources) > 3:
        return next(iter(by_reason))
    return "; ".join(f"{', '.join(ops)}: {reason}" for reason, ops in by_reason.items())


def _times(times: Mapping[str, str]) -> str:
    """Which simulated times are the kernels', which are the roofline's and why."""
    roofline = {op: source for op, source in times.items() if "roofline" in source}
    if not roofline:
        return "Every simulated time is the kernels', on a virtual die"
    some = {op: _why(source) for op, source in roofline.items()}
    if len(roofline) == len(times):
        return f"Every simulated time is a roofline's ({_reasons(some)})"
    return f"Simulated times are the kernels', on a virtual die; a roofline's for {_reasons(some)}"


def _why(source: str) -> str:
    """`roofline: why` or `kernels and roofline: why` as a reason."""
    kind, _, why = source.partition(": ")
    part = "some calls, " if kind.startswith("kernels and") else ""
    return part + (why or "no kernel has a time")
