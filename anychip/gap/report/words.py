"""How the report says things: numbers with unit and kind, names, notes."""

from __future__ import annotations

import math
import shlex
from typing import Any

from ...record import Kind, Quantity
from ..compare import Comparison
from ..numerics import DISCRETE
from ..proof import EXPLAINED
from ..record import LEVELS
from ..row import Row
from .sources import sources_note

TAGS = {Kind.MEASURED: "meas", Kind.EMULATED: "emul", Kind.SIMULATED: "sim", Kind.PUBLISHED: "publ"}
MEANINGS = {
    Kind.MEASURED: "counted or timed on the chip itself",
    Kind.EMULATED: "real maths in the chip's number formats, run on another machine",
    Kind.SIMULATED: "from a model of time or memory; no chip took part",
    Kind.PUBLISHED: "somebody else's figure; the chip's facts file names its source",
}


def number(value: float | None) -> str:
    """Return a number for reading: `unknown`, `NaN`, thousands with commas, four significant digits otherwise."""
    if value is None:
        return "unknown"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if size >= 1e-3 else f"{value:.2e}"


def interval(quantity: Quantity) -> str:
    """Return `[low, high]`, or nothing where no interval is known."""
    if quantity.value is None or quantity.low is None or quantity.high is None:
        return ""
    return f"[{number(quantity.low)}, {number(quantity.high)}]"


def full(quantity: Quantity) -> str:
    """Return value, interval, unit and the kind's tag in one line; `unknown` alone where there is no value."""
    if quantity.value is None:
        return "unknown"
    parts = (number(quantity.value), interval(quantity), quantity.unit, f"({TAGS[quantity.kind]})")
    return " ".join(part for part in parts if part)


def seconds(value: float, kind: Kind) -> Quantity:
    """Return a time in the unit that keeps it short: s, ms or us."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return Quantity(value / size, unit, kind)
    return Quantity(value / 1e-6, "us", kind)


def visible(text: str) -> str:
    """Return untrusted text with line breaks and control characters made visible, so that they cannot act."""
    return "".join("\u23ce" if c == "\n" else c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def chip_names(comparison: Comparison) -> tuple[str, str]:
    """Return both chips' names; with what is running them added where the names are the same."""
    a, b = str(comparison.about_a["chip"]), str(comparison.about_b["chip"])
    return (a, b) if a != b else (f"{a} (first)", f"{b} (second)")


def coarser_format(comparison: Comparison) -> str:
    """Return the number format that `explained` stands for: the coarser one of the two chips."""
    formats = (str(about["precision"]) for about in (comparison.about_a, comparison.about_b))
    return max(formats, key=EXPLAINED.__getitem__)


def command(comparison: Comparison) -> str:
    """Return the command that runs this comparison again where both chips are on one machine.

    A text is named by its path on A's machine; that B read the same tokens is known by their sha256.
    """
    about = comparison.about_a
    words = ["anychip", "gap", "--model", str(about["model"]),
             "--chips", f"{about['chip']},{comparison.about_b['chip']}"]
    seed, text = about["settings"]["seed"], about.get("text")
    words += ["--text", str(text)] if text else []
    words += ["--seed", str(seed)] if seed else []
    return shlex.join(words + ([] if comparison.levels == list(LEVELS) else ["--level", ",".join(comparison.levels)]))


def equal_tokens(row: dict[str, Any]) -> str:
    """Return how much of a generated text both chips share."""
    if row["identical"]:
        return f"identical, {row['tokens']} tokens"
    if row["same_tokens"] == 0:
        return "the first token differs already"
    return f"the first {row['same_tokens']} of {row['tokens']} tokens are equal"


def limits_note(limits: dict[str, Any] | None) -> str:
    """Return whose limits time a chip, which of them are estimates, and what ran and timed its ops."""
    if limits is None:
        return "no facts file describes this chip, so nothing of it is simulated"
    guesses = ", ".join(limits["guesses"])
    estimates = f"our estimates among its facts: {guesses}" if guesses else "none is an estimate"
    return f"limits of {limits['device']}; {estimates}{sources_note(limits)}"


def row_unit(row: Row) -> str:
    """Return the unit of a row's numbers; a gap in another unit (a ratio) says its own."""
    return next((side.unit for side in (row.a, row.b, row.gap) if side is not None), "")


def row_note(row: Row) -> str:
    """Return a row's note; for an op whose result is a choice, what its numbers are instead."""
    choice = "share of the choices that differ" if row.name in DISCRETE else ""
    return "; ".join(part for part in (row.note, choice) if part)
