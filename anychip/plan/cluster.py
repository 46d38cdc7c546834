"""A cluster: how many devices of a chip, and how they are joined, level by level. A cluster is data.

`64xh100` means 64 devices of that chip joined in the usual way (`clusters.toml`). A TOML file of the user's says more:

    chip = "h100"
    count = 512
    [[levels]]          # innermost first; the last has no size
    name = "node"
    size = 8
    gb_per_s = 450      # one direction, a device
    latency_us = 3
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..chips.facts import ChipFacts, known_chips, load_facts
from ..errors import ChipError, InputError, nearest


@dataclass(frozen=True)
class Level:
    """Devices within `size` of each other exchange `bytes_per_s` each way at once, `latency_s` a message."""

    name: str
    size: int
    bytes_per_s: float
    latency_s: float


@dataclass(frozen=True, eq=False)
class Cluster:
    """`count` devices of one chip. `levels` ascend in size; the last holds all devices."""

    facts: ChipFacts
    count: int
    levels: tuple[Level, ...]
    source: str

    def describe(self) -> str:
        """Return the cluster for a reader, e.g. `64 x h100 (node of 8 at 450 GB/s, fabric at 50 GB/s)`."""
        joined = ", ".join(f"{level.name}{f' of {level.size}' if level.size < self.count else ''} at "
                           f"{level.bytes_per_s / 1e9:g} GB/s" for level in self.levels)
        cards = f" = {self.count // 2} cards of two dies" if self.facts.name == "ascend910c" else ""
        return f"{self.count} x {self.facts.name}{cards} ({joined})"

    def level_of(self, extent: int) -> Level:
        """Return the innermost level that holds `extent` neighbouring devices."""
        return next((level for level in self.levels if level.size >= extent), self.levels[-1])


def parse_cluster(text: str) -> Cluster:
    """Return the cluster named by `COUNTxCHIP`, or read a TOML file.

    Raises InputError for a count below 1 or a malformed name, ChipError for an unknown chip or an unknown bandwidth.
    """
    if text.endswith(".toml"):
        return read_cluster(Path(text))
    match = re.fullmatch(r"\s*(-?\d+)\s*[xX*]\s*([\w.-]+)\s*", text)
    if not match:
        raise InputError(f"{text!r} names no cluster; write COUNTxCHIP, e.g. 64xh100, or the path of a .toml file")
    return usual_cluster(find_chip(match[2]), int(match[1]))


def find_chip(name: str) -> ChipFacts:
    """Return a chip's facts; Huawei's chips are found without their `ascend` too (`910c`)."""
    for asked in (name, f"ascend{name}", f"ascend{name}".replace("-", "_")):
        try:
            return load_facts(asked)
        except ChipError:
            continue
    return load_facts(name)  # raises with the choices


def usual_cluster(facts: ChipFacts, count: int) -> Cluster:
    """Return `count` devices joined as chips of this kind usually are."""
    _check_count(count)
    usual = _usual().get(facts.name)
    if usual is None:
        raise ChipError(f"how {facts.name} is usually joined is not known; describe the cluster in a .toml file "
                        f"(docs/planner.md). Known: {', '.join(known_chips())}")
    levels = []
    for entry in usual["levels"]:
        rate, latency = facts.number(entry["link"]), facts.number(entry["latency"])
        if rate is None or latency is None:
            missing = entry["link"] if rate is None else entry["latency"]
            raise ChipError(f"{facts.name}: {missing} is unknown, so {entry['name']}s cannot be planned; give the "
                            "cluster in a .toml file with gb_per_s and latency_us (docs/planner.md)")
        levels.append(Level(entry["name"], entry.get("size", count), rate, latency))
        if levels[-1].size >= count:
            break
    if levels[-1].size < count:
        raise ChipError(f"{count} x {facts.name} were asked for, but what joins more than {levels[-1].size} of them is "
                        "not known; give the cluster in a .toml file (docs/planner.md)")
    return Cluster(facts, count, tuple(levels), usual["source"])


@lru_cache(maxsize=1)
def _usual() -> Mapping[str, Any]:
    return tomllib.loads((files("anychip.plan") / "clusters.toml").read_text(encoding="utf-8"))


def read_cluster(path: Path) -> Cluster:
    """Read a user's cluster file. Raises InputError with every fault of it."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} cannot be read as a cluster: {error}") from error
    known = {"chip", "count", "levels"}
    faults = [f"{key}: no such field.{nearest(key, known)}" for key in data if key not in known]
    faults += [f"{key} is missing" for key in ("chip", "count") if key not in data]
    levels = [_level(entry, i, data.get("count", 0), faults) for i, entry in enumerate(data.get("levels", []))]
    if faults:
        raise InputError(f"{path} describes no cluster: " + "; ".join(faults))
    facts = find_chip(str(data["chip"]))
    if not levels:
        return usual_cluster(facts, data["count"])
    _check_count(data["count"])
    return Cluster(facts, data["count"], tuple(level for level in levels if level is not None), str(path))


def _level(entry: Mapping[str, Any], index: int, count: int, faults: list[str]) -> Level | None:
    numbers = {"gb_per_s": entry.get("gb_per_s"), "latency_us": entry.get("latency_us"),
               "size": entry.get("size", count)}
    wrong = [f"levels[{index}].{key} is {value!r}; it must be a number above 0" for key, value in numbers.items()
             if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0]
    faults.extend(wrong)
    if wrong:
        return None
    return Level(str(entry.get("name", f"level {index}")), int(numbers["size"]), numbers["gb_per_s"] * 1e9,
                 numbers["latency_us"] * 1e-6)


def _check_count(count: object) -> None:
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise InputError(f"{count} chips cannot run anything; a cluster has at least 1")
