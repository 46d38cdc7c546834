"""A user's ops on hard inputs against the float64 definition, and the planted faults that a wrong one resembles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..chips import Chip, open_chip
from ..chips.patched import open_patched
from ..faults import list_faults
from ..gap.cases import Case
from ..gap.more_cases import op_cases
from ..gap.op_level import CHOICES, record_op_level, relative
from ..gap.proof import EXPLAINED, FLOORS
from ..ops import Ops
from .judge import Row
from .likeness import ALIKE, Likeness

_PRECISION = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_SEED = 0


def judge_ops(path: Path, ops: Sequence[str], dtype: str) -> tuple[list[Row], list[str]]:
    """Return a verdict for each hard case of the ops that a file defines, and the faults that failures resemble.

    Results and gradients; an op whose result carries no gradient is judged forward, and said to be. Allowed is the
    larger of what the format explains for one op and 8 times the case's own floor.
    Raises ChipError where an op takes other arguments than the seam's.
    """
    precision = _PRECISION[dtype]
    chip = replace(open_patched(str(path), open_chip("cpu:reference")), precision=precision)
    rows = [row for op in ops for row in _rows(chip, op, precision)]
    wrong = {(row.part.removeprefix("op "), row.case) for row in rows if row.verdict == "FAIL"}
    failed = [case for case in op_cases(_SEED) if (case.op, case.name) in wrong and case.op not in CHOICES]
    likely = sorted((one for case in failed for one in _likely(chip.ops(), case)), key=lambda one: one.left)
    return rows, [str(one) for one in {one.fault: one for one in reversed(likely)}.values()][::-1]


def _rows(chip: Chip, op: str, precision: str) -> list[Row]:
    """Verdicts on one op, forward and backward."""
    skipped = []
    try:
        found = record_op_level(chip, _SEED, (op,))
    except RuntimeError as error:  # torch's, where a result hangs on no input: "does not require grad"
        if "grad" not in str(error):
            raise
        found = record_op_level(chip, _SEED, (op,), backward=False)
        skipped = [Row("hard inputs", f"op {op}", "gradients", "skipped", note="its result carries no gradient: write "
                       "it in torch, or as a torch.autograd.Function")]
    rows = []
    for one in found:
        allowed = max(EXPLAINED[precision], FLOORS * one["floor"])
        case = one["case"] if one["direction"] == "forward" else f"{one['case']}: gradient"
        rows.append(Row("hard inputs", f"op {op}", case, "pass" if one["error"] <= allowed else "FAIL", one["error"],
                        allowed, note=one["of"], unit="relative rms"))
    return rows + skipped


@torch.no_grad()
def _likely(ops: Ops, case: Case) -> list[Likeness]:
    """The planted faults of this op whose departure on this case is like the user's."""
    right = _flat(Ops(), case)
    seen = _flat(ops, case) - right
    return [Likeness(fault.name, fault.part, fault.text, fault.resembles, left) for fault in list_faults()
            if fault.op is not None and fault.part == case.op
            and (left := _left(seen, _flat(fault.ops(Ops()), case) - right)) <= ALIKE]


def _flat(ops: Ops, case: Case) -> Tensor:
    result: Any = getattr(ops, case.op)(*case.arguments, **case.named)
    parts = result if isinstance(result, tuple) else (result,)
    return torch.cat([torch.as_tensor(part).double().flatten() for part in parts])


def _left(seen: Tensor, made: Tensor) -> float:
    """The share of a departure that a fault's own does not explain; infinite where the fault moves nothing."""
    if seen.shape != made.shape or not made.any() or not torch.isfinite(seen).all():
        return float("inf")
    return relative(made, seen)
