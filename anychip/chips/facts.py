"""What is known of a chip: every number with its unit, source and date, from one TOML file a chip.

A file keeps the unit of its source (TFLOPS, GiB, TB/s); `ChipFacts` also gives SI numbers (FLOP/s, bytes,
bytes/s, seconds). A format that is absent under [peak] is one the chip lacks. Anything else that is absent is
unknown: it is None and prints `unknown`, never a stand-in. `guess = true` marks a value that is our estimate.
`date` is the date of the source, or the day it was read where the source carries none.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from importlib.resources.abc import Traversable
from types import MappingProxyType
from typing import Any

from anychip.chips.fact_schema import FORMATS, REQUIRED, SCHEMA, UNITS
from anychip.errors import ChipError, nearest

_DATE = re.compile(r"\d{4}(-\d{2}(-\d{2})?)?")


@dataclass(frozen=True)
class Fact:
    """One number of one chip, in the unit of its source. `guess`: our estimate, `note` says from what."""

    value: float
    unit: str
    source: str
    date: str
    guess: bool = False
    note: str = ""

    @property
    def si(self) -> float:
        """The value in FLOP/s, bytes, bytes/s, s, Hz, W; ratios, counts and money are unchanged."""
        return self.value * UNITS[self.unit][1]

    def __str__(self) -> str:
        unit = "" if self.unit in ("1", "count") else f" {self.unit}"
        return f"{self.value:g}{unit}{' (guess)' if self.guess else ''}"


@dataclass(frozen=True)
class ChipFacts:
    """All facts of one schedulable device. For the 910C that is one die of two: `device` says so.

    `facts` maps `table.key` (for example `peak.bf16`, `memory.bandwidth`) to its Fact.
    """

    name: str
    vendor: str
    arch: str
    device: str
    facts: Mapping[str, Fact]
    aliases: Mapping[str, str] = field(default_factory=dict)

    def fact(self, path: str) -> Fact | None:
        """Return the Fact at `table.key`, or None when unknown. Raises KeyError for an impossible path."""
        table, _, key = path.partition(".")
        if key not in SCHEMA.get(table, {}):
            raise KeyError(f"no fact is called {path!r}; tables: {', '.join(SCHEMA)}")
        return self.facts.get(path)

    def number(self, path: str) -> float | None:
        """Return the SI number at `table.key`, or None when it is unknown."""
        fact = self.fact(path)
        return None if fact is None else fact.si

    def show(self, path: str) -> str:
        """Return the fact for a reader: `unknown` when it is, `none` for a matrix format the chip lacks."""
        fact = self.fact(path)
        if fact is not None:
            return str(fact)
        return "none" if path.startswith("peak.") else "unknown"

    def table(self, table: str) -> dict[str, float]:
        """Return the known entries of one table in SI: `table("link")["in_node"]` is bytes/s one way."""
        return {
            key: self.facts[f"{table}.{key}"].si for key in SCHEMA[table] if f"{table}.{key}" in self.facts
        }

    @property
    def formats(self) -> tuple[str, ...]:
        """Number formats that the matrix units take."""
        return tuple(fmt for fmt in FORMATS if f"peak.{fmt}" in self.facts)

    @property
    def peak_flops_per_s(self) -> dict[str, float]:
        """Dense peak of the matrix units by format, FLOP/s (int8: operations/s)."""
        return self.table("peak")

    @property
    def vector_peak_flops_per_s(self) -> dict[str, float]:
        """Peak of the vector units by format, FLOP/s, a fused multiply-add counted as two."""
        return self.table("vector_peak")

    @property
    def memory_bytes(self) -> int:
        """Device memory, bytes."""
        return int(self.facts["memory.bytes"].si)

    @property
    def memory_bytes_per_s(self) -> float:
        """Peak device memory bandwidth, bytes/s."""
        return self.facts["memory.bandwidth"].si

    @property
    def l2_bytes(self) -> int | None:
        """Last-level cache, bytes, or None when unknown."""
        size = self.number("l2.bytes")
        return None if size is None else int(size)

    @property
    def power_w(self) -> float | None:
        """Thermal design power of the device, W, or None when unknown."""
        return self.number("power.tdp")

    @property
    def guesses(self) -> tuple[str, ...]:
        """Paths of the facts that are our estimates."""
        return tuple(path for path, fact in self.facts.items() if fact.guess)

    def with_value(self, path: str, value: float) -> ChipFacts:
        """Return a copy where one known fact has another value, in the fact's own unit."""
        return replace(self, facts={**self.facts, path: replace(self.facts[path], value=value)})

    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """Yield (path, value, source with date, note) for every fact a chip can have, unknown ones too."""
        for table, keys in SCHEMA.items():
            for key in keys:
                path = f"{table}.{key}"
                fact = self.fact(path)
                source = f"{fact.source}, {fact.date}" if fact else ""
                yield path, self.show(path), source, fact.note if fact else ""


def known_chips() -> list[str]:
    """Return the names of all chips that have a facts file, sorted."""
    return sorted(
        path.name.removesuffix(".toml") for path in _folder().iterdir() if path.name.endswith(".toml")
    )


def chip_aliases() -> dict[str, str]:
    """Return alias -> chip name. The reason for each is in the chip's file and in `ChipFacts.aliases`."""
    return {alias: name for name in known_chips() for alias in load_facts_file(name).aliases}


