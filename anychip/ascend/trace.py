"""A kernel's timeline as a Chrome trace: open it at https://ui.perfetto.dev or chrome://tracing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .findings import CORES, PIPES


@dataclass(frozen=True)
class Span:
    """One instruction of one block: when it held its pipe, in seconds from the block's start."""

    op: str
    line: str
    core: int
    pipe: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class BlockSpan:
    """One block (program) on one core of the die, in seconds from the kernel's start; `timed` or interpolated."""

    block: int
    core: int
    start_s: float
    end_s: float
    timed: bool


def chrome_trace(kernel: str, spans: Iterable[Span], blocks: Iterable[BlockSpan]) -> dict[str, Any]:
    """Return the trace: a process for each core of the recorded block, a row a pipe, and one for the die."""
    events: list[dict[str, Any]] = []
    seen: set[tuple[int, int]] = set()
    for span in spans:
        if span.end_s <= span.start_s:
            continue
        seen.add((span.core, span.pipe))
        events.append(_event(span.op, span.core, span.pipe, span.start_s, span.end_s, {"line": span.line}))
    die = len(CORES)
    on_die = list(blocks)
    events += [_event(f"program {b.block}", die, b.core, b.start_s, b.end_s,
                      {"timed": "instruction by instruction" if b.timed else "interpolated"}) for b in on_die]
    names = [_name("process_name", core, 0, f"{kernel}: {CORES[core]}") for core in sorted({c for c, _ in seen})]
    names += [_name("thread_name", core, pipe, PIPES[pipe]) for core, pipe in sorted(seen)]
    names += [_name("process_name", die, 0, f"{kernel}: programs on the die")]
    names += [_name("thread_name", die, core, f"core {core}") for core in sorted({b.core for b in on_die})]
    return {"traceEvents": names + events, "displayTimeUnit": "ns"}


def write_trace(path: Path, trace: dict[str, Any]) -> None:
    """Write a trace as JSON."""
    path.write_text(json.dumps(trace, separators=(",", ":")))


def _event(name: str, process: int, thread: int, start_s: float, end_s: float, args: dict[str, str]) -> dict[str, Any]:
    return {"name": name, "ph": "X", "pid": process, "tid": thread, "ts": start_s * 1e6, "dur": (end_s - start_s) * 1e6,
            "args": args}


def _name(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}
