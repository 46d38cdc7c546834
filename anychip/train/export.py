"""A save's model as a checkpoint of its own, while the run goes on or after it."""

from __future__ import annotations

import json
from pathlib import Path

from ..checkpoint import save_checkpoint
from ..config import ModelConfig
from ..errors import InputError
from ..model import Transformer
from ..ops import Ops
from ..text.tokenizer import Tokenizer, open_tokenizer
from .folder import RUN
from .saves import load_weights, save_folder, saved_steps
from .shards import RECORD

TOKENIZER = "tokenizer"


def export(save: Path, config: ModelConfig, ops: Ops, folder: Path, *, tokenizer: Tokenizer,
           format: str = "fp32") -> None:
    """Write a save's model to `folder` in the publisher's layout (fp32, bf16, fp8 or fp4), whole or not at all.

    The whole model must fit into this process, whatever number of ranks wrote the save. Raises CheckpointError where
    the save is damaged, InputError where `folder` cannot be written.
    """
    model = Transformer(config, ops)
    load_weights(save, model)
    save_checkpoint(model, config, folder, tokenizer=tokenizer, format=format)


def find_save(where: Path) -> Path | None:
    """Return the save that a path means: itself, or the newest one of a run's folder. None where it is neither.

    Raises InputError for a run that has no save yet.
    """
    if (where / RECORD).is_file() and (where.parent / RUN).is_file():
        return where
    if not (where / RUN).is_file():
        return None
    steps = saved_steps(where)
    if not steps:
        raise InputError(f"the training run {where} has no save yet: there is no model to take from it")
    return save_folder(where, steps[-1])


def export_save(save: Path, folder: Path, *, format: str = "fp32") -> None:
    """Write the model of a save in a run's folder as `export` does, with the run's configuration and tokenizer."""
    run = json.loads((save.parent / RUN).read_text(encoding="utf-8"))
    export(save, ModelConfig.from_dict(run["config"]), Ops(), folder, format=format,
           tokenizer=open_tokenizer(save.parent / TOKENIZER))
