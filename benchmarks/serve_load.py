"""Does the server keep its word under load: 500 connections, 20,000 requests, random departures, kill -9 and restart?

Limits: every completed answer is token for token what the same prompt got alone; memory does not grow between the
load's second quarter and its end by more than 3 standard errors of its slope or 2 %; the p99 of accepted requests is
bounded (at most --p99-s); everything else is 429; after kill -9 each request in flight ends with a clean error at the
client, and the server that is started anew gives the same answers.

    python -m benchmarks.serve_load [--requests 20000] [--connections 500]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
from scipy import stats

from anychip.bench.client import Answer, Target, ask

NUM_PROMPTS, NEW_TOKENS = 64, 4
LEAVING = 0.1  # share of requests whose client goes away


def prompts() -> list[list[int]]:
    draw = random.Random(0)
    return [[0, *(draw.randrange(10, 4096) for _ in range(draw.randint(3, 40)))] for _ in range(NUM_PROMPTS)]


class Server:
    """`anychip serve nano` in its own process."""

    def __init__(self, options: list[str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._options = options
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "anychip", "serve", "nano", "--port", str(self.port), *self._options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).read()
                return
            except OSError:
                assert self.process.poll() is None and time.monotonic() < end, "the server did not start"
                time.sleep(0.2)

    def kill(self, signal_number: int) -> int:
        self.process.send_signal(signal_number)
        return self.process.wait(60)

    def resident_bytes(self) -> int:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * 4096


async def one(target: Target, prompt: list[int], leave: int | None, patience_s: float) -> Answer:
    body = {"model": "nano", "prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0, "stream": True,
            "ignore_eos": True, "stream_options": {"include_usage": True}}
    return await ask(target, "/completions", body, timeout_s=patience_s, leave_after=leave)


async def load(target: Target, num_requests: int, connections: int, watch: object) -> list[tuple[int, Answer]]:
    """Keep `connections` requests open until all are sent. A 429 counts; the client sends its next request."""
    draw, texts, found = random.Random(1), prompts(), list[tuple[int, Answer]]()
    work = iter([(draw.randrange(NUM_PROMPTS), draw.randint(1, 3) if draw.random() < LEAVING else None)
                 for _ in range(num_requests)])

    async def worker() -> None:
        for number, leave in work:
            answer = await one(target, texts[number], leave, 120)
            found.append((number, answer))
            watch(len(found))  # type: ignore[operator]
            if answer.retry_after_s:
                await asyncio.sleep(min(answer.retry_after_s, 1) * 0.2)

    await asyncio.gather(*(worker() for _ in range(connections)))
    return found


async def expected(target: Target) -> list[str]:
    return [(await one(target, prompt, None, 60)).text for prompt in prompts()]


async def killed(target: Target, server: Server, connections: int) -> Counter[str]:
    """Kill the server while `connections` requests are under way: how each client saw it."""
    texts = prompts()
    tasks = [asyncio.create_task(one(target, texts[i % NUM_PROMPTS], None, 30)) for i in range(connections)]
    await asyncio.sleep(0.3)
    server.kill(signal.SIGKILL)
    answers = await asyncio.gather(*tasks)
    return Counter("answered before" if a.complete else "429" if a.status == 429 else
                   f"clean error ({(a.error or 'none').split(':')[0]})" if a.error and "no end" not in a.error
                   else f"hung or silent: {a.error}" for a in answers)


def slope(samples: list[tuple[int, int]]) -> dict[str, float]:
    """Growth in bytes a request from the second quarter of the load on, its standard error, and as a share."""
    late = samples[len(samples) // 4:]
    fit = stats.linregress([n for n, _ in late], [size for _, size in late])
    grown = fit.slope * (late[-1][0] - late[0][0])
    return {"bytes_a_request": float(fit.slope), "standard_error": float(fit.stderr),
            "grown_share": float(grown / late[0][1])}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--requests", type=int, default=20_000)
    arguments.add_argument("--connections", type=int, default=500)
    arguments.add_argument("--max-queue", type=int, default=256)
    arguments.add_argument("--p99-s", type=float, default=30.0)
    options = arguments.parse_args()
    server = Server(["--max-queue", str(options.max_queue), "--cache-tokens", "16384"])
    target, samples = Target(f"http://127.0.0.1:{server.port}", "nano"), list[tuple[int, int]]()

    def watch(count: int) -> None:
        if count % 100 == 0:
            samples.append((count, server.resident_bytes()))

    alone = asyncio.run(expected(target))
    started = time.perf_counter()
    found = asyncio.run(load(target, options.requests, options.connections, watch))
    wall_s = time.perf_counter() - started
    kinds = Counter("left" if a.left else "complete" if a.complete else "429" if a.status == 429 else
                    f"HTTP {a.status}: {a.error}" for _n, a in found)
    wrong = sum(a.text != alone[n] if a.complete else not alone[n].startswith(a.text) for n, a in found
                if a.status == 200)
    accepted = [a.total_s for _n, a in found if a.complete]
    growth = slope(samples)
    seen = asyncio.run(killed(target, server, options.connections))
    server.start()
    again = asyncio.run(expected(target))
    ended = server.kill(signal.SIGTERM)
    p99_s = float(np.percentile(accepted, 99))
    leaks = growth["bytes_a_request"] > 3 * growth["standard_error"] and growth["grown_share"] > 0.02
    other = [kind for kind in kinds if kind not in ("left", "complete", "429")]
    unclean = [kind for kind in seen if kind.startswith("hung")]
    passed = not (wrong or leaks or p99_s > options.p99_s or other or unclean or again != alone or ended != 0)
    print(json.dumps({"kind": "measured", "passed": passed, "requests": options.requests, "answers": dict(kinds),
                      "connections": options.connections, "wrong": wrong, "wall_time_s": round(wall_s, 1),
                      "p50_s": round(float(np.median(accepted)), 3), "p99_s": round(p99_s, 3), "memory": growth,
                      "resident_MiB": [round(size / 2**20) for _n, size in (samples[0], samples[-1])],
                      "kill -9": dict(seen), "same after restart": again == alone, "exit on SIGTERM": ended}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
