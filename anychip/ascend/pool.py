"""Many checks on the machine's cores: one process each, and a kernel that ends its process ends only itself."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from ..errors import InputError
from ..kernels.example import Kernel, find_kernels
from .check import Checked, Settings, check_example

PRELOAD = ["torch", "triton", "anychip.ascend.check", "anychip.ascend.native"]


@dataclass(frozen=True)
class Task:
    """One example on one chip. source: a module's name, or a Python file that holds the kernel."""

    source: str | Path
    kernel: str
    example: str
    target: str
    settings: Settings


def run_tasks(tasks: Sequence[Task], jobs: int, done: Callable[[Task, Checked], None]) -> list[Checked]:
    """Check every task in `jobs` processes and return the results in the order of the tasks.

    done: called in this process with each result as it comes. A task whose process dies is tried once more alone, and
    then is an error of kind `crash`. jobs=1 runs everything here, where a crash is this process's.
    """
    if not tasks:
        return []
    results: dict[int, Checked] = {}

    def keep(index: int, checked: Checked) -> None:
        results[index] = checked
        done(tasks[index], checked)

    if jobs == 1:
        for index, task in enumerate(tasks):
            keep(index, run_task(task))
    else:
        _in_pool(tasks, jobs, range(len(tasks)), keep)
        for index in [i for i in range(len(tasks)) if i not in results]:
            _in_pool(tasks, 1, [index], keep)
            if index not in results:
                keep(index, _crashed(tasks[index]))
    return [results[index] for index in range(len(tasks))]


def run_task(task: Task) -> Checked:
    """Check one task in this process."""
    kernel = _kernels(task.source).get(task.kernel)
    example = next((e for e in kernel.examples if e.name == task.example), None) if kernel else None
    if kernel is None or example is None:
        raise InputError(f"{task.source} has no kernel {task.kernel!r} with an example {task.example!r}")
    return check_example(kernel, example, task.target, task.settings)


def _in_pool(tasks: Sequence[Task], jobs: int, indexes: Sequence[int], keep: Callable[[int, Checked], None]) -> None:
    """Run some tasks in new processes; those of a pool that broke are left out. Other errors are raised."""
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    if os.name == "posix":
        context.set_forkserver_preload(PRELOAD)  # what every process needs is imported once
    with ProcessPoolExecutor(min(jobs, len(indexes)), context, initializer=_alone) as pool:
        futures: dict[Future[Checked], int] = {pool.submit(run_task, tasks[index]): index for index in indexes}
        try:
            for future in as_completed(futures):
                keep(futures[future], future.result())
        except BrokenProcessPool:
            return
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _alone() -> None:
    """One thread a process: the processes share the cores."""
    torch.set_num_threads(1)


def _crashed(task: Task) -> Checked:
    return Checked(task.kernel, task.example, task.target, "", "error", error_kind="crash",
                   error=f"kernel {task.kernel!r} ended its process on {task.target}: the compiler's front end or the "
                         "kernel's machine code crashed; run it with --jobs 1 to see where")


@cache
def _kernels(source: str | Path) -> dict[str, Kernel]:
    if isinstance(source, str):
        import importlib

        return {kernel.name: kernel for kernel in find_kernels(importlib.import_module(source))}
    return {kernel.name: kernel for kernel in find_kernels(source)}
