"""Layouts as text: `TP4 PP8 EP32 VP2 MBS1 interleaved recompute=selective FSDP`."""

from __future__ import annotations

import re
from typing import Any

from ..errors import InputError
from .parallel import RECOMPUTES, SCHEDULES

_NAMES = {"DP": "data", "TP": "tensor", "PP": "pipeline", "CP": "context", "EP": "expert", "VP": "virtual",
          "MBS": "micro_batch"}


def parse_layout(text: str) -> dict[str, int | str]:
    """Return the degrees named in a text, by the fields of `Parallel`. Raises InputError with what it can hold."""
    found: dict[str, Any] = {}
    wrong = []
    for word in text.replace(",", " ").split():
        degree = re.fullmatch(r"([A-Za-z]+)=?(\d+)", word)
        key, _, value = word.partition("=")
        if degree and degree[1].upper() in _NAMES:
            found[_NAMES[degree[1].upper()]] = int(degree[2])
        elif word.lower() in SCHEDULES:
            found["schedule"] = word.lower()
        elif word.lower() in ("fsdp", "zero-1", "ddp"):
            found["shard"] = {"fsdp": "full", "zero-1": "optimizer", "ddp": "none"}[word.lower()]
        elif key == "recompute" and value in RECOMPUTES:
            found["recompute"] = value
        else:
            wrong.append(word)
    if wrong:
        raise InputError(f"a layout cannot hold {', '.join(map(repr, wrong))}; write e.g. 'TP4 PP8 EP32 MBS1': degrees "
                         f"{', '.join(_NAMES)}; {', '.join(SCHEDULES)}; FSDP, ZeRO-1 or DDP; recompute="
                         f"{'|'.join(RECOMPUTES)}")
    if found.get("virtual", 1) > 1:
        found.setdefault("schedule", "interleaved")
    return found


def complete_layout(fixed: dict[str, int | str], devices: int) -> dict[str, int | str]:
    """Return the layout with the data-parallel degree that fills the devices."""
    ranks = 1
    for name in ("tensor", "pipeline", "context"):
        ranks *= int(fixed.get(name, 1))
    return {"data": max(devices // ranks, 1), **fixed}
