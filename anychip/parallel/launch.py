"""Start of ranks on this machine without torchrun: the same elastic agent, called as a library."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch


def launch(num_processes: int, entry: Callable[..., Any], args: tuple[Any, ...], *, max_restarts: int = 0) -> list[Any]:
    """Run `entry(*args)` in `num_processes` new processes and return what each rank returned, by rank.

    `entry` is a module's function; it finds its rank where torchrun puts it, so `world.join` works. A rank that dies
    ends the others; all start again at most `max_restarts` times. The cores are shared out: each rank has its own
    threads. Raises torch's ChildFailedError, which holds the first failed rank's own error.
    """
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=num_processes, rdzv_backend="c10d",
                          rdzv_endpoint="localhost:0", max_restarts=max_restarts, monitor_interval=0.05,
                          start_method="spawn")
    threads = max(1, min(torch.get_num_threads(), len(os.sched_getaffinity(0)) // num_processes))
    results = elastic_launch(config, _Entry(entry, threads))(*args)
    return [results[rank] for rank in range(num_processes)]


class _Entry:
    """The function that a new process runs, on its share of the cores."""

    def __init__(self, entry: Callable[..., Any], threads: int) -> None:
        self.entry, self.threads = entry, threads
        self.__name__ = self.__qualname__ = entry.__name__

    def __call__(self, *args: Any) -> Any:
        from torch.distributed.elastic.multiprocessing.errors import record

        torch.set_num_threads(self.threads)
        return record(self.entry)(*args)
