"""What the last check of each example said, kept in the user's cache for `anychip kernels`."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from ..kernels.example import Example, Kernel
from . import cache
from .check import Checked
from .frontend import content
from .toolchain import find_toolchain


def remember(kernel: Kernel, example: Example, checked: Checked, folder: Path | None = None) -> None:
    """Keep a result under the kernel's content, so that it is forgotten when the kernel changes."""
    time_s = checked.time.time_s if checked.time else None
    entry = {"status": checked.status, "findings": len(checked.findings), "time_s": time_s,
             "date": datetime.date.today().isoformat()}
    cache.store(_folder(folder), _key(kernel, example, checked.target), entry)


def recall(kernel: Kernel, example: Example, target: str, folder: Path | None = None) -> dict[str, Any] | None:
    """Return the last result: status, findings (a number), time_s (simulated) and date; None where there is none."""
    return cache.load(_folder(folder), _key(kernel, example, target))


def state(kernel: Kernel, target: str, folder: Path | None = None) -> str:
    """Return a kernel's state on a chip in a word or two: `pass`, `FAIL`, `ERROR`, or `not checked`."""
    found = [recall(kernel, example, target, folder) for example in kernel.examples]
    known = [entry for entry in found if entry is not None]
    for status, word in (("error", "ERROR"), ("fail", "FAIL")):
        if any(entry["status"] == status for entry in known):
            return word
    return "pass" if known and len(known) == len(found) else "not checked"


def _folder(folder: Path | None) -> Path:
    return folder or cache.cache_folder() / "checked"


def _key(kernel: Kernel, example: Example, target: str) -> str:
    return cache.digest("checked", find_toolchain().versions, content(kernel.fn), example.name, target)
