"""How far an implementation's log-probabilities may lie from the golden ones, by number format, and the verdicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ..errors import InputError, nearest
from .cases import Case, Suite


@dataclass(frozen=True)
class Tolerance:
    """Nats of log-probability: `mean` over a case's tokens and positions, and at the worst of them."""

    mean: float
    worst: float
    reason: str


TOLERANCES = {
    "float32": Tolerance(2e-5, 3e-4, "positions are kept where fp32 and float64 agree to 5e-5; transformers 5.23 in "
                                     "fp32 differs by 1e-6 in the mean of a case and 1.3e-5 at the worst, llama.cpp by "
                                     "7e-6 and 9e-5"),
    "float16": Tolerance(0.02, 1.0, "an eighth of bf16's rounding with room for flipped choices (derived: "
                                    "transformers' V4 does not run in fp16)"),
    "bfloat16": Tolerance(0.1, 2.0, "transformers 5.23 in bf16 differs by up to 0.047 in the mean of a case and 0.72 "
                                    "at the worst, where a choice of experts or entries flips"),
}


def tolerance(dtype: str) -> Tolerance:
    """Return the tolerance of a number format. Raises InputError for an unknown one."""
    if dtype not in TOLERANCES:
        raise InputError(f"there is no tolerance for {dtype!r}.{nearest(dtype, TOLERANCES)} Choices: "
                         + ", ".join(TOLERANCES))
    return TOLERANCES[dtype]


@dataclass(frozen=True)
class Seen:
    """What an implementation gave for a case: log-probabilities [P, 21], NaN-free where `known` [P, 21] is true."""

    logprobs: Tensor
    known: Tensor


class Unable(Exception):
    """The implementation has no way to run a case; the message says why. The case is then skipped, not failed."""


class Wrong(Exception):
    """The implementation ran a case and what it gave is no result at all; the message says why. A failure."""


class Tested(Protocol):
    """An implementation under test."""

    def run(self, case: Case) -> Seen:
        """Run a case. Raises Unable where it cannot be asked, Wrong where the answer is none."""
        ...


@dataclass(frozen=True)
class Row:
    """The verdict on one case: `verdict` is pass, FAIL or skipped; sizes are in `unit`, None where nothing was seen."""

    weights: str
    part: str
    case: str
    verdict: str
    size: float | None = None
    allowed: float | None = None
    worst: float | None = None
    worst_allowed: float | None = None
    positions: int = 0
    note: str = ""
    unit: str = "nats"


@dataclass(frozen=True)
class Outcome:
    """All verdicts on one implementation, and what was seen in the cases that failed."""

    rows: list[Row]
    failed: list[tuple[Case, Seen]] = field(default_factory=list)


def judge(tested: Tested, suite: Suite, dtype: str, tell: Callable[[str], None] = lambda case: None) -> Outcome:
    """Run every case of a suite, each held to the tolerance of `dtype`; `tell` gets its name before it runs."""
    outcome = Outcome([])
    for case in suite.cases:
        tell(case.name)
        try:
            seen = tested.run(case)
        except Unable as why:
            outcome.rows.append(Row(suite.weights, case.part, case.name, "skipped", note=str(why)))
        except Wrong as why:
            outcome.rows.append(Row(suite.weights, case.part, case.name, "FAIL", note=str(why)))
        else:
            outcome.rows.append(_row(suite.weights, case, seen, tolerance(dtype)))
            if outcome.rows[-1].verdict == "FAIL":
                outcome.failed.append((case, seen))
    return outcome


def _row(weights: str, case: Case, seen: Seen, allowed: Tolerance) -> Row:
    positions = int(seen.known.any(-1).sum())
    if not positions:
        return Row(weights, case.part, case.name, "skipped", note="none of the golden tokens was in the answer")
    error = (seen.logprobs - case.logprobs)[seen.known].abs()
    mean, worst = float(error.mean()), float(error.max())
    fine = mean <= allowed.mean and worst <= allowed.worst  # NaN is not fine
    return Row(weights, case.part, case.name, "pass" if fine else "FAIL", mean, allowed.mean, worst, allowed.worst,
               positions, "" if torch.isfinite(error).all() else "it gave NaN or Inf")
