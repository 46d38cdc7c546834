"""One attempt at a run: from its last save to its end, or to the first fault."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..chips import Chip
from ..errors import InputError
from ..model import Transformer
from ..model.initialize import initial_tensors
from ..parallel import Placement
from ..parallel.placement import fill
from .anticipate import Anticipation, Window, has_routers, windows_of
from .care import Care, Ranks
from .fault import Fault, FaultKind
from .folder import Events, Losses, read_losses
from .guard import SpikeGuard, skipped_batches
from .inject import Injector
from .integrity import local
from .metrics import Metrics, limit_flops_per_s, step_flops
from .position import Chosen
from .saves import Position, Saver, restore, saved_steps, state
from .trainer import Diverged, StepResult, Trainer
from .watch import Watched

if TYPE_CHECKING:
    from .run import Run


class Attempt:
    """Restores the run's last save, then takes steps. Every rank has one; the first writes for all."""

    def __init__(self, run: Run, chip: Chip, out: Path, care: Care, ranks: Ranks) -> None:
        self.run, self.out, self.care, self.ranks = run, out, care, ranks
        self.events = Events(out, rank=ranks.rank)
        self.injector = Injector(care.inject, ranks.rank, out) if care.inject else None
        self.batches = Chosen(run.batches, skipped_batches(self.events.all()), self.injector)
        self.watched, self.trainer = self._build(chip)
        self.saver = Saver(out, care.keep, ranks.group, before=self._before_commit, committed=self._committed)
        position = restore(self.trainer, out, ranks.group, unreadable=self._unreadable)
        self.trainer.steps_done = position.step if position else 0
        self.failed_saves = 0
        if ranks.is_first:
            self._open_records()
        self.guard = SpikeGuard(care.spike_nats, [line["loss"] for line in ranks.first(lambda: read_losses(out))])

    def _build(self, chip: Chip) -> tuple[Watched, Trainer]:
        run, ranks = self.run, self.ranks
        watched = Watched(self._placed(chip), check_every=self.care.check_every, group=ranks.group,
                          injector=self.injector, pulse=ranks.pulse)
        placed: Any = watched
        trainer = Trainer(placed.model, chip, self.batches, run.settings, placement=placed)
        watched.state = trainer.optimizer.state_dict
        trainer.anticipation = Anticipation(windows_of(self.events.all()), self.batches.number)
        return watched, trainer

    def _placed(self, chip: Chip) -> Placement:
        """Build the model where it belongs. No rank holds a whole one where weights come from a seed or a save; one
        tensor at a time is whole."""
        run, ranks = self.run, self.ranks
        has_save = ranks.first(lambda: bool(saved_steps(self.out)))
        in_parts = ranks.group is not None and (run.start is None or has_save)
        with torch.device("meta" if in_parts else "cpu"):
            model = Transformer(run.config, chip.ops())
        if in_parts:
            placement = ranks.place(model, run.settings)
            if not has_save:
                with torch.device("meta"):
                    whole = Transformer(run.config, chip.ops())
                fill(placement, initial_tensors(whole, run.settings.seed))
            return placement
        model.to(chip.device)
        if not has_save:
            run.begin(model)
        return ranks.place(model, run.settings)

    def _open_records(self) -> None:
        done = self.trainer.steps_done
        self.losses = Losses(self.out, done)
        self.metrics = Metrics(self.out, self.watched, self.trainer.chip, tensorboard=self.care.tensorboard,
                               **self._limits())
        self.events.add("begin", step=done, lost_steps=self.losses.num_cut, num_ranks=self.watched.num_ranks,
                        placement=self.watched.describe())

    def _limits(self) -> dict[str, float | None]:
        if not self.care.measure_limit:
            return {}
        known = [event for event in self.events.all() if event["event"] == "limit"]
        if not known:  # once a run: a CPU's limit takes two seconds to measure
            known = [self.events.add("limit", flops_per_s=limit_flops_per_s(self.trainer.chip),
                                     step_flops=step_flops(self.run.config, self.run.settings))]
        peak = known[-1]["flops_per_s"]
        return {"step_flops": known[-1]["step_flops"], "limit_flops_per_s": peak * self._num_chips() if peak else None}

    def _num_chips(self) -> int:
        """All ranks of a machine share its one CPU; other devices are a rank's own."""
        return 1 if self.trainer.chip.device.type == "cpu" else self.watched.num_ranks

    @property
    def batch(self) -> int:
        """The number of the batch of the step under way."""
        return self.batches.number(self.watched.at)

    def window(self) -> Window | None:
        """Return the steps of anticipatory routing that could begin at the last save; None where nothing is routed."""
        care, steps = self.care, saved_steps(self.out)
        if not care.anticipate_steps or not has_routers(self.run.config):
            return None
        first = steps[-1] if steps else 0
        return Window(first, min(first + care.anticipate_steps, self.run.settings.steps), care.anticipate_delay)

    def go(self, report: Callable[[StepResult], None]) -> None:
        """Take the steps that are left and make the last save. Raises Fault where something goes wrong."""
        gc.freeze()  # what exists now lives to the end: searching it for garbage costs 8 % of a small model's step
        try:
            while self.trainer.steps_done < self.run.settings.steps:
                result = self._step()
                if self.ranks.is_first:
                    report(result)
            self._finish_saves()
        except BaseException as error:
            if not isinstance(error, Fault) or error.everywhere:
                self._end_saves()
            raise
        finally:
            gc.unfreeze()
            if self.ranks.is_first:
                self.losses.close()
                self.metrics.close()

    def _step(self) -> StepResult:
        step, watched = self.trainer.steps_done, self.watched
        watched.begin(step)
        try:
            result = self.trainer.step()
        except Diverged as error:
            raise Fault(FaultKind.NOT_FINITE, str(error), step=step) from error
        self.guard.check(step, result.loss)
        done = self.trainer.steps_done
        saving = done % self.care.save_every == 0 or done == self.run.settings.steps
        watched.end(check_copies=saving)
        if self.ranks.is_first:
            self.losses.add(asdict(result))
            self._say_slow(step)
        if saving:
            with watched.phases.timed("save"):
                self._save(step)
        if self.ranks.is_first:
            self.metrics.add(result)
        return result

    def _save(self, step: int) -> None:
        """Begin a save, of a state that is finite."""
        finite = all(bool(torch.isfinite(local(tensor)).all()) for tensor in state(self.trainer).values()
                     if tensor.is_floating_point())
        if not self.ranks.all(finite):
            raise Fault(FaultKind.NOT_FINITE, f"the update of step {step} left weights that are not finite", step=step)
        self._settle()
        opening = self.injector.open_file(self.trainer.steps_done) if self.injector else None
        self.saver.writer.open_file = opening or (lambda path: path.open("xb"))
        self.saver.begin(self.trainer, Position(self.trainer.steps_done, self.batches.skipped))

    def _settle(self) -> None:
        """Wait for the save under way. One that fails is noted as a fault; the second in a row ends the run."""
        try:
            self.saver.wait()
            self.failed_saves = 0
        except InputError as error:
            self.failed_saves += 1
            if self.ranks.is_first:
                self.events.add("fault", kind=FaultKind.DISK.value, step=self.trainer.steps_done, message=str(error))
            if self.failed_saves > 1:
                raise

    def _finish_saves(self) -> None:
        """Wait for the last save, with one more try."""
        self._settle()
        if self.failed_saves:
            self._save(self.trainer.steps_done - 1)
            self._settle()
        self.saver.close()

    def _end_saves(self) -> None:
        """Finish the save under way: it holds a state from before whatever happened."""
        with contextlib.suppress(InputError):  # a save that failed is no save, and the next attempt makes it again
            self.saver.close()

    def _before_commit(self) -> None:
        self.losses.sync()

    def _committed(self, position: Position) -> None:
        self.events.add("saved", step=position.step)

    def _unreadable(self, step: int, reason: str) -> None:
        if self.ranks.is_first:
            self.events.add("fault", kind=FaultKind.UNREADABLE.value, step=step, message=f"the save of step {step} is "
                            f"set aside and the one before it taken: {reason}")

    def _say_slow(self, step: int) -> None:
        for rank, ratio in self.watched.slow_ranks:
            self.events.add("fault", kind=FaultKind.SLOW.value, step=step, ranks=[rank], ratio=ratio,
                            message=f"rank {rank} worked {ratio:.1f} times as long as the other ranks since the last "
                            "check")
        self.watched.slow_ranks = []
