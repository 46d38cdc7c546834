"""The verdict on an implementation as a table for the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from .judge import Row, tolerance
from .likeness import Likeness
from .rounding import Rounding

_SHOWN = 3  # likely faults, at most
_LINES = 3  # rounding lines a part on the terminal


@dataclass(frozen=True)
class Report:
    """What was judged, in which number format, every verdict, the likeliest known bugs, and where it rounds."""

    tested: str
    dtype: str
    rows: list[Row]
    likely: dict[str, list[str]] = field(default_factory=dict)
    roundings: dict[str, list[Rounding]] = field(default_factory=dict)

    @property
    def failed(self) -> list[Row]:
        """The failures, as they were run."""
        return [row for row in self.rows if row.verdict == "FAIL"]

    @property
    def verdict(self) -> str:
        """`conforms`, `does not conform`, or `nothing was judged`."""
        if self.failed:
            return "does not conform"
        return "conforms" if any(row.verdict == "pass" for row in self.rows) else "nothing was judged"

    def sentence(self) -> str:
        """Return the verdict in words: what fails, of how many."""
        counts = {verdict: sum(row.verdict == verdict for row in self.rows) for verdict in ("pass", "FAIL", "skipped")}
        parts = ", ".join(dict.fromkeys(row.part for row in self.failed))
        return (f"{self.tested} in {self.dtype} {self.verdict}: {counts['pass']} passed, {counts['FAIL']} failed, "
                f"{counts['skipped']} skipped" + (f". Fails: {parts}" if parts else ""))


def as_words(likely: Sequence[Likeness]) -> list[str]:
    """Return the likeliest faults in words: only those that explain all, where any does."""
    best = [one for one in likely if one.left <= 2 * likely[0].left + 0.01][:_SHOWN]
    return [str(one) for one in best]


def to_json(report: Report) -> dict[str, Any]:
    """Return the report as one JSON document's value."""
    allowed = tolerance(report.dtype)
    return {"format": "anychip-conform-report", "version": 1, "tested": report.tested, "dtype": report.dtype,
            "kind": "measured", "verdict": report.verdict, "tolerance": asdict(allowed),
            "rows": [asdict(row) for row in report.rows], "likely": report.likely,
            "roundings": {name: [asdict(one) for one in found] for name, found in report.roundings.items()}}


def print_report(report: Report, console: Console) -> None:
    """Print the verdict, a line for each case, the likely bugs, and the roundings by part."""
    say = lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)  # noqa: E731
    console.print(report.sentence(), markup=False, style="bold", soft_wrap=True)
    say("Every difference is measured on what was tested; allowed is a rule of its number format.")
    for name in dict.fromkeys(row.weights for row in report.rows):
        rows = [row for row in report.rows if row.weights == name]
        console.print(_cases(name, [row for row in rows if row.verdict != "skipped"]))
        for why in dict.fromkeys(row.note for row in rows if row.verdict == "skipped"):
            say("skipped: " + ", ".join(row.case for row in rows if row.note == why) + f": {why}")
        for text in report.likely.get(name, []):
            say(f"{name}: {text}")
    if report.failed and not any(report.likely.values()):
        say("no known fault explains the failures")
    for name, found in report.roundings.items():
        say(f"where it rounds, weights {name} ({_LINES} lines a part at most; --json has all):")
        for text in _rounding_lines(found):
            say(text)
    say(f"tolerance of {report.dtype}: {tolerance(report.dtype).reason}")


def _cases(title: str, rows: list[Row]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("case", overflow="fold")
    for name in ("verdict", "size", "allowed", "worst", "allowed"):
        table.add_column(name, justify="left" if name == "verdict" else "right", no_wrap=True)
    for row in rows:
        sizes = (row.size, row.allowed, row.worst, row.worst_allowed)
        case = row.case if row.unit == "nats" else f"{row.part}: {row.case} ({row.unit})"
        table.add_row(case + (f"; {row.note}" if row.note else ""), row.verdict,
                      *("" if x is None else f"{x:.1e}" for x in sizes))
    return table


def _rounding_lines(found: list[Rounding]) -> list[str]:
    lines = []
    for part in dict.fromkeys(one.part for one in found):
        ones = [one for one in found if one.part == part]
        first = ones[0]
        lines.append(f"  {part}: alone it moves log-probabilities by {first.effect:.1e} nats, the experts "
                     f"of {100 * (first.experts or 0):.2g} % and the entries of {100 * (first.entries or 0):.2g} % of "
                     "tokens")
        lines += [f"    {one.size:.1e} relative, {one.count} x: {one.where}" for one in ones[:_LINES]]
    return lines
