"""Saves of a training run: a checkpoint, the optimizer's state and the step, in one folder that appears whole.

    OUT/step-00000200/model/                  the publisher's layout, fp32: what `--model` takes
    OUT/step-00000200/optimizer.safetensors   the optimizer's tensors by `<parameter>/<name>`

A save is written beside its place and renamed into it, so a process killed at any instant leaves the last one.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..checkpoint import load_checkpoint, save_checkpoint
from ..errors import CheckpointError, InputError
from ..text.tokenizer import Tokenizer
from .trainer import Trainer

_NAME = re.compile(r"step-(\d{8,})")
PARTIAL = ".partial"
OPTIMIZER = "optimizer.safetensors"
MODEL = "model"


def save_folder(out: Path, step: int) -> Path:
    """Return where the save after `step` steps lies."""
    return out / f"step-{step:08d}"


def saved_steps(out: Path) -> list[int]:
    """Return the step counts of the whole saves in a run's folder, oldest first."""
    found = (_NAME.fullmatch(path.name) for path in out.iterdir()) if out.is_dir() else ()
    return sorted(int(match[1]) for match in found if match)


def save(trainer: Trainer, out: Path, tokenizer: Tokenizer) -> Path:
    """Write the trainer's state after its last step, then remove older saves. Returns the save's folder.

    Raises CheckpointError where a weight is not finite and InputError where the folder cannot be written; older
    saves then stay.
    """
    target = save_folder(out, trainer.steps_done)
    partial = target.with_name(target.name + PARTIAL)
    try:
        clear_partial(out)
        partial.mkdir(parents=True)
        model = trainer.model
        save_checkpoint(model, model.config, partial / MODEL, tokenizer=tokenizer, format="fp32")
        save_file(_optimizer_tensors(trainer), partial / OPTIMIZER)
        for path in (partial / OPTIMIZER, partial):
            _sync(path)
        os.replace(partial, target)
        _sync(out)
        for step in saved_steps(out):
            if step < trainer.steps_done:
                shutil.rmtree(save_folder(out, step))
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write {target}: {reason}; the last whole save stays. Free the disk "
                         "or choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def restore(trainer: Trainer, out: Path, step: int) -> None:
    """Bring the trainer to the state of a save. Raises CheckpointError where the save is damaged."""
    folder = save_folder(out, step)
    load_checkpoint(folder / MODEL, trainer.model)
    path = folder / OPTIMIZER
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; remove {folder} to go back to the start") from error
    try:
        trainer.optimizer.load_state_dict(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    trainer.steps_done = step


def clear_partial(out: Path) -> None:
    """Remove what a killed process left half-written."""
    for path in out.glob(f"step-*{PARTIAL}"):
        shutil.rmtree(path)


def _optimizer_tensors(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in trainer.optimizer.state_dict().items()}


def _sync(path: Path) -> None:
    """Push a file or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
