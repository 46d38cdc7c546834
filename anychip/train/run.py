"""A training run in a folder: losses line by line, saves, and an exact continuation after any interruption."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..chips import Chip
from ..config import ModelConfig
from ..errors import InputError
from ..model import Transformer, initialize
from ..text.batches import TokenBatches
from ..text.tokenizer import Tokenizer
from .saves import MODEL, PARTIAL, clear_partial, restore, save, save_folder, saved_steps
from .settings import TrainSettings
from .trainer import StepResult, Trainer

RUN, LOSSES = "run.json", "loss.jsonl"


@dataclass(frozen=True)
class Run:
    """What is trained, on what: everything that the losses depend on. Weights start from `settings.seed`."""

    config: ModelConfig
    tokenizer: Tokenizer
    batches: TokenBatches
    settings: TrainSettings

    def identity(self, chip: Chip) -> dict[str, Any]:
        """Return what two runs must share to be one run."""
        return {"anychip": __version__, "chip": chip.name, "config": self.config.to_dict(),
                "settings": asdict(self.settings), "tokenizer": self.tokenizer.digest, "tokens": self.batches.digest}


def train(run: Run, chip: Chip, out: str | Path, *, save_every: int = 200,
          report: Callable[[StepResult], None] = lambda result: None) -> Path:
    """Train in folder `out`, from its last save where it has one; return the final checkpoint's folder.

    `loss.jsonl` gets one line a step. A resumed run takes the very steps that an unbroken one would have taken, so
    the losses are the same bit for bit on the same machine with the same number of threads. A finished run is left
    as it is. Raises InputError where `out` holds another run or something else, or cannot be written; Diverged
    where a step is not finite (nothing of that step is saved).
    """
    out = Path(out)
    done = _open_folder(out, run.identity(chip), save_every)
    trainer = _make_trainer(run, chip)
    if done:
        restore(trainer, out, done)
    gc.freeze()  # what exists now lives to the end: searching it for garbage costs 8 % of a small model's step
    with (out / LOSSES).open("a", encoding="utf-8") as losses:
        while trainer.steps_done < run.settings.steps:
            result = trainer.step()
            losses.write(json.dumps(asdict(result)) + "\n")
            losses.flush()
            if trainer.steps_done % save_every == 0 or trainer.steps_done == run.settings.steps:
                os.fsync(losses.fileno())  # a save must not outlive the losses that led to it
                save(trainer, out, run.tokenizer)
            report(result)
    return save_folder(out, run.settings.steps) / MODEL


def read_losses(out: str | Path) -> list[dict[str, Any]]:
    """Return the whole lines of a run's `loss.jsonl`; a line that was cut off by a kill is left out."""
    path = Path(out) / LOSSES
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


def _make_trainer(run: Run, chip: Chip) -> Trainer:
    if run.tokenizer.vocab_size > run.config.vocab_size:
        raise InputError(f"the tokenizer has {run.tokenizer.vocab_size} tokens, the model {run.config.vocab_size} "
                         "(vocab_size): choose the tokenizer that belongs to the model")
    model = Transformer(run.config, chip.ops())
    initialize(model, run.settings.seed)
    return Trainer(model, chip, run.batches, run.settings)


def _open_folder(out: Path, identity: dict[str, Any], save_every: int) -> int:
    """Make or check the run's folder and return the step to go on from; losses after it are cut off."""
    if save_every < 1:
        raise InputError(f"save_every={save_every} must be at least 1")
    try:
        out.mkdir(parents=True, exist_ok=True)
        if (out / RUN).is_file():
            _check_same(out, identity)
        elif any(path.name != RUN + PARTIAL for path in out.iterdir()):  # what a kill at the start leaves is no content
            raise InputError(f"{out} is not empty and holds no training run (no {RUN}): choose another folder")
        else:
            _write_whole(out / RUN, json.dumps(identity, indent=1, ensure_ascii=False) + "\n")
        clear_partial(out)
        done = max(saved_steps(out), default=0)
        _cut_losses(out, done)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}; choose another folder") from error
    return done


def _check_same(out: Path, identity: dict[str, Any]) -> None:
    try:
        found = json.loads((out / RUN).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{out / RUN} is not JSON ({error}): choose another folder") from error
    wanted = json.loads(json.dumps(identity))
    differing = list(_differences(found, wanted))
    if differing:
        raise InputError(f"{out} holds another run, which cannot be resumed with these settings:\n  "
                         + "\n  ".join(differing) + "\n  -> give the run's own settings, or another folder")


def _differences(found: Any, wanted: Any, where: str = "") -> list[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        names = sorted(found.keys() | wanted.keys())
        return [line for name in names
                for line in _differences(found.get(name), wanted.get(name), f"{where}.{name}".lstrip("."))]
    return [] if found == wanted else [f"{where}: the folder has {found!r}, asked for is {wanted!r}"]


def _cut_losses(out: Path, done: int) -> None:
    kept = read_losses(out)[:done]
    if [line["step"] for line in kept] != list(range(done)):
        raise InputError(f"{out / LOSSES} does not hold the {done} steps of the last save: restore the file, or choose "
                         "another folder")
    _write_whole(out / LOSSES, "".join(json.dumps(line) + "\n" for line in kept))


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_name(path.name + PARTIAL)
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
