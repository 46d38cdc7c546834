"""A training run in a folder: an exact continuation after any interruption, and another attempt after any fault."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..checkpoint import digest, load_checkpoint
from ..chips import Chip
from ..config import ModelConfig
from ..errors import InputError
from ..model import Transformer, initialize
from ..ops import Ops
from ..text.tokenizer import Tokenizer
from .attempt import Attempt
from .care import Care, Ranks
from .export import TOKENIZER, export
from .fault import Fault
from .folder import Events, open_folder, read_losses
from .guard import decide
from .position import Batches
from .saves import MODEL, clear_partial, save_folder, saved_steps
from .settings import TrainSettings
from .trainer import StepResult

__all__ = ["Run", "read_losses", "train"]


@dataclass(frozen=True)
class Run:
    """What is trained, on what: everything that the losses depend on.

    Weights start from `settings.seed`, or from the checkpoint folder `start` (publisher's or transformers' layout).
    """

    config: ModelConfig
    tokenizer: Tokenizer
    batches: Batches
    settings: TrainSettings
    start: Path | None = None

    def identity(self, chip: Chip) -> dict[str, Any]:
        """Return what two runs must share to be one run. How many processes share the work is not in it."""
        return {"anychip": __version__, "chip": chip.name, "config": self.config.to_dict(),
                "settings": asdict(self.settings), "tokenizer": self.tokenizer.digest, "tokens": self.batches.digest,
                "start": digest(self.start) if self.start else None}

    def begin(self, model: Transformer) -> None:
        """Give a model the weights that the run starts from. Raises CheckpointError where `start` does not fit."""
        if self.start is None:
            initialize(model, self.settings.seed)
        else:
            load_checkpoint(self.start, model)


def train(run: Run, chip: Chip, out: str | Path, *, save_every: int | None = None,
          report: Callable[[StepResult], None] = lambda result: None, care: Care | None = None,
          ranks: Ranks | None = None) -> Path:
    """Train in folder `out`, from its last save where it has one; return the final checkpoint's folder.

    A resumed run takes the very steps that an unbroken one would have taken, so the losses are the same bit for bit
    on the same machine with the same threads and layout. After a fault (see `FaultKind`) the run goes on from its
    last save; `events.jsonl` says so. A finished run is left as it is. Every rank of `ranks` calls it. Raises
    InputError where `out` holds another run or something else, or cannot be written; Stopped where going on is of no
    use; Fault where this process alone must end and be started again.
    """
    out, ranks, care = Path(out), ranks or Ranks(), care or Care()
    if save_every is not None:
        care = dataclasses.replace(care, save_every=save_every)
    ranks.first(lambda: _open(out, run, chip))
    while not ranks.first(lambda: _is_finished(out, run)):
        attempt = Attempt(run, chip, out, care, ranks)
        try:
            attempt.go(report)
        except Fault as fault:
            _after(fault, attempt)
    ranks.first(lambda: _finish(out, run, chip.ops()))
    return save_folder(out, run.settings.steps) / MODEL


def _open(out: Path, run: Run, chip: Chip) -> None:
    _check_vocabulary(run)
    open_folder(out, run.identity(chip))
    clear_partial(out)
    run.tokenizer.save(out / TOKENIZER)


def _check_vocabulary(run: Run) -> None:
    if run.tokenizer.vocab_size > run.config.vocab_size:
        raise InputError(f"the tokenizer has {run.tokenizer.vocab_size} tokens, the model {run.config.vocab_size} "
                         "(vocab_size): choose the tokenizer that belongs to the model")


def _is_finished(out: Path, run: Run) -> bool:
    return run.settings.steps in saved_steps(out)


def _finish(out: Path, run: Run, ops: Ops) -> None:
    """Export the last save's model, once."""
    save = save_folder(out, run.settings.steps)
    if not (save / MODEL).is_dir():
        export(save, run.config, ops, save / MODEL, tokenizer=run.tokenizer)
        Events(out).add("finished", step=run.settings.steps)


def _after(fault: Fault, attempt: Attempt) -> None:
    """Note a fault and what is done about it. Raises Stopped where nothing helps, the fault where this rank must
    end."""
    ranks, events, batch = attempt.ranks, attempt.events, attempt.batch

    def note() -> None:
        before = events.all()
        events.add("fault", kind=fault.kind.value, step=fault.step, batch=batch, ranks=list(fault.ranks),
                   message=fault.message)
        change = decide(fault, batch, before, attempt.window())
        if change is not None:
            events.add(**change)

    if not fault.everywhere:
        note()
        raise fault
    ranks.first(note)
