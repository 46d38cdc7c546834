"""How fast a chip's units work: every constant of the clock with unit and source, or a guess with a range."""

from __future__ import annotations

import ctypes
import functools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import NotSupported
from .targets import Target

UNITS = {"cycles", "B/cycle", "B/cycle/core", "B", "1", "count", "GHz", "us", "MiB", "TB/s"}


@dataclass(frozen=True)
class Constant:
    """One number of a chip. A guess has no public source; low and high say how far off it may be."""

    value: float
    unit: str
    source: str
    guess: bool = False
    low: float | None = None
    high: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"unit {self.unit!r} is none of {', '.join(sorted(UNITS))}")
        _check_range(self.guess, self.value, self.low, self.high)


@dataclass(frozen=True)
class OpConstant:
    """A vector op's cycles: head (the pipe was idle), each repeat of 256 bytes, with a scalar operand, tail.

    A guess's low and high multiply the cycles of a repeat.
    """

    head: float
    repeat: float
    scalar_repeat: float
    tail: float
    source: str
    guess: bool = False
    low: float | None = None
    high: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        _check_range(self.guess, 1.0, self.low, self.high)

    def scaled(self, factor: float) -> OpConstant:
        """Return it with `factor` times the cycles of a repeat."""
        return replace(self, repeat=self.repeat * factor, scalar_repeat=self.scalar_repeat * factor)


@dataclass(frozen=True)
class Guess:
    """A guessed constant: its key (`rate.issue`, `op.vsort`, `die.launch`, `clock`), value and range.

    For ops the numbers are factors on the cycles of a repeat, and the value is 1.
    """

    key: str
    value: float
    low: float
    high: float
    note: str


@dataclass(frozen=True)
class Rates:
    """All constants of one chip. `slowdown` is how much longer transfers take because the cores share the memory."""

    target: str
    clock: Constant
    die: Mapping[str, Constant]
    rate: Mapping[str, Constant]
    op: Mapping[str, OpConstant]
    sources: Mapping[str, str]
    slowdown: tuple[float, float] = (1.0, 1.0)  # of reads and of writes

    @property
    def clock_hz(self) -> float:
        """Cycles a second of the cores."""
        return self.clock.value * 1e9

    def guesses(self) -> Iterator[Guess]:
        """Yield every constant that is a guess with a range."""
        groups: tuple[tuple[str, Mapping[str, Constant]], ...] = (
            ("", {"clock": self.clock}), ("die.", self.die), ("rate.", self.rate))
        for prefix, constants in groups:
            for name, c in constants.items():
                if c.guess and c.low is not None and c.high is not None and c.low < c.high:
                    yield Guess(prefix + name, c.value, c.low, c.high, c.note)
        for name, o in self.op.items():
            if o.guess and o.low is not None and o.high is not None:
                yield Guess("op." + name, 1.0, o.low, o.high, o.note)

    def changed(self, key: str, value: float) -> Rates:
        """Return the rates with one constant changed (for an op: its repeats times `value`).

        Raises KeyError for an unknown key.
        """
        group, _, name = key.rpartition(".")
        if key == "clock":
            return replace(self, clock=_with_value(self.clock, value))
        if group == "op":
            return replace(self, op={**self.op, name: self.op[name].scaled(value)})
        if group == "die":
            return replace(self, die={**self.die, name: _with_value(self.die[name], value)})
        if group == "rate":
            return replace(self, rate={**self.rate, name: _with_value(self.rate[name], value)})
        raise KeyError(key)

    def packed(self, rate_names: Sequence[str], op_names: Sequence[str]) -> ctypes.Array[ctypes.c_double]:
        """Return the constants as the clock's C struct: the rates in order, then four numbers for each op."""
        values = {name: c.value for name, c in self.rate.items()}
        values |= {"read_slowdown": self.slowdown[0], "write_slowdown": self.slowdown[1]}
        flat = [values[name] for name in rate_names]
        for name in op_names:
            op = self.op.get(name, self.op["default"])
            flat += [op.head, op.repeat, op.scalar_repeat, op.tail]
        return (ctypes.c_double * len(flat))(*flat)


def load_rates(target: Target) -> Rates:
    """Return the constants of a chip.

    Raises NotSupported for a chip whose speed nobody has written down.
    """
    path = Path(__file__).parent / "rates" / f"{target.arch}.toml"
    if not path.is_file():
        raise NotSupported(f"{target.name} ({target.arch}) has no rates file, so kernels for it run but are not timed; "
                           f"write anychip/ascend/rates/{target.arch}.toml after dav-c220.toml")
    return _load(path, target.name)


@functools.cache
def _load(path: Path, name: str) -> Rates:
    data: dict[str, Any] = tomllib.loads(path.read_text())
    die = dict(data["die"])
    for start, changes in data.get("die_of", {}).items():
        if name.startswith(start):
            die |= changes
    rates = Rates(name, Constant(**data["clock"].get(name, data["clock"]["default"])),
                  {key: Constant(**entry) for key, entry in die.items()},
                  {key: Constant(**entry) for key, entry in data["rate"].items()},
                  {key: OpConstant(**entry) for key, entry in data["op"].items()},
                  {key: entry["text"] for key, entry in data["sources"].items()})
    named: tuple[Constant | OpConstant, ...] = (rates.clock, *rates.die.values(), *rates.rate.values(),
                                                *rates.op.values())
    missing = {c.source for c in named} - rates.sources.keys()
    if missing:
        raise ValueError(f"{path.name}: no source {', '.join(sorted(missing))}")
    return rates


def _with_value(constant: Constant, value: float) -> Constant:
    return replace(constant, value=value, low=None, high=None) if constant.guess else replace(constant, value=value)


def _check_range(guess: bool, value: float, low: float | None, high: float | None) -> None:
    if (low is None) != (high is None) or (low is not None and not guess):
        raise ValueError("low and high stand together, and only at a guess")
    if low is not None and high is not None and not low <= value <= high:
        raise ValueError(f"value {value} outside its range {low} to {high}")
