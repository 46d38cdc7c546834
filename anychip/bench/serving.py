"""Speed of a server under a workload: percentiles, and goodput at a target that users would accept."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from .client import Answer, Target, ask
from .workload import Workload, prompt_of, spread


@dataclass(frozen=True)
class Goal:
    """What a good answer is: its first token within `ttft_s`, each further one within `tpot_s` on average."""

    ttft_s: float
    tpot_s: float

    def met(self, answer: Answer) -> bool:
        """Whether a complete answer was good."""
        return answer.first_s is not None and answer.first_s <= self.ttft_s and (answer.tpot_s or 0) <= self.tpot_s


async def run_load(target: Target, workload: Workload, timeout_s: float) -> tuple[list[Answer], float]:
    """Put the load on the server; return every answer and the seconds that all took. Nothing is sent twice."""
    answers: list[Answer] = []
    gate = asyncio.Semaphore(workload.concurrency)
    started = time.perf_counter()

    async def one(number: int, at_s: float) -> None:
        if workload.rate_per_s:
            await asyncio.sleep(max(0.0, started + at_s - time.perf_counter()))
            answers.append(await _ask(target, workload, number, timeout_s))
            return
        async with gate:
            answers.append(await _ask(target, workload, number, timeout_s))

    await asyncio.gather(*(one(i, at_s) for i, at_s in enumerate(workload.arrivals_s())))
    return answers, time.perf_counter() - started


async def _ask(target: Target, workload: Workload, number: int, timeout_s: float) -> Answer:
    wanted = workload.asks[number]
    body = {"model": target.model, "stream": True, "stream_options": {"include_usage": True}, "temperature": 1,
            "seed": number, "max_tokens": wanted.new_tokens,
            "messages": [{"role": "user", "content": prompt_of(wanted, number, workload.seed)}]}
    return await ask(target, "/chat/completions", body, timeout_s=timeout_s)


def summary(answers: list[Answer], wall_s: float, workload: Workload, goal: Goal) -> dict[str, Any]:
    """Return what the gap report's serving section takes; all figures measured, times in seconds."""
    done = [answer for answer in answers if answer.complete]
    refused = sum(answer.status == 429 for answer in answers)
    errors = Counter(answer.error or "no end" for answer in answers if not answer.complete and answer.status != 429)
    new = sum(answer.new_tokens for answer in done)
    good = [answer for answer in done if goal.met(answer)]
    gaps = [b - a for answer in done for a, b in zip(answer.token_times_s, answer.token_times_s[1:], strict=False)]
    return {"kind": "measured", "requests": len(answers), "complete": len(done), "refused_429": refused,
            "errors": dict(errors.most_common(5)), "wall_time_s": wall_s,
            "arrivals": {"poisson_per_s": workload.rate_per_s} if workload.rate_per_s else
            {"closed_loop": workload.concurrency},
            "prompt_tokens": sum(answer.prompt_tokens for answer in done), "new_tokens": new,
            "requests_per_s": len(done) / wall_s, "new_tokens_per_s": new / wall_s,
            "ttft_s": spread([answer.first_s for answer in done if answer.first_s is not None]),
            "tpot_s": spread([each for answer in done if (each := answer.tpot_s) is not None]),
            "between_pieces_s": spread(gaps), "latency_s": spread([answer.total_s for answer in done]),
            "goodput": {"requests_per_s": len(good) / wall_s, "share": len(good) / len(answers),
                        "ttft_within_s": goal.ttft_s, "tpot_within_s": goal.tpot_s}}
