"""Simulated time of one op call on one device: launch + max(compute, memory).

    time = launch + max( flops / (peak * efficiency), bytes / (bandwidth * efficiency) )

`peak` is the dense rate of the matrix units for a matmul, the rate of the vector units otherwise. All three
figures and the efficiencies come from the chip's facts file. The result is *simulated*: no chip was involved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from anychip.errors import InputError, NotSupported
from anychip.record import Event, Kind

if TYPE_CHECKING:  # only the annotations need it, and the chips import this module
    from anychip.chips.facts import ChipFacts

Bound = Literal["compute", "memory", "launch"]


@dataclass(frozen=True)
class TimeParts:
    """The three terms of the roofline, seconds. `compute_s` is None where the vector rate is unknown."""

    launch_s: float
    compute_s: float | None
    memory_s: float


@dataclass(frozen=True)
class SimulatedTime:
    """A simulated time, seconds, and the term that is the largest of the three."""

    time_s: float
    bound: Bound
    parts: TimeParts


class Work(NamedTuple):
    """One op call as the roofline sees it. `fmt` is a format of anychip.chips.fact_schema.FORMATS."""

    flops: float
    bytes_moved: float
    fmt: str
    is_matmul: bool


class Sensitivity(NamedTuple):
    """Relative change of a total time when one guessed fact is lower and higher (0.1 = 10 % slower)."""

    path: str
    when_lower: float
    when_higher: float


def roofline_time(
    flops: float, bytes_moved: float, fmt: str, facts: ChipFacts, *, is_matmul: bool
) -> SimulatedTime:
    """Return the simulated time of one op call.

    Args:
        flops: floating-point (or integer) operations, a multiply-add counted as two.
        bytes_moved: bytes that must move to and from device memory.
        fmt: number format of the inputs, one of anychip.chips.fact_schema.FORMATS.
        facts: the chip; for a 910C that is one die.
        is_matmul: whether the matrix units do the arithmetic.

    Raises:
        NotSupported: the chip has no such format.
        InputError: flops or bytes_moved is negative or not finite.
    """
    _check_amounts(flops, bytes_moved)
    rate = _compute_rate(fmt, facts, is_matmul)
    launch_s = facts.facts["launch.matmul" if is_matmul else "launch.vector"].si
    memory_s = bytes_moved / (facts.memory_bytes_per_s * facts.facts["efficiency.memory"].si)
    compute_s = None if rate is None else flops / rate
    busy_s = max(memory_s, compute_s or 0.0)
    return SimulatedTime(
        launch_s + busy_s, _bound(launch_s, compute_s, memory_s), TimeParts(launch_s, compute_s, memory_s)
    )


def total_time_s(work: Iterable[Work], facts: ChipFacts) -> float:
    """Return the summed time, seconds, of op calls that run one after the other. Raises as roofline_time."""
    return sum(
        roofline_time(w.flops, w.bytes_moved, w.fmt, facts, is_matmul=w.is_matmul).time_s for w in work
    )


def sensitivity(work: Sequence[Work], facts: ChipFacts, change: float = 0.25) -> list[Sensitivity]:
    """Return how much the total time of `work` leans on each guessed fact, largest first.

    Each guess alone is set `change` lower and higher (an efficiency never above 1) and the total taken again.
    A guess that moves nothing is left out, so an empty list means that no guess enters.
    Raises InputError for no work or a change outside (0, 1).
    """
    if not work or not 0 < change < 1:
        raise InputError(
            f"sensitivity of {len(work)} op calls to a change of {change}: needs work and 0 < change < 1"
        )
    base_s = total_time_s(work, facts)
    found = []
    for path in facts.guesses:
        lower, higher = (
            total_time_s(work, _scaled(facts, path, by)) / base_s - 1 for by in (1 - change, 1 + change)
        )
        if lower or higher:
            found.append(Sensitivity(path, lower, higher))
    return sorted(found, key=lambda s: -max(abs(s.when_lower), abs(s.when_higher)))


def simulate(
    events: Iterable[Event],
    facts: ChipFacts,
    *,
    fmt_of: Callable[[Event], str],
    is_matmul: Callable[[Event], bool],
) -> list[Event]:
    """Return the events with the simulated time of the chip in place of their own, kind SIMULATED.

    `fmt_of` gives the number format the op computes in there, `is_matmul` whether the matrix units do it.
    Raises NotSupported with every format that the chip lacks and the ops that need it, all at once.
    """
    timed: list[Event] = []
    lacking: dict[str, set[str]] = {}
    for event in events:
        fmt = fmt_of(event)
        try:
            time = roofline_time(event.flops, event.bytes, fmt, facts, is_matmul=is_matmul(event))
        except NotSupported:
            lacking.setdefault(fmt, set()).add(event.op)
            continue
        timed.append(replace(event, time_s=time.time_s, kind=Kind.SIMULATED))
    if lacking:
        needs = "; ".join(f"{fmt} for {', '.join(sorted(ops))}" for fmt, ops in sorted(lacking.items()))
        raise NotSupported(
            f"{facts.name} lacks {needs}. It has {', '.join(facts.formats)}; choose one of these."
        )
    return timed


def _check_amounts(flops: float, bytes_moved: float) -> None:
    if not (0 <= flops < float("inf") and 0 <= bytes_moved < float("inf")):
        raise InputError(
            f"roofline of flops={flops}, bytes_moved={bytes_moved}: both must be finite and not negative"
        )


def _compute_rate(fmt: str, facts: ChipFacts, is_matmul: bool) -> float | None:
    """Return the reachable operations/s, or None where the chip's vector rate is unknown."""
    peak = facts.facts.get(f"peak.{fmt}")
    if is_matmul:
        if peak is None:
            raise _lacks(fmt, facts)
        return peak.si * facts.facts["efficiency.matmul"].si
    if peak is None and f"vector_peak.{fmt}" not in facts.facts:
        raise _lacks(fmt, facts)
    # Formats without a vector rate of their own (fp8, int8, bf16 on some chips) are computed in fp32.
    vector = facts.facts.get(f"vector_peak.{fmt}") or facts.facts.get("vector_peak.fp32")
    return None if vector is None else vector.si * facts.facts["efficiency.vector"].si


def _lacks(fmt: str, facts: ChipFacts) -> NotSupported:
    return NotSupported(f"{facts.name} has no {fmt}; it has {', '.join(facts.formats)}. Choose one of these.")


def _bound(launch_s: float, compute_s: float | None, memory_s: float) -> Bound:
    """Return the largest of the three terms; compute wins a tie with memory, both win one with launch."""
    terms: list[tuple[float, Bound]] = [
        (compute_s or 0.0, "compute"),
        (memory_s, "memory"),
        (launch_s, "launch"),
    ]
    return max(terms, key=lambda term: term[0])[1]


def _scaled(facts: ChipFacts, path: str, by: float) -> ChipFacts:
    value = facts.facts[path].value * by
    return facts.with_value(path, min(value, 1.0) if path.startswith("efficiency.") else value)
