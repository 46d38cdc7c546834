"""Serving with a prefill pool and a decode pool: how many devices each, and what a user sees, by simulation.

Requests arrive at random (Poisson). A prompt waits for the prefill pool, which works through it in passes; then the
request joins the decode pool's running batch (continuous batching) until its answer is complete. The decode step's
time depends on the batch; it is planned at a few batches and interpolated.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace

import numpy as np

from ..errors import InputError
from .cluster import Cluster
from .constants import Constants, constants
from .cut import Array
from .fit import Serving
from .models import Model
from .serve import ServePlan, Traffic, largest_batch, plan_decode, plan_prefill, room_for


@dataclass(frozen=True)
class Request:
    """What users send: tokens of a prompt and of an answer, the share of a prompt that is cached, drafts."""

    prompt: int
    answer: int
    hit: float = 0.0
    drafts: int = 0
    accepted: float = 0.0


@dataclass(frozen=True)
class Seen:
    """What users see, seconds: median and 99th percentile of the time to the first token and between tokens."""

    first_s: tuple[float, float]
    token_s: tuple[float, float]
    requests: int


@dataclass(frozen=True)
class Pools:
    """Devices of each pool, requests a second that they sustain together, and what users see at `busy` of that."""

    prefill: ServePlan
    decode: ServePlan
    prefill_devices: int
    decode_devices: int
    requests_per_s: float
    answer_tokens_per_s: float
    busy: float
    seen: Seen


def plan_pools(model: Model, cluster: Cluster, serving: Serving, request: Request, *, token_s: float = 0.05,
               busy: float = 0.85, c: Constants | None = None) -> Pools:
    """Split the cluster so that neither pool waits for the other, with tokens within `token_s` at full load.

    Raises InputError where the latency cannot be met or the cluster is too small for two pools.
    """
    c = c or constants()
    asked = Traffic(1, request.prompt + request.answer // 2, request.drafts, request.accepted, online=True)
    if cluster.count < 2 * serving.tensor:
        raise InputError(f"{cluster.count} devices make no two pools of tensor={serving.tensor}")
    best: tuple[float, int, ServePlan, ServePlan] | None = None
    choices = sorted({max(cluster.count * i // 8 // serving.tensor, 1) * serving.tensor for i in range(1, 8)})
    for devices in choices:
        try:
            tried = _split(model, cluster, serving, (request, asked), (devices, token_s), c)
        except InputError:
            continue
        best = tried if best is None or tried[0] > best[0] else best
    if best is None:
        raise InputError(f"{model.name} on {cluster.describe()}: no split into prefill and decode pools fits its "
                         f"weights and gives tokens within {token_s * 1e3:g} ms; take more devices or a longer latency")
    rate, devices, prefill, decode = best
    seen = simulate_requests(model, (prefill, decode), serving, request, rate * busy, c=c)
    return Pools(prefill, decode, devices, cluster.count - devices, rate, rate * request.answer, busy, seen)


def _split(model: Model, cluster: Cluster, serving: Serving, asked: tuple[Request, Traffic], how: tuple[int, float],
           c: Constants) -> tuple[float, int, ServePlan, ServePlan]:
    """Return (requests a second, prefill devices, the two plans). Raises InputError where a pool cannot do its part."""
    (request, traffic), (devices, token_s) = asked, how
    first, second = replace(cluster, count=devices), replace(cluster, count=cluster.count - devices)
    for pool in (first, second):
        if room_for(model, pool, serving, request.prompt + request.answer) < 1:
            raise InputError("the weights do not fit")
    prefill = plan_prefill(model, first, serving, request.prompt, max(serving.chunk, 1024), hit=request.hit,
                           online=True, c=c)
    decode = largest_batch(model, second, serving, traffic, token_s, c=c)
    rate = min(prefill.tokens_per_s / (request.prompt * (1 - request.hit)), decode.tokens_per_s / request.answer)
    return rate, devices, prefill, decode


def simulate_requests(model: Model, pools: tuple[ServePlan, ServePlan], serving: Serving, request: Request,
                      rate: float, *, count: int = 2000, seed: int = 0, c: Constants | None = None) -> Seen:
    """Return what `count` requests see that arrive `rate` a second. Answers' lengths vary (exponential)."""
    c = c or constants()
    generator = np.random.default_rng(seed)
    arrivals = np.cumsum(generator.exponential(1 / rate, count))
    answers = np.maximum(generator.exponential(request.answer, count), 1.0) / (1 + request.accepted)
    prefill, decode = pools
    fresh = request.prompt * (1 - request.hit)
    ready = _prefill(arrivals, prefill.step_s, max(int(prefill.tokens_per_s * prefill.step_s / fresh), 1))
    finished = _decode(ready, answers, _step_times(model, decode.cluster, serving, request, c))
    kept = slice(count // 5, None)  # the first requests meet an empty cluster
    first_s = (ready - arrivals)[kept]
    token_s = ((finished - ready) / (answers * (1 + request.accepted)))[kept]
    return Seen(_quantiles(first_s), _quantiles(token_s), count)


def _prefill(arrivals: Array, pass_s: float, room: int) -> Array:
    """Return when each prompt is done: a pass takes up to `room` of those that wait when it begins."""
    ready, at, now = np.zeros(len(arrivals)), 0, 0.0
    while at < len(arrivals):
        now = max(now, float(arrivals[at]))
        taken = min(int(np.searchsorted(arrivals, now, side="right")) - at, room)
        now += pass_s
        ready[at : at + taken] = now
        at += taken
    return ready


def _step_times(model: Model, decode: Cluster, serving: Serving, request: Request, c: Constants
                ) -> tuple[Array, Array]:
    """Batches and their step times, to interpolate in."""
    groups = decode.count // serving.tensor
    room = room_for(model, decode, serving, request.prompt + request.answer)
    batches = sorted({min(groups * n, max(room, groups)) for n in (1, 4, 16, 64, 256)})
    traffic = Traffic(1, request.prompt + request.answer // 2, request.drafts, request.accepted, online=True)
    times = [plan_decode(model, decode, serving, replace(traffic, sequences=n), c=c).step_s for n in batches]
    return np.array(batches, dtype=float), np.array(times)


def _decode(ready: Array, steps: Array, step_s: tuple[Array, Array]) -> Array:
    """Return when each request ends: all running ones advance together, at the speed of their number."""
    batches, times = step_s
    finished = np.zeros(len(ready))
    running: list[tuple[float, int]] = []  # (steps done when it ends, request)
    done, now = 0.0, 0.0
    for i, at in [*enumerate(ready.tolist()), (-1, float("inf"))]:
        while running:
            speed = 1 / float(np.interp(len(running), batches, times))
            ends = now + (running[0][0] - done) / speed
            if ends > at:
                done += (at - now) * speed
                break
            done, now = running[0][0], ends
            finished[heapq.heappop(running)[1]] = now
        if i >= 0:
            now = at
            heapq.heappush(running, (done + float(steps[i]), i))
    return finished


def _quantiles(values: Array) -> tuple[float, float]:
    return float(np.median(values)), float(np.quantile(values, 0.99))
