"""Measured speed of models on the chips that are here: rounds that go through all of them in turn.

What slows the machine for a while then slows all of them, and the ratio of two within a round leaves it out.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...chips import Chip
from ...model import Layout, State
from ..behaviour import trainer_of
from ..subject import Subject

ROUNDS = 7  # timed ones; one more warms up
DECODED = 8  # tokens of a round


class _Runner:
    """One model on one chip, ready to be timed."""

    def __init__(self, subject: Subject, chip: Chip) -> None:
        self._chip, self._model = chip, subject.model(chip)
        self._probe = subject.probe().to(chip.device)
        self._trainer = trainer_of(subject, chip, subject.settings.seed)

    def round(self) -> dict[str, float]:
        """Return tokens/s of one prompt's prefill, of a few decoded tokens after it, and of one training step."""
        length = len(self._probe)
        state = State(self._model.config, length + DECODED, chunk=length, device=self._chip.device)
        with torch.no_grad():
            prefill_s = self._timed(lambda: self._pass(self._probe, Layout.whole([length]), state))
            decode_s = self._timed(lambda: [self._pass(self._probe[i : i + 1], Layout((length + i,), (1,)), state)
                                            for i in range(DECODED)])
        step = self._trainer.step()
        return {"prefill": length / prefill_s, "decode": DECODED / decode_s, "training": step.tokens / step.time_s}

    def _pass(self, ids: Tensor, layout: Layout, state: State) -> Tensor:
        return self._model.logits(self._model(ids, layout, state).hidden_Td[-1:])

    def _timed(self, run: Callable[[], object]) -> float:
        before = self._chip.clock()
        run()
        return self._chip.clock() - before


def time_together(cells: Mapping[tuple[str, str], tuple[Subject, Chip]], rounds: int = ROUNDS,
                  progress: Callable[[str], None] = lambda name: None) -> dict[tuple[str, str], dict[str, Any]]:
    """Return for each cell its rates by round, tokens/s: {"session", "prefill", "decode", "training"}.

    Cells of one call share their `session`: value i of each was taken in the same round.
    """
    runners = {key: _Runner(*cell) for key, cell in cells.items()}
    found: dict[tuple[str, str], list[dict[str, float]]] = {key: [] for key in cells}
    for number in range(rounds + 1):
        progress(f"timing, round {number + 1}")
        for key, runner in runners.items():
            found[key].append(runner.round())
    session = uuid.uuid4().hex
    return {key: {"session": session, **{name: [one[name] for one in rates[1:]] for name in rates[0]}}
            for key, rates in found.items()}
