"""One line of a report's table."""

from __future__ import annotations

from dataclasses import dataclass

from ..record import Quantity


@dataclass(frozen=True)
class Row:
    """One line of a table: a name, one quantity for each chip (None: it has none), and their difference."""

    name: str
    a: Quantity | None
    b: Quantity | None
    gap: Quantity | None = None
    note: str = ""
