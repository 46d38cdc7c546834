"""Where a step's time goes: op calls joined by op and shapes, achieved against possible, and the likeliest causes.

*Possible* is the roofline at the chip's full peaks (no efficiency, no launches): no kernel can be faster. What a step
takes above it is its shortfall, and every cause accounts for a part of that, in seconds. Where the times themselves are
simulated by a roofline, the shortfall is what its assumed efficiencies and launches say, and the words say so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..chips.facts import ChipFacts
from ..chips.timing import is_matrix_product, simulated
from ..record import Event, Kind, Quantity

NUM_CAUSES = 3
LEAST = 0.01  # of the step: smaller causes are not told
TILE = 16  # rows that a matrix unit takes at once, at least: fewer leave it partly empty
_FULL = {"efficiency.matmul": 1.0, "efficiency.vector": 1.0, "efficiency.memory": 1.0, "launch.matmul": 0.0,
         "launch.vector": 0.0}


@dataclass(frozen=True)
class Cause:
    """One cause of a shortfall: in plain words, and the seconds of the step that it accounts for."""

    kind: str  # "launches", "memory", "compute", "tiles", "share"
    text: str
    lost_s: float


def grouped(events: Sequence[Event], facts: ChipFacts, precision: str) -> list[dict[str, Any]]:
    """Return one row an (op, shapes): calls, time, share, what is possible, and the three terms of the roofline.

    `possible_s` at full peaks, `memory_s` of it for the bytes alone, `launch_s` of all calls; costliest first.
    """
    ideal = facts
    for path, value in _FULL.items():
        ideal = ideal.with_value(path, value) if path in facts.facts else ideal
    best = simulated(events, ideal, precision)
    bytes_only = simulated([replace(event, flops=0.0) for event in events], ideal, precision)
    rows: dict[tuple[str, str], dict[str, Any]] = defaultdict(lambda: dict.fromkeys(
        ("calls", "time_s", "possible_s", "memory_s", "launch_s", "flops", "bytes"), 0.0))
    for event, possible, memory in zip(events, best, bytes_only, strict=True):
        matrix = is_matrix_product(event, facts)
        row = rows[event.op, " x ".join(str(list(s)) for s in event.shapes[:2])]
        added = {"calls": 1.0, "time_s": event.time_s or 0.0, "possible_s": possible.time_s or 0.0,
                 "memory_s": memory.time_s or 0.0, "flops": event.flops, "bytes": event.bytes,
                 "launch_s": facts.facts["launch.matmul" if matrix else "launch.vector"].si}
        for name, value in added.items():
            row[name] += value
        row["source"] = event.source.split(":")[0] or ("roofline" if event.kind is Kind.SIMULATED else "measured")
        row["rows"] = event.shapes[0][0] if matrix and event.shapes[0] else None
    total = sum(row["time_s"] for row in rows.values()) or 1.0
    found = [{"op": op, "shape": shape, **row, "calls": int(row["calls"]), "share": row["time_s"] / total}
             for (op, shape), row in rows.items()]
    return sorted(found, key=lambda row: -row["time_s"])


def joined(a: Sequence[dict[str, Any]], b: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join two sides' rows by op and shapes: times, shares and achieved shares of the possible, costliest on b first.

    A side that lacks an op and shape has None there.
    """
    left = {(row["op"], row["shape"]): row for row in a}
    right = {(row["op"], row["shape"]): row for row in b}
    found = []
    for op, shape in {**right, **left}:
        sides = [side.get((op, shape)) for side in (left, right)]
        one: dict[str, Any] = {"op": op, "shape": shape}
        for letter, row in zip("ab", sides, strict=True):
            one |= {f"time_s_{letter}": row and row["time_s"], f"share_{letter}": row and row["share"],
                    f"achieved_{letter}": row and achieved(row)}
        found.append(one)
    return found


def achieved(row: dict[str, Any]) -> float | None:
    """Return the share of the chip's roofline that a row reaches (1: as fast as the chip can be); None untimed."""
    return row["possible_s"] / row["time_s"] if row["time_s"] > 0 else None


