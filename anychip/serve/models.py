"""Opening a model by name or folder: its weights on a chip, and its tokenizer."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from ..checkpoint import load_model
from ..checkpoint.load import Progress
from ..chips import Chip
from ..config import PRESETS, ModelConfig
from ..errors import InputError, nearest
from ..model import Transformer
from ..text.tokenizer import Tokenizer, open_tokenizer

SHIPPED = ("nano",)  # presets whose trained weights install with anychip


def open_model(name: str | Path, chip: Chip, *, progress: Progress | None = None) -> tuple[Transformer, Tokenizer]:
    """Return a trained model on the chip, in fp32, and the tokenizer that lies beside its weights.

    `name` is as for `model_folder`. Raises InputError or CheckpointError with every reason why it cannot be opened.
    """
    folder = model_folder(name)
    model, loaded = load_model(folder, chip.ops(), device=chip.device, progress=progress)
    tokenizer = open_tokenizer(folder)
    _check_belongs(folder, tokenizer, loaded.config)
    return model.eval(), tokenizer


def _check_belongs(folder: Path, tokenizer: Tokenizer, config: ModelConfig) -> None:
    problems = []
    if tokenizer.vocab_size > config.vocab_size:
        problems.append(f"the tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab_size} (vocab_size)")
    if tokenizer.bos_id not in (None, config.bos_token_id):
        problems.append(f"a text begins with id {tokenizer.bos_id}, for the model with {config.bos_token_id}")
    if tokenizer.eos_id not in config.end_ids:
        problems.append(f"a text ends with id {tokenizer.eos_id}, for the model with {config.eos_token_id}")
    if problems:
        raise InputError(f"{folder} holds another model's tokenizer: {'; '.join(problems)}. Put the model's own "
                         "tokenizer.json and tokenizer_config.json there")


def model_folder(name: str | Path) -> Path:
    """Return the checkpoint folder of `nano` (ships with anychip), of a folder, or of a training run's folder.

    A finished training run's folder stands for its model. Raises InputError where there is none.
    """
    if str(name) in SHIPPED:
        return Path(str(files("anychip"))) / "weights" / str(name)
    if str(name) in PRESETS:
        raise InputError(f"preset {str(name)!r} has no trained weights in anychip; only {', '.join(SHIPPED)} has. Give "
                         "the folder of a checkpoint, or train one: anychip train --preset " + str(name))
    folder = Path(name)
    if not folder.is_dir():
        raise InputError(f"there is no model {str(name)!r}: it is neither a folder nor one of {', '.join(SHIPPED)}."
                         + nearest(str(name), SHIPPED))
    if (folder / "config.json").exists() or not (folder / "run.json").exists():
        return folder
    saves = sorted(folder.glob("step-????????/model"))
    if not saves:
        raise InputError(f"the training run {folder} has not finished: {_how_far(folder)}. The same `anychip train` "
                         "command goes on with it")
    return saves[-1]


def _how_far(run: Path) -> str:
    """Say what an unfinished training run has."""
    saves = sorted(run.glob("step-????????"))
    return (f"its last save is {saves[-1].name}. For that model: anychip convert {run} FOLDER" if saves
            else "it has no save yet")
