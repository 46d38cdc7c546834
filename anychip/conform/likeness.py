"""Which known bug a failure resembles: every planted fault's own departure, compared with the one that was seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..faults import PARTS, Fault, list_faults
from ..ops import Ops
from .cases import Case, picked, run
from .judge import Seen
from .weights import WeightSet

SAME, ALIKE = 0.1, 0.6  # what a fault leaves of the departure: at most this share, and it explains it, or part of it
_CASES = 4  # failed cases that faults are run on, the shortest of each part


@dataclass(frozen=True)
class Likeness:
    """A planted fault and what it leaves unexplained: the share of the departure (0: it is the very same)."""

    fault: str
    part: str
    text: str
    resembles: str
    left: float

    def __str__(self) -> str:
        known = f" (known: {self.resembles})" if self.resembles else ""
        word = "looks like" if self.left <= SAME else "resembles"
        where = PARTS.get(self.part, f"op {self.part}")
        return f"{word} fault `{self.fault}` ({where}): {self.text}{known}; {100 * (1 - self.left):.0f} % explained"


class Signatures:
    """What every planted fault gives for a case, each run once."""

    def __init__(self, chosen: WeightSet) -> None:
        self._chosen = chosen
        self._runs: dict[tuple[str, str], Tensor] = {}

    def of(self, fault: Fault, case: Case) -> Tensor:
        """Return the log-probabilities [P, 21] of the reference with the fault in it."""
        key = fault.name, case.name
        if key not in self._runs:
            model = self._chosen.model(fault.ops(Ops()))
            fault.prepare(model)
            self._runs[key] = picked(run(model, case.kind, case.pieces), case)
        return self._runs[key]


def likeness(signatures: Signatures, failed: Sequence[tuple[Case, Seen]],
             tell: Callable[[str], None] = lambda fault: None, among: Sequence[Fault] | None = None) -> list[Likeness]:
    """Return the planted faults (all, or those `among` which to look) that explain a failure, best first.

    There are none where no known fault is like it.

    Each fault is planted in the reference and run on some of the failed cases, the shortest first; what remains of the
    seen departure (root of the mean square, in nats) after the fault's own is its `left`. A fault must explain every
    case; it is dropped at the first that it does not.
    """
    cases, found = _chosen(failed), []
    for fault in (list_faults() if among is None else among) if cases else []:
        tell(fault.name)
        left = [one for one in _lefts(signatures, fault, cases) if one is not None]
        if len(left) == len(cases):
            found.append(Likeness(fault.name, fault.part, fault.text, fault.resembles, max(left)))
    return sorted(found, key=lambda one: one.left)


def _lefts(signatures: Signatures, fault: Fault, cases: Sequence[tuple[Case, Seen]]) -> Iterator[float | None]:
    """The share of each case's departure that a fault leaves; ends with None at the first that it does not explain."""
    for case, one in cases:
        seen, made = ((values - case.logprobs)[one.known] for values in (one.logprobs, signatures.of(fault, case)))
        left = _rms(seen - made) / _rms(seen)
        yield left if left <= ALIKE else None
        if not left <= ALIKE:
            return


def _chosen(failed: Sequence[tuple[Case, Seen]]) -> list[tuple[Case, Seen]]:
    """The shortest failed case of each part that is finite: long ones only where no other failed."""
    best: dict[str, tuple[Case, Seen]] = {}
    for case, seen in sorted(failed, key=lambda pair: len(pair[0].tokens)):
        if torch.isfinite(seen.logprobs[seen.known]).all():
            best.setdefault(case.part, (case, seen))
    return list(best.values())[:_CASES]


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())
