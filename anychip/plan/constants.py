"""The fitted constants of the time model: few, physical, the same for every model, chip count and layout.

`constants.toml` holds the values and the rows that each was fitted on; `anychip plan validate` shows them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Constant:
    """One constant: its value, the range that makes sense, what it means, and whether it was fitted."""

    value: float
    low: float
    high: float
    meaning: str
    fitted: bool = True


@dataclass(frozen=True)
class Constants:
    """All constants by name. `rows` are the ids of the published rows that a group was fitted on: `train` (and its
    `stack.*`, but for those that have rows of their own) or `serve`."""

    by_name: Mapping[str, Constant]
    rows: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        return self.by_name[name].value

    def get(self, name: str, default: float) -> float:
        """Return a constant's value, or `default` where there is none of that name."""
        return self.by_name[name].value if name in self.by_name else default

    def fitted_on(self, name: str) -> tuple[str, ...]:
        """Return the ids of the published rows that a constant was fitted on, none where it was not fitted."""
        if not self.by_name[name].fitted:
            return ()
        group = "serve" if name.startswith("serve.") else "train"
        return self.rows[name] if name in self.rows else self.rows[group]

    def with_values(self, values: Mapping[str, float]) -> Constants:
        """Return a copy with other values."""
        changed = {name: replace(self.by_name[name], value=value) for name, value in values.items()}
        return replace(self, by_name={**self.by_name, **changed})


@lru_cache(maxsize=1)
def constants() -> Constants:
    """Return the shipped constants."""
    return parse_constants((files("anychip.plan") / "constants.toml").read_text(encoding="utf-8"))


def parse_constants(text: str) -> Constants:
    """Read constants from TOML text."""
    data: dict[str, Any] = tomllib.loads(text)
    rows = {group: tuple(ids) for group, ids in data.pop("rows", {}).items()}
    found = {}
    for group, entries in data.items():
        for name, entry in entries.items():
            found[f"{group}.{name}"] = Constant(**entry)
    return Constants(found, rows)
