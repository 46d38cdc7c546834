"""Discrete-event simulation of one step of a pipeline: who does what when.

The loop is the whole of it: a rank that is free takes its next task as soon as what it needs has arrived.
"""

from __future__ import annotations

import heapq
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .schedule import Task, Unit


@dataclass(frozen=True)
class Span:
    """A task on a rank, seconds from the step's begin."""

    rank: int
    task: Task
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Timeline:
    """All spans of a step. `makespan_s` is the last end; `busy_s` the time of the busiest rank."""

    spans: tuple[Span, ...]
    makespan_s: float
    busy_s: float

    @property
    def bubble(self) -> float:
        """The share of the step in which the busiest rank waits."""
        return 1 - self.busy_s / self.makespan_s if self.makespan_s else 0.0


def simulate(
    ranks: Sequence[Sequence[Task]], seconds: Callable[[Task], float], needs: Callable[[Unit], Sequence[Unit]],
    send_s: float = 0.0,
) -> Timeline:
    """Run every rank's tasks in its order.

    `seconds` gives a task's duration, `needs` the units that must have ended (on another chunk: and been sent, which
    takes `send_s`) before a unit may begin. Raises RuntimeError where the orders wait for each other.
    """
    done: dict[Unit, float] = {}
    at, free = [0] * len(ranks), [0.0] * len(ranks)
    waiting: dict[Unit, list[int]] = defaultdict(list)
    spans: list[Span] = []
    events = [(0.0, rank) for rank in range(len(ranks))]
    while events:
        _, rank = heapq.heappop(events)
        if at[rank] == len(ranks[rank]):
            continue
        task = ranks[rank][at[rank]]
        inputs = [(need, send_s if need[1] != unit[1] else 0.0) for unit in task.units for need in needs(unit)]
        missing = next((need for need, _ in inputs if need not in done), None)
        if missing is not None:
            waiting[missing].append(rank)
            continue
        start = max(free[rank], *(done[need] + delay for need, delay in inputs), 0.0)
        free[rank] = start + seconds(task)
        spans.append(Span(rank, task, start, free[rank]))
        at[rank] += 1
        heapq.heappush(events, (free[rank], rank))
        for unit in task.units:
            for name in ((unit, ("*", *unit[1:])) if unit[0] in "Bb" else (unit,)):
                done[name] = free[rank]
                for waiter in waiting.pop(name, ()):
                    heapq.heappush(events, (free[rank], waiter))
    if stuck := [f"rank {rank}: {ranks[rank][i]}" for rank, i in enumerate(at) if i < len(ranks[rank])]:
        raise RuntimeError(f"a schedule waits for itself: {'; '.join(stuck[:4])}")
    busy: dict[int, float] = defaultdict(float)
    for span in spans:
        busy[span.rank] += span.end_s - span.start_s
    return Timeline(tuple(spans), max(free), max(busy.values()))


def pipeline_needs(chunks: int, *, mirrored: bool = False) -> Callable[[Unit], Sequence[Unit]]:
    """Return what a unit waits for in a model of `chunks` chunks (DualPipe: twice, the second copy mirrored)."""

    def needs(unit: Unit) -> Sequence[Unit]:
        kind, chunk, i = unit
        first, last = (chunk - chunk % chunks, chunk - chunk % chunks + chunks - 1) if mirrored else (0, chunks - 1)
        if kind == "F":
            return [("F", chunk - 1, i)] if chunk > first else []
        if kind == "w":
            return [("b", chunk, i)]
        # of the next chunk's backward the gradient of its input is enough: "*" is B or b
        return [("F", chunk, i), *([("*", chunk + 1, i)] if chunk < last else [])]

    return needs


def write_chrome_trace(timeline: Timeline, path: Path) -> None:
    """Write the step as a Chrome trace (chrome://tracing, Perfetto): one row a pipeline rank, microseconds."""
    names = {"F": "forward", "B": "backward", "b": "backward of inputs", "w": "gradients of weights"}
    events = [{"name": " + ".join(f"{names[kind]} {i}" for kind, _, i in span.task.units), "ph": "X", "pid": 0,
               "tid": span.rank, "ts": span.start_s * 1e6, "dur": (span.end_s - span.start_s) * 1e6,
               "args": {"chunk": [chunk for _, chunk, _ in span.task.units], "kind": "simulated"}}
              for span in timeline.spans]
    labels = [{"name": "thread_name", "ph": "M", "pid": 0, "tid": rank, "args": {"name": f"pipeline rank {rank}"}}
              for rank in sorted({span.rank for span in timeline.spans})]
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps({"traceEvents": labels + events}), encoding="utf-8")
    partial.replace(path)
