"""Runs that end badly, each in a new process."""

import itertools
import multiprocessing
import os
import resource
import signal
import sys
from contextlib import redirect_stderr
from multiprocessing.process import BaseProcess
from pathlib import Path

from train_cases import run

from anychip.chips import open_chip
from anychip.errors import InputError
from anychip.train import shards, train
from anychip.train.supervisor import PRELOAD


def forked(call, *arguments) -> BaseProcess:
    """Run a function of a module in a new process that has torch already, and return the process when it has ended."""
    context = multiprocessing.get_context("forkserver")
    multiprocessing.set_forkserver_preload(PRELOAD)
    process = context.Process(target=call, args=arguments)
    process.start()
    process.join()
    return process


def train_killed(out: Path, moment: str, call: int) -> None:
    """Train until a function of a save is called for the `call`-th time, then die of SIGKILL."""
    real, calls = getattr(shards, moment), itertools.count(1)

    def deadly(*arguments, **named):
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **named)

    setattr(shards, moment, deadly)
    train(run(), open_chip("cpu:reference"), out, save_every=2)


def train_on_a_full_disk(out: Path, limit: int, said: Path) -> None:
    """Train where no file may grow beyond `limit` bytes; what is printed and the error of the run go to `said`."""
    with said.open("w") as file, redirect_stderr(file):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # as a full disk: writes fail
        try:
            train(run(), open_chip("cpu:reference"), out, save_every=4)
        except InputError as error:
            print(error, file=sys.stderr)
            sys.exit(1)