def load_facts(name: str) -> ChipFacts:
    """Load the facts of a chip by name or alias (case does not matter).

    Raises:
        ChipError: unknown name (with the nearest and all names), or a faulty file (with all faults).
    """
    asked = name.strip().lower()
    chips = known_chips()
    if asked in chips:
        return load_facts_file(asked)
    aliases = chip_aliases()
    if asked in aliases:
        return load_facts_file(aliases[asked])
    raise ChipError(
        f"no facts for chip {name!r}.{nearest(asked, [*chips, *aliases])} "
        f"Known: {', '.join(chips)}. Aliases: {', '.join(f'{a} = {c}' for a, c in sorted(aliases.items()))}."
    )


def load_facts_file(name: str) -> ChipFacts:
    """Load the facts file of exactly this chip name. Raises ChipError with every fault of the file."""
    return parse_facts(name, (_folder() / f"{name}.toml").read_text(encoding="utf-8"))


def parse_facts(name: str, text: str) -> ChipFacts:
    """Turn the text of a facts file into ChipFacts. Raises one ChipError that names all its faults."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ChipError(f"facts file {name}.toml is not TOML: {error}") from error
    faults: list[str] = []
    sources = _sources(data.pop("sources", {}), faults)
    aliases = _texts(data.pop("aliases", {}), "aliases", faults)
    head = {key: data.pop(key, None) for key in ("vendor", "arch", "device")}
    faults += [f"{key} is missing or not text" for key, value in head.items() if not isinstance(value, str)]
    facts = _facts(data, sources, faults)
    faults += [f"{path} is missing" for path in REQUIRED if path not in _paths(data)]
    if not data.get("peak"):
        faults.append("[peak] names no format")
    if faults:
        raise ChipError(f"facts file {name}.toml has {len(faults)} fault(s): " + "; ".join(faults))
    return ChipFacts(name=name, facts=MappingProxyType(facts), aliases=MappingProxyType(aliases), **head)


def _paths(data: Mapping[str, Any]) -> set[str]:
    """Return every `table.key` that a parsed file holds, right or wrong."""
    return {f"{table}.{key}" for table, keys in data.items() if isinstance(keys, dict) for key in keys}


def _folder() -> Traversable:
    return files("anychip.chips") / "facts"


def _texts(table: object, where: str, faults: list[str]) -> dict[str, str]:
    if not isinstance(table, dict) or not all(isinstance(text, str) for text in table.values()):
        faults.append(f"[{where}] must map names to text")
        return {}
    return table


def _sources(table: object, faults: list[str]) -> dict[str, tuple[str, str]]:
    """Read [sources]: key -> (text, date)."""
    sources: dict[str, tuple[str, str]] = {}
    for key, entry in table.items() if isinstance(table, dict) else ():
        text, date = (entry.get("text"), entry.get("date")) if isinstance(entry, dict) else (None, None)
        if not isinstance(text, str) or not text:
            faults.append(f"sources.{key} has no text")
        elif not isinstance(date, str) or not _DATE.fullmatch(date):
            faults.append(f"sources.{key} has date {date!r}; write YYYY, YYYY-MM or YYYY-MM-DD")
        else:
            sources[key] = (text, date)
    return sources


def _facts(
    data: Mapping[str, Any], sources: Mapping[str, tuple[str, str]], faults: list[str]
) -> dict[str, Fact]:
    """Read every fact of a file; append to `faults` what is wrong with each."""
    facts: dict[str, Fact] = {}
    for table, keys in data.items():
        if table not in SCHEMA or not isinstance(keys, dict):
            faults.append(
                f"[{table}] is no table of facts.{nearest(table, SCHEMA)} Tables: {', '.join(SCHEMA)}"
            )
            continue
        for key, entry in keys.items():
            problems = _problems(table, key, entry, sources)
            faults += [f"{table}.{key} {problem}" for problem in problems]
            if not problems:
                text, date = sources[entry["source"]]
                facts[f"{table}.{key}"] = Fact(
                    float(entry["value"]),
                    entry["unit"],
                    text,
                    date,
                    entry.get("guess", False),
                    entry.get("note", ""),
                )
    return facts


def _problems(table: str, key: str, entry: object, sources: Mapping[str, tuple[str, str]]) -> list[str]:
    """Return what is wrong with one fact of a file, or an empty list."""
    dimension = SCHEMA[table].get(key)
    if dimension is None:
        return [f"is not a known fact; [{table}] may hold {', '.join(SCHEMA[table])}"]
    if not isinstance(entry, dict):
        return ["must be a table { value, unit, source }"]
    found = []
    value, unit, source = entry.get("value"), entry.get("unit"), entry.get("source")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        found.append(f"has value {value!r}; it must be a number above 0 (leave an unknown fact out)")
    elif dimension == "ratio" and value > 1:
        found.append(f"is {value}; a ratio is at most 1")
    if UNITS.get(str(unit), ("",))[0] != dimension:
        units = ", ".join(name for name, (of, _) in UNITS.items() if of == dimension)
        found.append(f"has unit {unit!r}; use one of {units}")
    if source not in sources:
        found.append(f"has source {source!r}, which is not a (valid) key of [sources]")
    if not isinstance(entry.get("guess", False), bool) or not isinstance(entry.get("note", ""), str):
        found.append("has a guess that is not true/false or a note that is not text")
    if entry.get("guess") is True and not entry.get("note"):
        found.append("is a guess without a note that says from what")
    found += [
        f"has unknown field {name!r}"
        for name in entry
        if name not in ("value", "unit", "source", "guess", "note")
    ]
    return found
