"""What a line of the verdict is: its mark, what it is about, and a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ...record import Quantity
from .words import full


class Mark(str, Enum):
    """What a line of the verdict tells, as the word that is printed before it."""

    SAME = "same"  # no difference at all, or none that this run can see
    NOISE = "within noise"  # a difference that number formats, batch shapes or chance explain
    GAP = "real gap"  # a difference beyond them
    FACT = "fact"  # a number to judge by yourself
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Verdict:
    """One line of the verdict: its mark, what it is about, and a sentence of words and quantities."""

    mark: Mark
    about: str
    parts: tuple[str | Quantity, ...]

    def text(self) -> str:
        """Return the sentence with every quantity in full: value, interval, unit, kind."""
        return "".join(p if isinstance(p, str) else full(p) for p in self.parts)