def causes(rows: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]] = ()) -> list[Cause]:
    """Return the likeliest causes of a step's shortfall, largest first, at most `NUM_CAUSES` and none below `LEAST`.

    `rows` are the tested chip's (see `grouped`), `other` the reference chip's of the same step where it has one.
    """
    total = sum(row["time_s"] for row in rows)
    found = [*_launches(rows, total), *_kernels(rows, total), *_grown(rows, other, total)]
    found.sort(key=lambda cause: -cause.lost_s)
    return [cause for cause in found if cause.lost_s >= LEAST * total][:NUM_CAUSES]


def _lost(row: dict[str, Any]) -> float:
    return max(row["time_s"] - row["possible_s"], 0.0)


def _launch(row: dict[str, Any]) -> float:
    return min(_lost(row), row["launch_s"])


def _launches(rows: Sequence[dict[str, Any]], total: float) -> Iterator[Cause]:
    """All calls together: what starting them costs, whatever they do."""
    lost = sum(_launch(row) for row in rows)
    small = [row for row in rows if row["launch_s"] > row["possible_s"]]
    calls, of = sum(row["calls"] for row in small), sum(row["calls"] for row in rows)
    if lost:
        yield Cause("launches", f"launch overhead of many small ops: {calls:,} of {of:,} calls take less work than "
                    f"their own launch ({_percent(lost, total)} of the step); capture it as a graph, or fuse them",
                    lost)


def _kernels(rows: Sequence[dict[str, Any]], total: float) -> Iterator[Cause]:
    """Each op and shape: what its kernel leaves of the chip's bandwidth or peak."""
    for row in rows:
        lost, part = _lost(row) - _launch(row), achieved(row)
        if lost <= 0 or part is None:
            continue
        name, tail = f"{row['op']} on {row['shape']}", f"({_percent(lost, total)} of the step)"
        assumed = "by the efficiency that the chip's facts assume, " if row["source"] == "roofline" else ""
        empty = 0.0 if not row["rows"] else 1 - row["rows"] / (-(-row["rows"] // TILE) * TILE)
        if row["memory_s"] >= row["possible_s"] * (1 - 1e-9):
            yield Cause("memory", f"{name} is bound by memory and {assumed}moves its bytes at {100 * part:.0f} % of "
                        f"the chip's bandwidth {tail}: read each row once, or fuse it with its neighbours", lost)
        elif empty >= 0.25 and not assumed:
            yield Cause("tiles", f"{name} fills {100 * (1 - empty):.0f} % of its tiles of {TILE} rows and reaches "
                        f"{100 * part:.0f} % of the peak {tail}: batch more rows, or use smaller tiles", lost)
        else:
            yield Cause("compute", f"{name} is bound by arithmetic and {assumed}reaches {100 * part:.0f} % of the peak "
                        f"{tail}: tile sizes, number format, or a fused kernel that is missing", lost)


def _grown(rows: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]], total: float) -> Iterator[Cause]:
    """An op that takes a larger share of this chip's step than of the other's, by what the two chips do not explain."""
    shares: list[dict[str, float]] = [defaultdict(float), defaultdict(float)]
    wholes = []
    possible: list[dict[str, float]] = [defaultdict(float), defaultdict(float)]
    for side, table in enumerate((other, rows)):
        wholes.append(sum(row["time_s"] for row in table))
        for row in table:
            shares[side][row["op"]] += row["time_s"]
            possible[side][row["op"]] += row["possible_s"]
    for op, time_s in shares[1].items():
        before = shares[0].get(op, 0.0)
        if not before or not possible[0][op]:
            continue
        lost = time_s - before * possible[1][op] / possible[0][op]
        was, now = before / wholes[0], time_s / wholes[1]
        if lost > 0 and now > was + LEAST:
            yield Cause("share", f"{op} takes {100 * now:.0f} % of the step and {100 * was:.0f} % of the other chip's: "
                        f"as good a kernel for this chip would save {_percent(lost, total)} of the step", lost)


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %"


def reached(rows: Sequence[dict[str, Any]], kind: Kind) -> Quantity:
    """Return the share of the possible that a whole step reaches."""
    total = sum(row["time_s"] for row in rows)
    return Quantity(100 * sum(row["possible_s"] for row in rows) / total if total else None, "%", kind)
