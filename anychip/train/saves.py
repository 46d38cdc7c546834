"""Saves of a training run: begun in a moment, written in the background, kept k deep, read by any number of ranks.

    OUT/step-00000200/         one save (see `shards`): model, optimizer, and the position in the data
    OUT/step-00000300/model/   of a finished run: the model in the publisher's layout, fp32, what `--model` takes

Everything goes through torch.distributed.checkpoint. A save that cannot be read is set aside under a name that says
so, and the one before it is taken.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import AsyncSaveResponse, async_save

from ..errors import CheckpointError, InputError
from .shards import PARTIAL, ShardReader, ShardWriter, read_record
from .trainer import Trainer

_NAME = re.compile(r"step-(\d{8,})")
MODEL, UNREADABLE = "model", ".unreadable"
_MODEL_KEY, _OPTIMIZER_KEY, _ROUTING_KEY = "model.", "optimizer.", "routing."


@dataclass(frozen=True)
class Position:
    """Where a run stands: steps taken, and the numbers of the batches that were skipped."""

    step: int
    skipped: tuple[int, ...] = ()


def save_folder(out: Path, step: int) -> Path:
    """Return where the save after `step` steps lies."""
    return out / f"step-{step:08d}"


def saved_steps(out: Path) -> list[int]:
    """Return the step counts of the whole saves in a run's folder, oldest first."""
    found = (_NAME.fullmatch(path.name) for path in out.iterdir()) if out.is_dir() else ()
    return sorted(int(match[1]) for match in found if match)


