"""How much of a cluster's time trains: failures, detection, restart, repair, checkpoints and slow nodes, simulated.

The job is synchronous: the first failure stops it; what was not in a durable checkpoint is computed again. Failures
are a Poisson process whose rate is itself uncertain where a count stands behind it (gamma posterior, Jeffreys' prior).
All runs advance together, one failure at a time, as arrays over trials.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from ..errors import InputError
from .failures import DAY_S, FailureRate, given_rate

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ReliabilityJob:
    """A run of `devices` that needs `work_s` seconds of training, and how it deals with failures. Times are seconds.

    A checkpoint is taken every `interval_s` of training (None: Young and Daly's), stops training for `stall_s` and is
    durable `write_s` after its start (asynchronous writing: `write_s` above `stall_s`). A failure is noticed after
    `detect_s`, the job runs again after a further `restart_s`. `spare_nodes` stand ready; a failed node is repaired
    in `repair_s`; with no spare left the job waits. `slow_share` of the time runs at `1 / slow_factor` of the speed
    (slow nodes before they are found). Corrupted training goes on for up to `corruption_check_s` until it is noticed;
    what was saved meanwhile is thrown away. `corruption_found` is the share that is ever noticed (0.7: hardware
    diagnosis found 70 % in ByteRobust, SOSP 2025).
    """

    devices: int
    work_s: float
    rate: FailureRate
    interval_s: float | None = None
    stall_s: float = 5.0
    write_s: float = 60.0
    detect_s: float = 60.0
    restart_s: float = 300.0
    spare_nodes: int | None = None
    repair_s: float = DAY_S
    slow_share: float = 0.0
    slow_factor: float = 1.0
    corruption_check_s: float = 0.0
    corruption_found: float = 0.7

    def __post_init__(self) -> None:
        problems = [text for holds, text in self._rules() if not holds]
        if problems:
            raise InputError("this run cannot be simulated: " + "; ".join(problems))

    def _rules(self) -> list[tuple[bool, str]]:
        return [
            (self.devices >= 1, f"{self.devices} devices cannot train"),
            (self.work_s > 0, f"work_s={self.work_s} must be above 0"),
            (self.interval_s is None or self.interval_s > 0, f"interval_s={self.interval_s} must be above 0"),
            (min(self.stall_s, self.detect_s, self.restart_s, self.repair_s, self.corruption_check_s) >= 0,
             "times must not be negative"),
            (0 < self.corruption_found <= 1, f"corruption_found={self.corruption_found} must be above 0, at most 1"),
            (self.stall_s > 0 or self.interval_s is not None,
             "a checkpoint that costs nothing has no best interval: give interval_s"),
            (self.write_s >= self.stall_s, f"write_s={self.write_s} must be at least stall_s={self.stall_s}: a "
             "checkpoint is durable no sooner than training goes on"),
            (self.spare_nodes is None or self.spare_nodes >= 0, f"spare_nodes={self.spare_nodes} must be 0 or more"),
            (0 <= self.slow_share <= 1, f"slow_share={self.slow_share} must be from 0 to 1"),
            (self.slow_factor >= 1, f"slow_factor={self.slow_factor} must be at least 1"),
        ]

    @property
    def mtbf_s(self) -> float:
        """Mean time between failures of this job, seconds."""
        return self.rate.mtbf_s(self.devices)

    @property
    def checkpoint_interval_s(self) -> float:
        """The interval in use, seconds of training."""
        return self.interval_s if self.interval_s is not None else daly_interval_s(self.stall_s, self.mtbf_s)


@dataclass(frozen=True)
class Estimate:
    """A mean over trials and the range that holds 95 % of them. Simulated."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Reliability:
    """What the trials gave. Hours are of the whole run; `effective` is training time over wall time (ETTR).

    `lost_h` by cause: recomputation, detection, restart, waiting for nodes, checkpoints, slow nodes.
    `unnoticed_corruptions` a run is None where the rate's source has no causes.
    """

    job: ReliabilityJob
    effective: Estimate
    wall_h: Estimate
    failures_per_day: Estimate
    lost_h: dict[str, float]
    unnoticed_corruptions: float | None
    trials: int


RATES = (1.0, 2.5, 5.0, 10.0, 20.0, 40.0)  # failures per 1,000 node-days: around all that fleets have published


@dataclass(frozen=True)
class RatePoint:
    """What one failure rate would mean for a run. Simulated."""

    per_1000_node_days: float
    effective: Estimate
    failures_per_day: Estimate


def rate_sensitivity(devices: int, work_s: float, *, trials: int = 100, seed: int = 0) -> list[RatePoint]:
    """Return what each of RATES would mean for a run of `work_s` seconds, with the other figures as they are usual."""
    found = [simulate_run(ReliabilityJob(devices, work_s, given_rate(rate)), trials=trials, seed=seed)
             for rate in RATES]
    return [RatePoint(rate, one.effective, one.failures_per_day) for rate, one in zip(RATES, found, strict=True)]


def young_interval_s(stall_s: float, mtbf_s: float) -> float:
    """Return Young's first-order optimum sqrt(2 stall mtbf), seconds of training between checkpoints."""
    return math.sqrt(2 * stall_s * mtbf_s)


def daly_interval_s(stall_s: float, mtbf_s: float) -> float:
    """Return Daly's higher-order optimum (Future Generation Computer Systems 22, 2006, eq. 37), seconds."""
    if stall_s >= 2 * mtbf_s:
        return mtbf_s
    x = stall_s / (2 * mtbf_s)
    return math.sqrt(2 * stall_s * mtbf_s) * (1 + math.sqrt(x) / 3 + x / 9) - stall_s


def simulate_run(job: ReliabilityJob, *, trials: int = 400, seed: int = 0) -> Reliability:
    """Simulate the run `trials` times. Raises InputError where failures come faster than the job can restart."""
    if job.detect_s + job.restart_s > 5 * job.mtbf_s:
        raise InputError(f"{job.devices} devices fail every {job.mtbf_s:.3g} s on average and a restart takes "
                         f"{job.detect_s + job.restart_s:.3g} s: such a run would never end. Lower the rate, the "
                         "number of devices or the time to restart")
    run = _Trials(job, trials, np.random.default_rng(seed))
    while run.active.any():
        run.advance()
    return run.result()


def best_interval_s(job: ReliabilityJob, *, trials: int = 40, seed: int = 0) -> float:
    """Return the checkpoint interval with the least simulated wall time (the same random numbers for each), seconds."""
    around = young_interval_s(max(job.stall_s, 1e-3), job.mtbf_s)

    def wall_h(log_interval: float) -> float:
        return simulate_run(replace(job, interval_s=math.exp(log_interval)), trials=trials, seed=seed).wall_h.mean

    bounds = math.log(around / 8), math.log(around * 8)
    return math.exp(float(optimize.minimize_scalar(wall_h, bounds=bounds, method="bounded", options={"xatol": 0.05}).x))


class _Trials:
    """All trials side by side; arrays are [trials]."""

    def __init__(self, job: ReliabilityJob, trials: int, random: np.random.Generator) -> None:
        self.job, self.random, self.trials = job, random, trials
        self.interval, self.work = job.checkpoint_interval_s, job.work_s * self._slowdown()
        count = job.rate.count
        spread = np.ones(trials) if count is None else random.gamma(count + 0.5, 1 / count, trials)
        self.mtbf = job.mtbf_s / spread
        self.wall, self.saved, self.failures = np.zeros(trials), np.zeros(trials), np.zeros(trials)
        self.active = np.ones(trials, bool)
        self.ready = np.zeros((trials, job.spare_nodes or 0))  # when each spare can be used
        self.lost = {name: np.zeros(trials) for name in
                     ("recomputation", "detection", "restart", "waiting for nodes", "checkpoints")}

    def _slowdown(self) -> float:
        return 1 + self.job.slow_share * (self.job.slow_factor - 1)

    def advance(self) -> None:
        """Let every unfinished trial run to its end or its next failure, and recover."""
        job, gap = self.job, self.random.exponential(self.mtbf)
        left = self.work - self.saved
        stops = np.maximum(np.ceil(left / self.interval) - 1, 0)
        end = left + stops * job.stall_s
        finished = self.active & (gap >= end)
        self._add("checkpoints", finished, stops * job.stall_s)
        self.wall += np.where(finished, end, 0)
        self.active &= ~finished
        self._fail(np.where(self.active, gap, 0.0))

    def _fail(self, gap: Array) -> None:
        job, active = self.job, self.active
        cycle = self.interval + job.stall_s
        # a checkpoint counts once it is durable, which may be after training went on
        durable = np.floor(np.maximum(gap - (job.write_s - job.stall_s), 0) / cycle)
        corrupted = self._corrupted()
        # what was saved since a corruption is not clean; rates count corruptions that were noticed
        back = np.where(corrupted, np.ceil(self.random.random(self.trials) * job.corruption_check_s / cycle), 0)
        durable = np.maximum(durable - back, 0)
        self.saved += np.where(active, durable * self.interval, 0)
        taken = np.floor(gap / cycle)
        self._add("checkpoints", active, taken * job.stall_s)
        self._add("recomputation", active, gap - taken * job.stall_s - durable * self.interval)
        self.wall += gap
        self.failures += active
        self._recover(active)

    def _corrupted(self) -> NDArray[np.bool_]:
        share = self.job.rate.corruption_share or 0.0
        return self.active & (self.random.random(self.trials) < share)

    def _recover(self, active: NDArray[np.bool_]) -> None:
        swap = active & (self.random.random(self.trials) < self.job.rate.swap_share)
        self._spend("detection", active, np.full(self.trials, self.job.detect_s))
        if self.job.spare_nodes is not None:
            self._replace(swap)
        self._spend("restart", active, np.full(self.trials, self.job.restart_s))
        again = active & (self.random.exponential(self.mtbf) < self.job.restart_s)
        while again.any():  # a failure while restarting: the restart begins anew
            self.failures += again
            self._spend("restart", again, np.full(self.trials, self.job.restart_s / 2 + self.job.detect_s))
            again &= self.random.exponential(self.mtbf) < self.job.restart_s

    def _replace(self, swap: NDArray[np.bool_]) -> None:
        """Take the spare that is ready first; the failed node becomes a spare once repaired."""
        if self.job.spare_nodes == 0:
            self._spend("waiting for nodes", swap, np.full(self.trials, self.job.repair_s))
            return
        first = self.ready.argmin(1)
        rows = np.arange(self.trials)
        self._spend("waiting for nodes", swap, np.maximum(self.ready[rows, first] - self.wall, 0))
        self.ready[rows, first] = np.where(swap, self.wall + self.job.repair_s, self.ready[rows, first])

    def _spend(self, what: str, where: NDArray[np.bool_], seconds: Array) -> None:
        self._add(what, where, seconds)
        self.wall += np.where(where, seconds, 0)

    def _add(self, what: str, where: NDArray[np.bool_], seconds: Array) -> None:
        self.lost[what] += np.where(where, seconds, 0)

    def result(self) -> Reliability:
        """Return the estimates."""
        job = self.job
        lost = {name: float(hours.mean()) / 3600 for name, hours in self.lost.items()}
        lost["slow nodes"] = (self.work - job.work_s) / 3600
        share, found = job.rate.corruption_share, job.corruption_found
        unnoticed = None if share is None else float(self.failures.mean()) * share * (1 - found) / found
        return Reliability(job, _estimate(job.work_s / self.wall), _estimate(self.wall / 3600),
                           _estimate(self.failures / self.wall * DAY_S), lost, unnoticed, self.trials)


def _estimate(values: Array) -> Estimate:
    low, high = np.quantile(values, (0.025, 0.975))
    return Estimate(float(values.mean()), float(low), float(high))
