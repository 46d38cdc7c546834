"""The ranks of one machine under supervision: torch elastic starts them again, a watchdog finds those that hang.

A forkserver that has imported torch makes the ranks, so a restart takes tenths of a second, not the imports' seconds.
On clusters torchrun takes the agent's place (docs/reliability.md); everything else is the same.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from ..errors import AnychipError, InputError
from . import pulse
from .fault import FaultKind, Stopped
from .folder import Events
from .job import SAID, Job, work
from .watchdog import POLL_S, end_hang

PRELOAD = ["torch", "torch._dynamo", "torch.distributed.checkpoint", "torch.distributed.fsdp", "anychip.train.job"]
FRUITLESS = 10  # restarts in a row without a new save or step


@dataclass(frozen=True)
class Supervision:
    """How a machine's ranks are looked after: how many, how long one may be silent, how often all may be restarted."""

    num_processes: int
    hang_s: float = 600.0
    max_restarts: int = 1000

    def __post_init__(self) -> None:
        problems = [f"{name}={value} must be at least {least}" for name, value, least in
                    (("num_processes", self.num_processes, 1), ("hang_s", self.hang_s, 0.5),
                     ("max_restarts", self.max_restarts, 0)) if value < least]
        if problems:
            raise InputError("; ".join(problems))


def supervise(job: Job, supervision: Supervision, *,
              started: Callable[[dict[int, int]], None] = lambda processes: None) -> Path:
    """Run a job on several ranks of this machine to its end, through any faults; return the final checkpoint.

    `started` is told each time the ranks have been started: process ids by rank.
    Raises Stopped where the run cannot go on by itself, or the AnychipError that ended it.
    """
    multiprocessing.set_forkserver_preload(PRELOAD)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="anychip-train-") as scratch:
        beats = Path(scratch) / "pulse"
        pulse.create(beats, supervision.num_processes)
        threading.Thread(target=importlib.import_module, args=("torch._dynamo",), daemon=True).start()
        agent = _agent(job, supervision, beats, Path(scratch) / "logs")
        agent.started = started
        ended = threading.Event()
        watchdog = threading.Thread(target=_watch, args=(agent, beats, supervision.hang_s, ended), daemon=True)
        watchdog.start()
        try:
            result = agent.run()
        finally:
            ended.set()
            watchdog.join()
    return _outcome(result, agent, job)


def _agent(job: Job, supervision: Supervision, beats: Path, logs: Path) -> Agent:
    rendezvous = RendezvousParameters(backend="c10d", endpoint="localhost:0", run_id="anychip", min_nodes=1,
                                      max_nodes=1, local_addr="127.0.0.1", is_host=True)
    spec = WorkerSpec(role="rank", local_world_size=supervision.num_processes, entrypoint=work, args=(job, str(beats)),
                      rdzv_handler=get_rendezvous_handler(rendezvous), max_restarts=supervision.max_restarts,
                      monitor_interval=POLL_S, local_addr="127.0.0.1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Agent(spec, DefaultLogsSpecs(log_dir=str(logs)), job.out, beats)


class Agent(LocalElasticAgent):
    """torch elastic's agent, which also notes each fault, and gives up where restarts bring nothing."""

    def __init__(self, spec: WorkerSpec, logs: DefaultLogsSpecs, out: Path, beats: Path) -> None:
        super().__init__(spec, logs, start_method="forkserver", shutdown_timeout=5, exit_barrier_timeout=30)
        self.out, self._beats, self.hung = out, beats, set[int]()
        self.last_fault, self.is_ending = "", False
        self.started: Callable[[dict[int, int]], None] = lambda processes: None
        self._fruitless, self._progress = 0, self._how_far()

    def events(self) -> Events | None:
        """Return the run's events, None while the run has no folder."""
        return Events(self.out, by="supervisor") if (self.out / "run.json").is_file() else None

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, int]:
        pulse.create(self._beats, worker_group.spec.local_world_size)
        self.is_ending = False
        processes: dict[int, int] = super()._start_workers(worker_group)
        self.started(processes)
        return processes

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state in (WorkerState.FAILED, WorkerState.UNHEALTHY):
            self._note(result)
            far = self._how_far()
            self._fruitless = self._fruitless + 1 if far == self._progress else 0
            self._progress = far
            if self._fruitless >= FRUITLESS:
                self._remaining_restarts = 0
        return result

    def _note(self, result: RunResult) -> None:
        """Write which rank has died of what, unless the watchdog ended it or the rank has said so itself."""
        rank, pid, code = self._first_cause(result)
        self.last_fault = f"rank {rank} ended with {_ending(code)}"
        events = self.events()
        if events is None or pid in self.hung:
            return
        if code < 0:
            events.add("fault", kind=FaultKind.KILLED.value, ranks=[rank], message=f"rank {rank} (process {pid}) was "
                       f"ended by {_ending(code)}")
        elif code != SAID:
            message = next((failure.message for failure in result.failures.values()), "")
            events.add("fault", kind=FaultKind.ERROR.value, ranks=[rank],
                       message=f"{self.last_fault}: {message}"[:2000])

    def _first_cause(self, result: RunResult) -> tuple[int, int, int]:
        """Return rank, process and exit code of what came first: a signal from outside comes before the errors that
        the others have for want of a partner, and before the agent's own SIGTERM."""
        context: Any = self._pcontext
        ended = [(rank, process.pid, process.exitcode) for rank, process in enumerate(context._pc.processes)]
        outside = [item for item in ended if item[2] is not None and item[2] < 0 and item[2] != -signal.SIGTERM]
        said = [item for item in ended if item[2] == SAID]
        failed = [(rank, failure.pid, failure.exitcode) for rank, failure in result.failures.items()]
        return (outside + said + failed + ended)[0]

    def _how_far(self) -> tuple[int, int]:
        metrics = self.out / "metrics.jsonl"
        return len(list(self.out.glob("step-*"))), metrics.stat().st_size if metrics.is_file() else 0


def _watch(agent: Agent, beats: Path, hang_s: float, ended: threading.Event) -> None:
    """End a rank that hangs, so that the agent starts all of them again."""
    while not ended.wait(POLL_S):
        hang = pulse.find_hang(pulse.read(beats), time.monotonic(), hang_s)
        events = agent.events()
        if hang is None or agent.is_ending or events is None:
            continue
        agent.hung.add(hang.pid)
        agent.is_ending = True
        end_hang(hang, events)


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _outcome(result: RunResult, agent: Agent, job: Job) -> Path:
    if result.is_failed():
        raise Stopped(f"the run gave up: {agent.last_fault}. {job.out / 'events.jsonl'} says what happened; the same "
                      "command goes on from the last save")
    answer = result.return_values[0]
    if isinstance(answer, AnychipError):
        raise answer
    return Path(answer)

