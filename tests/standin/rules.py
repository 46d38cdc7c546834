"""What the stand-in refuses, and the log of what it saw. Every refusal names the call, the rule and the call site.

Number formats: FP8 and FP4 are absent from a 910B's hardware (arXiv:2506.12708). Many of CANN's operators refuse
float64 ("self not implemented for DT_DOUBLE": https://github.com/huggingface/diffusers/issues/10428), those that take
it run on the AI CPU. uint16, uint32 and uint64 are in no list of torch_npu's documented operators. Copies to the
host: `.cpu()` and `.to("cpu")` say what they do and are counted, but not inside a model's forward or backward pass,
except by what measures a pass (`anychip.gap`); everything that copies without saying so is refused.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from importlib.resources import files
from types import FrameType

import torch

TORCH_NPU = "2.13.0"
LACKING = frozenset(getattr(torch, name) for name in (
    "float64", "complex128", "complex32", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
    "float8_e8m0fnu", "float4_e2m1fn_x2", "uint16", "uint32", "uint64") if hasattr(torch, name))

# Operators whose result, or the size of it, is decided on the host: the device is waited for and a value copied.
READS = frozenset({"_local_scalar_dense", "nonzero", "nonzero_numpy", "masked_select", "unique_dim", "_unique",
                   "_unique2", "unique_consecutive", "unique_dim_consecutive", "bincount", "equal", "is_nonzero",
                   "repeat_interleave.Tensor", "histc", "argwhere"})

MEASURES = "anychip.gap"  # the part of the project that looks into a pass: it may copy what it sees


class Refused(AssertionError):
    """A call that an Ascend NPU does not have, or that would stall one without saying so."""


@dataclass
class Log:
    """What one process did: operators by count, explicit copies to the host by call site, and refusals."""

    operators: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    refusals: list[str] = field(default_factory=list)


log = Log()
_passes = 0  # model passes that are under way


def listed() -> frozenset[str]:
    """Return the aten operators that torch_npu implements on the device (see aten_ops.txt for the source)."""
    text = (files(__package__) / "aten_ops.txt").read_text(encoding="utf-8")
    return frozenset(word for line in text.splitlines() if not line.startswith("#") for word in line.split())


def refuse(what: str, why: str) -> None:
    """Note and raise a refusal."""
    message = f"npu stand-in: {what} refused: {why} (at {call_site()})"
    log.refusals.append(message)
    raise Refused(message)


def check_dtype(dtype: torch.dtype, what: str) -> None:
    """Refuse a number format that a 910B lacks."""
    if dtype in LACKING:
        refuse(f"{str(dtype).removeprefix('torch.')} in {what}", "a 910B has no such number format")


def check_read(name: str) -> None:
    """Refuse an operator that copies to the host without saying so."""
    if name in READS:
        shown = "item(), int(), float() or bool()" if name == "_local_scalar_dense" else name
        refuse(f"implicit copy to the host by {shown}", "it waits for the device; keep the value there, or copy it "
               "with .cpu() outside the pass")


def note_copy(what: str) -> None:
    """Count an explicit copy to the host; refuse it inside a pass unless a recorder makes it."""
    inside = _passes > 0 or torch._C._current_graph_task_id() != -1
    if inside and not _caller().f_globals["__name__"].startswith(MEASURES):
        refuse(f"{what} to the host", "it stalls the device in the middle of a pass")
    log.copies[call_site()] += 1


def enter_pass(*_: object) -> None:
    """A model's forward pass begins."""
    global _passes
    _passes += 1


def leave_pass(*_: object) -> None:
    """A model's forward pass ends, or fails."""
    global _passes
    _passes -= 1


def call_site() -> str:
    """Return `file:line` of the innermost frame that is neither torch's nor the stand-in's."""
    frame = _caller()
    return f"{frame.f_code.co_filename.rsplit('/anychip/', 1)[-1]}:{frame.f_lineno}"


def _caller() -> FrameType:
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("torch", "standin"):
        frame = frame.f_back
    return frame
