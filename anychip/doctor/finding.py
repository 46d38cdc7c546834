"""One component of a machine, judged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "missing", "wrong"]

NOT_NEEDED = "none"


@dataclass(frozen=True)
class Finding:
    """One component: what was found, what is wanted, and for a problem the one command that mends it.

    `ok` has no command. `warn` works or may work; `missing` and `wrong` do not.
    """

    component: str
    found: str
    wanted: str
    status: Status
    command: str = ""

    def __post_init__(self) -> None:
        if (self.status == "ok") == bool(self.command):
            raise ValueError(f"{self.component}: status {self.status!r} with command {self.command!r}")


def is_healthy(findings: Iterable[Finding]) -> bool:
    """Whether nothing is missing or wrong (warnings are allowed)."""
    return not any(finding.status in ("missing", "wrong") for finding in findings)


def to_rows(findings: Iterable[Finding]) -> list[tuple[str, str, str, str, str]]:
    """Return (component, found, wanted, status, command) as text, for a table or for JSON."""
    return [(f.component, f.found, f.wanted, f.status, f.command) for f in findings]
