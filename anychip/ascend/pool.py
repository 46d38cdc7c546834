"""Many checks on the machine's cores: a kernel that ends or holds up its process costs only itself."""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import connection, forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from ..errors import AnychipError, InputError, KernelError
from ..kernels.example import Kernel, find_kernels
from .check import Checked, Settings, check_example

PRELOAD = ("torch", "triton", "anychip.ascend.check", "anychip.ascend.native")


@dataclass(frozen=True)
class Task:
    """One example on one chip. source: a module's name, or a Python file that holds the kernel."""

    source: str | Path
    kernel: str
    example: str
    target: str
    settings: Settings


@dataclass
class _Worker:
    """A process, our end of its pipe, whether it has started, what it works on, and when that must be done."""

    process: BaseProcess
    pipe: Connection
    started: bool = False
    task: int = -1
    deadline: float = float("inf")


def warm_up(modules: Sequence[str] = ()) -> None:
    """Start importing what every process needs, in the process that the others are forked from; returns at once."""
    _context().set_forkserver_preload([*PRELOAD, *modules])
    forkserver.ensure_running()


def run_tasks(tasks: Sequence[Task], processes: int, limit_s: float,
              done: Callable[[Task, Checked], None]) -> list[Checked]:
    """Check every task and return the results in their order; `done` is called with each as it comes.

    processes: how many; 0: in this process, where a crash is this process's and nothing ends a kernel that hangs.
    limit_s: a check that takes longer is ended, and is an error of kind `timeout`; one that ends its process is an
    error of kind `crash`. Raises what is no kernel's fault (NotSupported).
    """
    if processes == 0:
        results = []
        for task in tasks:
            results.append(run_task(task))
            done(task, results[-1])
        return results
    return _Pool(tasks, limit_s, done).run(min(processes, len(tasks)))


def run_task(task: Task) -> Checked:
    """Check one task in this process."""
    kernel = _kernels(task.source).get(task.kernel)
    example = next((e for e in kernel.examples if e.name == task.example), None) if kernel else None
    if kernel is None or example is None:
        raise InputError(f"{task.source} has no kernel {task.kernel!r} with an example {task.example!r}")
    return check_example(kernel, example, task.target, task.settings)


class _Pool:
    def __init__(self, tasks: Sequence[Task], limit_s: float, done: Callable[[Task, Checked], None]) -> None:
        self.tasks, self.limit_s, self.done = tasks, limit_s, done
        self.waiting = list(reversed(range(len(tasks))))
        self.results: dict[int, Checked] = {}
        self.workers: list[_Worker] = []

    def run(self, processes: int) -> list[Checked]:
        try:
            while len(self.results) < len(self.tasks):
                unfinished = len(self.tasks) - len(self.results)
                while len(self.workers) < min(processes, unfinished):
                    self.workers.append(_start())
                for worker in self.workers:
                    self._give(worker)
                self._collect()
        finally:
            for worker in self.workers:
                worker.process.kill()
        return [self.results[index] for index in range(len(self.tasks))]

    def _give(self, worker: _Worker) -> None:
        if worker.started and worker.task < 0 and self.waiting:
            worker.task = self.waiting.pop()
            worker.deadline = time.monotonic() + self.limit_s
            worker.pipe.send(self.tasks[worker.task])

    def _collect(self) -> None:
        """Wait for a result, the end of a process, or a deadline."""
        soonest = min(worker.deadline for worker in self.workers)
        wait_s = None if soonest == float("inf") else max(0.0, soonest - time.monotonic())
        ready = connection.wait([worker.pipe for worker in self.workers], wait_s)
        for worker in list(self.workers):
            if worker.pipe in ready:
                self._receive(worker)
            elif worker.deadline <= time.monotonic():
                self._lose(worker, "timeout", f"did not end within {self.limit_s:.0f} s and was stopped: does a loop "
                                              "never end? A longer --limit, or smaller inputs, if it is only slow")

    def _receive(self, worker: _Worker) -> None:
        try:
            found = worker.pipe.recv()
        except (EOFError, ConnectionError) as error:
            if not worker.started:
                raise KernelError("a process for checks ended before it began; --jobs 0 does without") from error
            self._lose(worker, "crash", "ended its process: the compiler's front end or the kernel's machine code "
                                        "crashed; --jobs 0 runs it in this process, to see where")
            return
        if isinstance(found, AnychipError):
            raise found
        if found is None:
            worker.started = True
        else:
            self._keep(worker, found)

    def _lose(self, worker: _Worker, kind: str, words: str) -> None:
        self.workers.remove(worker)
        worker.process.kill()
        task = self.tasks[worker.task]
        self._keep(worker, Checked(task.kernel, task.example, task.target, str(task.source), "error", error_kind=kind,
                                   error=f"kernel {task.kernel!r} on {task.target} {words}"))

    def _keep(self, worker: _Worker, checked: Checked) -> None:
        self.results[worker.task] = checked
        self.done(self.tasks[worker.task], checked)
        worker.task, worker.deadline = -1, float("inf")


def _context() -> multiprocessing.context.BaseContext:
    return multiprocessing.get_context("forkserver")


def _start() -> _Worker:
    ours, theirs = multiprocessing.Pipe()
    process = _context().Process(target=_work, args=(theirs,), daemon=True)  # type: ignore[attr-defined]
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _work(pipe: Connection) -> None:
    """A process: check what comes until nothing comes any more."""
    import torch

    torch.set_num_threads(1)  # the processes share the cores
    pipe.send(None)  # it has started
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            found: Checked | AnychipError = run_task(task)
        except AnychipError as error:
            found = error
        pipe.send(found)


@functools.cache
def _kernels(source: str | Path) -> dict[str, Kernel]:
    module = importlib.import_module(source) if isinstance(source, str) else source
    return {kernel.name: kernel for kernel in find_kernels(module)}