def clear_partial(out: Path) -> None:
    """Remove what a killed process left half-written or half-removed."""
    for path in out.glob(f"*{PARTIAL}"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


class Saver:
    """Writes a run's saves, one at a time, beside the training.

    `group` is a process group of its own with a CPU backend (None: one process). `keep` saves are kept. `committed`
    is called with the position when a save has become visible, `before` just before: both on the first rank only, in
    the background.
    """

    def __init__(self, out: Path, keep: int, group: dist.ProcessGroup | None = None, *,
                 before: Callable[[], None] = lambda: None,
                 committed: Callable[[Position], None] = lambda position: None) -> None:
        self.out, self.keep, self._group, self._committed = out, keep, group, committed
        self.writer = ShardWriter(before, self._after)
        self._stager = DefaultStager(StagingOptions(False, False, False, False))  # its buffers serve every save
        self._pending: tuple[Position, Future[Any]] | None = None

    def begin(self, trainer: Trainer, position: Position) -> None:
        """Copy the state and write the copy in the background; waits for the save before it. Raises as `wait`."""
        self.wait()
        self._position = position
        self.writer.record = {"step": position.step, "skipped": list(position.skipped),
                              "placement": trainer.placement.describe()}
        response = async_save(state(trainer), checkpoint_id=save_folder(self.out, position.step),
                                  storage_writer=self.writer, async_stager=self._stager,
                                  process_group=self._group, no_dist=self._group is None)
        self._pending = position, response.upload_completion if isinstance(response, AsyncSaveResponse) else response

    def wait(self) -> None:
        """Wait until the save under way is on the disk. Raises InputError where it could not be written."""
        if self._pending is None:
            return
        (position, future), self._pending = self._pending, None
        target = save_folder(self.out, position.step)
        try:
            future.result()
        except CheckpointException as error:
            if self._group is None or dist.get_rank(self._group) == 0:
                shutil.rmtree(target.with_name(target.name + PARTIAL), ignore_errors=True)
            reasons = sorted({f"rank {rank}: {_reason(wrapped[0])}" for rank, wrapped in error.failures.items()})
            raise InputError(f"cannot write {target}: {'; '.join(reasons)}; the saves before it stay. Free the disk or "
                             "choose another folder") from error

    def close(self) -> None:
        """Wait for the save under way and let go of the buffers."""
        try:
            self.wait()
        finally:
            self._stager.close()

    def _after(self) -> None:
        for step in saved_steps(self.out)[: -self.keep]:
            remove_save(self.out, step)
        self._committed(self._position)


def remove_save(out: Path, step: int) -> None:
    """Remove a save so that it is never seen half-removed."""
    doomed = save_folder(out, step).with_name(save_folder(out, step).name + PARTIAL)
    os.replace(save_folder(out, step), doomed)
    shutil.rmtree(doomed)


def state(trainer: Trainer) -> dict[str, Tensor]:
    """Return everything that a run's next step depends on, by name: the model's tensors, the optimizer's, and the
    routes of later steps that were decided already."""
    model = {_MODEL_KEY + name: tensor.detach() for name, tensor in trainer.model.state_dict(keep_vars=True).items()}
    optimizer = trainer.optimizer.state_dict()
    routing = trainer.anticipation.state()
    return (model | {_OPTIMIZER_KEY + key: tensor for key, tensor in optimizer.items()}
            | {_ROUTING_KEY + key: tensor for key, tensor in routing.items()})


def restore(trainer: Trainer, out: Path, group: dist.ProcessGroup | None = None, *,
            unreadable: Callable[[int, str], None] = lambda step, reason: None) -> Position | None:
    """Bring the trainer to the newest save that can be read; return its position, None where there is no save.

    Every rank calls it. A save with a damaged or missing file is set aside, `unreadable(step, reason)` told of it,
    and the one before is taken. Raises CheckpointError where saves exist and none can be read.
    """
    steps = saved_steps(out)
    reasons: list[str] = []
    for step in reversed(steps):
        folder = save_folder(out, step)
        try:
            _load(trainer, folder, group)
            record = read_record(folder)
            return Position(int(record["step"]), tuple(record["skipped"]))
        except (CheckpointException, CheckpointError) as error:
            reasons.append(_damage(error))
            unreadable(step, reasons[-1])
            _set_aside(folder, group)
    if reasons:
        raise CheckpointError(f"none of the saves in {out} can be read: {'; '.join(reasons)}. They were renamed to end "
                              f"in {UNREADABLE}; the same command again starts from step 0")
    return None


def load_weights(folder: Path, model: torch.nn.Module) -> None:
    """Read a save's weights into a whole model in one process. Raises CheckpointError where they are damaged."""
    tensors = {_MODEL_KEY + name: tensor.detach() for name, tensor in model.state_dict(keep_vars=True).items()}
    try:
        load(tensors, storage_reader=ShardReader(folder), no_dist=True)
    except CheckpointException as error:
        raise CheckpointError(_damage(error)) from error


def _load(trainer: Trainer, folder: Path, group: dist.ProcessGroup | None) -> None:
    metadata = ShardReader(folder).read_metadata()
    model = {_MODEL_KEY + name: tensor.detach()
             for name, tensor in trainer.model.state_dict(keep_vars=True).items()}
    optimizer, routing = _empty_like_saved(trainer, metadata), _own_routes(trainer, metadata)
    load(model | {_OPTIMIZER_KEY + key: tensor for key, tensor in optimizer.items()}
         | {_ROUTING_KEY + key: tensor for key, tensor in routing.items()},
         storage_reader=ShardReader(folder), process_group=group, no_dist=group is None)
    trainer.optimizer.load_state_dict(optimizer)
    trainer.anticipation.load(routing)


def _empty_like_saved(trainer: Trainer, metadata: Metadata) -> dict[str, Tensor]:
    """Return tensors for this rank's part of the optimizer's saved state, laid out as the parameters are here."""
    parameters, found = dict(trainer.model.named_parameters()), {}
    for key, saved in metadata.state_dict_metadata.items():
        name = key.removeprefix(_OPTIMIZER_KEY).rpartition("/")[0]
        if key.startswith(_OPTIMIZER_KEY) and name in parameters and isinstance(saved, TensorStorageMetadata):
            like, dtype = parameters[name].detach(), saved.properties.dtype
            found[key.removeprefix(_OPTIMIZER_KEY)] = (
                torch.zeros_like(like, dtype=dtype, memory_format=torch.contiguous_format) if saved.size == like.shape
                else torch.zeros(saved.size, dtype=dtype))
    return found


def _own_routes(trainer: Trainer, metadata: Metadata) -> dict[str, Tensor]:
    """Return room for the saved routes of what this rank holds."""
    device = trainer.chip.device
    return {name: torch.zeros(saved.size, dtype=saved.properties.dtype, device=device)
            for key, saved in metadata.state_dict_metadata.items()
            if isinstance(saved, TensorStorageMetadata) and (name := key.removeprefix(_ROUTING_KEY)) != key
            and trainer.placement.owns(name.partition("/")[2])}


def _damage(error: CheckpointException | CheckpointError) -> str:
    """Return what is damaged. Raises the error again where it is no damage of files."""
    if isinstance(error, CheckpointError):
        return str(error)
    causes = [wrapped[0] for wrapped in error.failures.values()]
    if not all(isinstance(cause, CheckpointError) for cause in causes):
        raise error
    return "; ".join(sorted({str(cause) for cause in causes}))


def _set_aside(folder: Path, group: dist.ProcessGroup | None) -> None:
    if group is not None:
        dist.barrier(group)  # every rank has seen the damage before the folder moves
    if group is None or dist.get_rank(group) == 0:
        aside = folder.with_name(folder.name + UNREADABLE)
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(folder, aside)
    if group is not None:
        dist.barrier(group)


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)
