"""Reasons why a checkpoint cannot be used, collected so that the user meets all of them at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from ..errors import CheckpointError

LISTED = 20  # of one kind; a checkpoint of the wrong shape would otherwise list 70,000 names


class Problems:
    """Collects texts by kind (`missing`, `extra`, `misshapen`, `not finite`, `corrupt`, ...)."""

    def __init__(self, texts: Iterable[tuple[str, str]] = ()) -> None:
        self._by_kind: dict[str, list[str]] = defaultdict(list)
        self._advice: list[str] = []
        for kind, text in texts:
            self.add(kind, text)

    def add(self, kind: str, text: str) -> None:
        """Note one reason; the same text twice counts once."""
        if text not in self._by_kind[kind]:
            self._by_kind[kind].append(text)

    def advise(self, text: str) -> None:
        """Note what to do, printed after the reasons."""
        if text not in self._advice:
            self._advice.append(text)

    def __bool__(self) -> bool:
        return any(self._by_kind.values())

    def raise_if_any(self, what: str) -> None:
        """Raise CheckpointError `what: counts` with one line a reason, where there is any."""
        if not self:
            return
        counts = ", ".join(f"{len(texts)} {kind}" for kind, texts in self._by_kind.items() if texts)
        lines = [f"{what}: {counts}"]
        for kind, texts in self._by_kind.items():
            lines += [f"  {kind}: {text}" for text in texts[:LISTED]]
            if len(texts) > LISTED:
                lines.append(f"  {kind}: and {len(texts) - LISTED} more")
        raise CheckpointError("\n".join(lines + [f"  -> {text}" for text in self._advice]))
