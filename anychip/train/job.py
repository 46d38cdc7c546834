"""A run as something that can be sent to other processes, and what one of them does with it."""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

from ..chips import Chip, open_chip
from ..errors import AnychipError
from ..model import Transformer
from ..parallel import Placement
from ..parallel.degrees import Degrees
from ..parallel.ranks import Ranks as Spread
from ..parallel.world import join
from .care import Care, Place, Ranks, alone
from .fault import Fault
from .pulse import Pulse
from .run import Run, train
from .settings import TrainSettings
from .watchdog import Watchdog, shared_beats

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl", "npu": "cpu:gloo,npu:hccl"}
TIMEOUT = timedelta(minutes=30)  # of a collective; a rank that hangs is ended long before
SAID = 17  # the exit code of a rank that has written its own fault


@dataclass(frozen=True)
class Job:
    """What every rank does: `make(**arguments)` gives the run (both can be pickled), and the rest says how.

    `degrees` say how several ranks share the work (None: FSDP over all); `threads` are those of a rank (None: the
    machine's cores shared evenly).
    """

    make: Callable[..., Run]
    arguments: dict[str, Any]
    chip: str
    out: Path
    care: Care = field(default_factory=Care)
    degrees: Degrees | None = None
    threads: int | None = None


def work(job: Job, beats: str | None = None, hang_s: float | None = None) -> str | AnychipError:
    """Be one rank: join the others, train, return the checkpoint's folder, or the error that ends the run for all.

    Rank, number of ranks and where to meet are read as torch elastic and torchrun give them. A fault that only this
    rank knows of ends this process. `beats` is the heartbeats' file of a supervisor; with `hang_s` in its place (s) the
    ranks of a machine watch each other.
    """
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # by DCP, of what was asked for
    rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    num_local = int(os.environ["LOCAL_WORLD_SIZE"])
    torch.set_num_threads(job.threads or max(1, (os.cpu_count() or 1) // num_local))
    shared = Path(beats) if beats else shared_beats(num_local) if hang_s is not None else None
    heart = Pulse(shared, local).start() if shared else None
    dog = (Watchdog(shared, rank, local, hang_s=hang_s, out=job.out).start()
           if shared and hang_s is not None else None)
    chip = open_chip(job.chip)
    if chip.device.type != "cpu":
        getattr(torch, chip.device.type).set_device(local)
    _join(rank, world, BACKENDS[chip.device.type])
    place = _spread(chip, job.degrees or Degrees(shard=world)) if world > 1 else alone
    ranks = Ranks(rank, dist.new_group(backend="gloo") if world > 1 else None, place, heart)
    try:
        answer: str | AnychipError = str(train(job.make(**job.arguments), chip, job.out, care=job.care, ranks=ranks))
    except AnychipError as error:
        answer = error
    except Fault as fault:
        print(f"rank {rank} ends: {fault.message}", file=sys.stderr, flush=True)
        os._exit(SAID)  # threads that wait for other ranks must not keep this process
    if dog is not None:
        dog.stop()
    if heart is not None:
        heart.stop()
    ranks.barrier()
    dist.destroy_process_group()
    gc.collect()
    return answer


def _spread(chip: Chip, degrees: Degrees) -> Place:
    world = join(chip.device, degrees)

    def place(model: Transformer, settings: TrainSettings) -> Placement:
        spread: Any = Spread(model, world, settings)
        return spread  # type: ignore[no-any-return]

    return place


def _join(rank: int, world: int, backend: str) -> None:
    """Meet the other ranks under keys of this attempt only: the agent's store outlives a restart."""
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=TIMEOUT)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group(backend, store=PrefixStore(f"attempt-{attempt}", store), rank=rank, world_size=world,
                            timeout=TIMEOUT)
