"""A server in use for hours: what fails, how often, with what request, and whether its memory grows."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scipy import stats

from .client import Answer, Target, ask
from .workload import Ask, prompt_of

_BAD: tuple[dict[str, Any], ...] = (
    {}, {"messages": []}, {"messages": [{"role": "bot", "content": "x"}]}, {"temperature": -1}, {"max_tokens": 0},
        {"n": 10**6}, {"model": "no such model"}, {"stop": [""]}, {"response_format": {"type": "x"}})
_TIMEOUT_S = 600.0
_SAMPLE_S = 2.0


@dataclass(frozen=True)
class Plan:
    """How long and how hard; where failures are written; the server's process, where its memory is to be watched."""

    duration_s: float
    concurrency: int
    seed: int
    folder: Path
    pid: int | None = None


@dataclass
class _Found:
    started: float = field(default_factory=time.perf_counter)
    asked: int = 0
    complete: int = 0
    left: int = 0
    refused: int = 0
    rejected: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)


async def soak_server(target: Target, plan: Plan, tell: Callable[[str], None]) -> dict[str, Any]:
    """Use the server for the planned time and return what the report's `serving` section takes."""
    found, end = _Found(), time.perf_counter() + plan.duration_s
    numbers = iter(range(10**12))

    async def user() -> None:
        while time.perf_counter() < end:
            await _once(target, plan, found, next(numbers), tell)

    watch = asyncio.create_task(_watch(plan.pid, found)) if plan.pid is not None else None
    await asyncio.gather(*(user() for _ in range(plan.concurrency)))
    if watch is not None:
        watch.cancel()
    return _summary(found, time.perf_counter() - found.started)


async def _once(target: Target, plan: Plan, found: _Found, number: int, tell: Callable[[str], None]) -> None:
    draw = random.Random(f"{plan.seed} {number}")
    wanted = Ask(draw.choice([3, 20, 100, 400]), draw.choice([1, 8, 32, 128]))
    good = {"model": target.model, "max_tokens": wanted.new_tokens, "seed": number, "stream": draw.random() < 0.7,
            "messages": [{"role": "user", "content": prompt_of(wanted, number, plan.seed)}]}
    bad = draw.random() < 0.05
    body = {**good, **draw.choice(_BAD)} if bad else good
    if bad and body == good:
        body = {}
    leave = draw.randint(1, 5) if good["stream"] and draw.random() < 0.1 else None
    answer = await ask(target, "/chat/completions", body, timeout_s=_TIMEOUT_S, leave_after=leave)
    found.asked += 1
    why = _judge(answer, bad, found)
    if why is not None:
        failure = {"why": why, "after_s": time.perf_counter() - found.started, "status": answer.status,
                   "number": number,
                   "seed": plan.seed, "path": "/v1/chat/completions", "body": body, "error": answer.error,
                   "text": answer.text, "reproduce": f"curl -s {target.url}/v1/chat/completions -H 'Content-Type: "
                   f"application/json' -d @failure-{number}.body.json"}
        found.failures.append(failure)
        _write(plan.folder, number, failure)
        tell(f"failure {len(found.failures)}: {why}; {plan.folder}/failure-{number}.json")
        await asyncio.sleep(1)  # a server that is down is not asked a thousand times a second


def _judge(answer: Answer, bad: bool, found: _Found) -> str | None:
    """Count an answer; return why it is a failure, None where it is none."""
    if answer.status == 429:
        found.refused += 1
        return None if answer.retry_after_s else "429 without Retry-After"
    if bad:
        found.rejected += answer.status in (400, 404)
        return None if answer.status in (400, 404) else f"a bad request got {answer.status} ({answer.error})"
    if answer.left:
        found.left += 1
        return None
    if answer.complete:
        found.complete += 1
        return None
    return answer.error or f"HTTP {answer.status} without an answer"


def _write(folder: Path, number: int, failure: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in ((f"failure-{number}.body.json", failure["body"]), (f"failure-{number}.json", failure)):
        part = folder / f".{name}"
        part.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
        os.replace(part, folder / name)


async def _watch(pid: int | None, found: _Found) -> None:
    """Sample the resident memory of the server's process (Linux)."""
    while True:
        try:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:
            return
        found.memory.append((time.perf_counter() - found.started, pages * os.sysconf("SC_PAGE_SIZE")))
        await asyncio.sleep(_SAMPLE_S)


def _summary(found: _Found, wall_s: float) -> dict[str, Any]:
    return {"kind": "measured", "wall_time_s": wall_s, "requests": found.asked, "complete": found.complete,
            "left": found.left, "refused_429": found.refused, "bad_rejected": found.rejected,
            "failures": len(found.failures), "mtbf_s": mtbf(wall_s, len(found.failures)),
            "memory": leak(found.memory), "failed": [{k: v for k, v in each.items() if k not in ("body", "text")}
                                                     for each in found.failures[:20]]}


def mtbf(wall_s: float, failures: int) -> dict[str, float | None]:
    """Mean time between failures in seconds with the 95 % interval of a Poisson count; None: no bound on that side.

    Without a failure the lower bound is wall_s / 3.0 (one-sided 95 %), and no mean is known.
    """
    if failures == 0:
        return {"mean": None, "low": wall_s / float(stats.chi2.ppf(0.95, 2) / 2),
                "high": None}
    return {"mean": wall_s / failures, "low": wall_s / float(stats.chi2.ppf(0.975, 2 * failures + 2) / 2),
            "high": wall_s / float(stats.chi2.ppf(0.025, 2 * failures) / 2)}


def leak(samples: list[tuple[float, int]]) -> dict[str, float] | None:
    """Growth in bytes a second over the second half, with its standard error; None with fewer than 8 samples there."""
    late = samples[len(samples) // 2:]
    if len(late) < 8:
        return None
    fit = stats.linregress([at for at, _ in late], [size for _, size in late])
    return {"bytes_per_s": float(fit.slope), "standard_error": float(fit.stderr), "resident_bytes": float(late[-1][1])}
