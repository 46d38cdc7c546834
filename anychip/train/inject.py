"""Faults made on purpose, each for real: `kill:rank1@step30,bitflip:weight:rank0@step12,disk_full@step20`.

| kind | what happens at the step, on the rank (0 where none is named) |
| --- | --- |
| kill | the process gets SIGKILL |
| hang | the training thread sleeps for ever |
| freeze | the process gets SIGSTOP |
| nan | one activation becomes NaN, in that step only |
| spike | the batch's targets are random from now on, whenever it is used |
| bitflip:weight | one bit of one weight flips, between two updates |
| bitflip:optimizer | one bit of the optimizer's momenta flips, between two updates |
| bitflip:gradient | one bit of one gradient flips, after it was computed |
| slow | the rank sleeps for half of each step's time, for 30 steps |
| disk_full | the next save's file is /dev/full, which refuses every byte |
| bad_shard | one byte of the last save's file flips, and the process gets SIGKILL |
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from ..errors import InputError, nearest
from ..model.block import Block
from .folder import Events
from .integrity import gradients, local, weights
from .saves import save_folder, saved_steps

KINDS = ("kill", "hang", "freeze", "nan", "spike", "bitflip:weight", "bitflip:optimizer", "bitflip:gradient", "slow",
         "disk_full", "bad_shard")
_FORM = re.compile(r"(?P<kind>[a-z_]+(?::(?:weight|optimizer|gradient))?)(?::rank(?P<rank>\d+))?@step(?P<step>\d+)")
SLOW_STEPS = 30


@dataclass(frozen=True)
class Injection:
    """One planned fault: its kind, the rank that it befalls, and the step (steps count from 0)."""

    kind: str
    rank: int
    step: int

    def __str__(self) -> str:
        return f"{self.kind}:rank{self.rank}@step{self.step}"


def parse_injections(text: str, num_ranks: int) -> tuple[Injection, ...]:
    """Return the faults of `--inject`. Raises InputError with all reasons."""
    found, problems = [], []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _FORM.fullmatch(part)
        if match is None or match["kind"] not in KINDS:
            kind = part.partition("@")[0].partition(":rank")[0]
            problems.append(f"{part!r} is not KIND[:rankR]@stepS with a kind of {', '.join(KINDS)}."
                            + nearest(kind, KINDS))
        elif int(match["rank"] or 0) >= num_ranks:
            problems.append(f"{part!r}: there are {num_ranks} ranks, rank0 to rank{num_ranks - 1}")
        else:
            found.append(Injection(match["kind"], int(match["rank"] or 0), int(match["step"])))
    if problems:
        raise InputError("these faults cannot be injected: " + "; ".join(problems))
    return tuple(found)


class Injector:
    """This rank's planned faults. Each happens once in a run, whatever is restarted, except `slow` and `spike`."""

    def __init__(self, planned: tuple[Injection, ...], rank: int, out: Path, seed: int = 0) -> None:
        self._events = Events(out, rank=rank)
        done = {event["injection"] for event in self._events.all() if event["event"] == "injected"}
        mine = [item for item in planned if item.rank == rank]
        self._waiting = [item for item in mine if str(item) not in done]
        self._bad_batches = {item.step for item in planned if item.kind == "spike"}  # the same on every rank
        self._slow = [item.step for item in mine if item.kind == "slow"]
        self._out, self._seed = out, seed

    def take(self, *kinds: str, step: int) -> Injection | None:
        """Return a fault of these kinds that is due at this step, and note that it happens now."""
        for item in self._waiting:
            if item.kind in kinds and (item.step == step or item.kind in LATE and item.step <= step):
                self._waiting.remove(item)
                self._events.add("injected", injection=str(item), kind=item.kind, step=step)
                return item
        return None

    def before_step(self, step: int, model: nn.Module, state: Mapping[str, Tensor]) -> Callable[[], None]:
        """Let happen what is due before a step's arithmetic; call the result after it. `state` is the optimizer's."""
        item = self.take("kill", "hang", "freeze", "bad_shard", step=step)
        if item is not None:
            _end(item.kind, self._out, item.rank)
        if self.take("bitflip:weight", step=step):
            flip_bit({name: w for name, w in weights(model).items() if w.is_floating_point()}, self._seed + step)
        if state and self.take("bitflip:optimizer", step=step):
            flip_bit({name: tensor for name, tensor in state.items() if tensor.dim()}, self._seed + step)
        if self.take("nan", step=step):
            return poison_once(model)
        return lambda: None

    def after_gradient(self, step: int, model: nn.Module, spent_s: float) -> None:
        """Let happen what is due once the gradients are there; `spent_s` is what the step took so far."""
        if self.take("bitflip:gradient", step=step):
            flip_bit(gradients(model), self._seed + step)
        if any(start <= step < start + SLOW_STEPS for start in self._slow):
            self.take("slow", step=step)
            time.sleep(spent_s)

    def targets(self, batch: int, targets: Tensor) -> Tensor:
        """Return a batch's targets, shuffled over the vocabulary where the batch is a bad one."""
        if batch not in self._bad_batches:
            return targets
        self.take("spike", step=batch)
        generator = torch.Generator().manual_seed(batch)
        return torch.randint(0, int(targets.max()) + 1, targets.shape, generator=generator)

    def open_file(self, step: int) -> Callable[[Path], BinaryIO] | None:
        """Return how the save after `step` steps opens its file, None where nothing is due."""
        if self.take("disk_full", step=step):
            return lambda path: open("/dev/full", "wb")  # noqa: SIM115 - the writer closes it
        return None


LATE = ("disk_full",)  # due at the first save after their step


def _end(kind: str, out: Path, rank: int) -> None:
    if kind == "bad_shard":
        folder = save_folder(out, saved_steps(out)[-1])
        damage(folder / f"rank-{rank}.bin")
    if kind == "hang":
        while True:
            time.sleep(60)
    os.kill(os.getpid(), signal.SIGSTOP if kind == "freeze" else signal.SIGKILL)


def damage(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


@torch.no_grad()
def flip_bit(tensors: Mapping[str, Tensor], seed: int) -> str:
    """Flip one random bit of one random number of this rank's tensors; return the tensor's name."""
    chosen = random.Random(seed)
    names = [name for name, tensor in tensors.items() if local(tensor).numel()]
    name = chosen.choices(names, [local(tensors[name]).numel() for name in names])[0]
    numbers = local(tensors[name]).view(-1)
    at, bit = chosen.randrange(numbers.numel()), chosen.randrange(8 * numbers.element_size())
    data = numbers[at : at + 1].view(torch.uint8)
    data[bit // 8] ^= 1 << bit % 8
    return name


def poison_once(model: nn.Module) -> Callable[[], None]:
    """Make one activation of this rank's next forward pass NaN; call the result to stop."""
    def poison(module: nn.Module, arguments: object, output: Tensor) -> Tensor:
        output = output.clone()
        output.view(-1)[0] = float("nan")
        return output

    block = next(module for module in model.modules() if isinstance(module, Block))
    return block.register_forward_hook(poison).remove
