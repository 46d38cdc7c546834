"""Quality in a matrix: the run's own questions and runs of `anychip eval`, each system as a share of another's score.

Two sides are compared on the same questions only, question by question. Random weights have no quality: their scores
are chance, and are not compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...eval.score import Relative, compare, share
from ...record import Kind, Quantity
from ..quality import CHOICES
from .block import Block, as_ratio, weaker, with_ratios
from .grid import Grid, Key

RANDOM = "random weights: what they answer is chance"


@dataclass(frozen=True)
class Paired:
    """Two cells on the same questions: what `anychip eval` says of two systems, and the question set's name."""

    first: Key
    second: Key
    questions: str
    found: Relative


@dataclass(frozen=True)
class EvalRun:
    """A run of `anychip eval`, read from its --json output: the rows over all its tasks, by system."""

    tasks: str
    digest: str
    rows: Mapping[str, dict[str, Any]]


def read_eval(path: Path) -> EvalRun:
    """Read the output of `anychip eval --json`. Raises InputError where it is none, or of an anychip that did not keep
    which questions were right."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        tasks = list(dict.fromkeys(row["task"] for row in found if row["task"] != "all"))
        rows = {row["system"]: row for row in found if row["task"] == ("all" if len(tasks) > 1 else tasks[0])}
        if not all(len(row["answers"]) == row["questions"] for row in rows.values()):
            raise ValueError("a row's answers are not as many as its questions")
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{path} is not the output of this anychip's `anychip eval ... --json` "
                         f"({type(error).__name__}: {error}); run it again, its replies are kept") from error
    return EvalRun(", ".join(tasks), next(iter(rows.values()))["digest"], rows)


def quality_blocks(grid: Grid, runs: Sequence[EvalRun]) -> tuple[list[Block], list[Paired]]:
    """Return one block for the run's own questions and one for each eval run, and all comparisons behind the ratios.

    Raises InputError where an eval run names no cell of the grid.
    """
    answers = [("continuations of the text", _own(grid)), *((run.tasks, _evaluated(grid, run)) for run in runs)]
    blocks, pairs = [], []
    for name, right in answers:
        if not right:
            continue
        block, found = _block(grid, name, right)
        blocks.append(block)
        pairs += found
    return blocks, pairs


def _own(grid: Grid) -> dict[Key, tuple[str, list[bool]]]:
    """Each cell's answers to the questions that are cut from the run's text, with the identity of the question set."""
    found = {}
    for key, bundle in grid.bundles.items():
        if "quality/scores" in bundle.tensors:
            digests = bundle.about["digests"]
            right = (bundle.tensors["quality/scores"].argmax(1) == 0).tolist()
            found[key] = digests["tokens"] + digests["settings"], right
    return found


def _evaluated(grid: Grid, run: EvalRun) -> dict[Key, tuple[str, list[bool]]]:
    found = {(model, chip): (run.digest, [each == "1" for each in row["answers"]])
             for model in grid.models for chip in grid.chips if (row := run.rows.get(f"{model}@{chip}"))}
    if not found:
        wanted = ", ".join(f"{model}@{chip}" for model in grid.models for chip in grid.chips)
        raise InputError(f"the eval run of {run.tasks} asked {', '.join(run.rows)}, none of this matrix: {wanted}")
    return found


def _block(grid: Grid, name: str, answers: Mapping[Key, tuple[str, list[bool]]]) -> tuple[Block, list[Paired]]:
    trained = {key for key in answers if grid.bundles[key].about.get("trained", True)}
    kinds = {key: Kind(grid.bundles[key].about["numerics"]) for key in answers}
    cells = {}
    for key in trained:
        right = answers[key][1]
        cells[key] = as_ratio(share(sum(right), len(right)), kinds[key], 100, "%")
    pairs: list[Paired] = []

    def ratio(first: Key, second: Key) -> Quantity | None:
        if answers[first][0] != answers[second][0]:
            return None
        found = compare(answers[first][1], answers[second][1])
        pairs.append(Paired(first, second, name, found))
        kind = weaker(kinds[first], kinds[second])
        return None if found.ratio is None else as_ratio(found.ratio, kind, 100, "%")

    num = max(len(right) for _, right in answers.values())
    own = f"which of {CHOICES} continuations is the text's own; chance is {100 / CHOICES:g} %" if (
        name == "continuations of the text") else "asked by `anychip eval`"
    note = f"{num} questions, {own}; ratios: per cent of the other's score, on the same questions"
    block = Block("Quality", f"quality: {name}", "% right", note, cells, said=f"of its quality ({name})",
                  why={key: RANDOM for key in answers if key not in trained})
    with_ratios(block, grid.models, grid.chips, chip_ratio=ratio, model_ratio=ratio)
    if len({identity for identity, _ in answers.values()}) > 1:
        block.why.update({key: "other tokens, so other questions: not compared across models" for key, (identity, _) in
                          answers.items() if identity != answers[next(iter(answers))][0] and key in trained})
    return block, pairs
