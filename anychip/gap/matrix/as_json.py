"""A matrix as JSON with stable keys (matrix.schema.json beside this file); quantities as in the gap report."""

from __future__ import annotations

from typing import Any

from ...record import Quantity
from ..report.as_json import quantity_json, strict, to_json, verdict_json
from .block import Block
from .grid import Key
from .matrix import Matrix
from .quality import Paired
from .show import eval_sentences

SCHEMA = "anychip-gap-matrix/1"


def matrix_json(matrix: Matrix) -> dict[str, Any]:
    """Return the matrix, with the whole report of every model on two chips, as values that strict JSON can hold."""
    grid = matrix.grid
    document = {
        "schema": SCHEMA, "models": list(grid.models), "chips": list(grid.chips),
        "runs": [{"model": model, "chip": chip, "about": bundle.about}
                 for (model, chip), bundle in grid.bundles.items()],
        "not_run": [{"model": model, "chip": chip} for model, chip in matrix.missing],
        "verdict": [verdict_json(line) for line in matrix.verdict],
        "blocks": [_block(block, matrix) for block in matrix.blocks],
        "quality": [_paired(pair) for pair in matrix.paired],
        "systems": [{"tasks": run.tasks, "digest": run.digest, "rows": list(run.rows.values())}
                    for run in matrix.evals],
        "sentences": eval_sentences(matrix),
        "prices": matrix.prices,
        "reports": [{"model": model, "chip": chip, "report": to_json(comparison)}
                    for (model, chip), comparison in matrix.comparisons.items()],
    }
    found: dict[str, Any] = strict(document)
    return found


def _block(block: Block, matrix: Matrix) -> dict[str, Any]:
    grid = matrix.grid
    keys = [(model, chip) for model in grid.models for chip in grid.chips]
    return {"topic": block.topic, "name": block.name, "unit": block.unit, "note": block.note,
            "lower_is_better": block.lower,
            "cells": [{"model": key[0], "chip": key[1], "quantity": quantity_json(block.cells.get(key)),
                       "remark": block.why.get(key, "")} for key in keys],
            "across_chips": [_ratio(key, (key[0], grid.chips[0]), block.across_chips[key]) for key in keys
                             if key in block.across_chips],
            "across_models": [_ratio(key, (grid.models[0], key[1]), block.across_models[key]) for key in keys
                              if key in block.across_models]}


def _ratio(key: Key, other: Key, ratio: Quantity) -> dict[str, Any]:
    return {"model": key[0], "chip": key[1], "against": {"model": other[0], "chip": other[1]},
            "ratio": quantity_json(ratio)}


def _paired(pair: Paired) -> dict[str, Any]:
    found = pair.found
    d = found.difference.difference
    ratio = None if found.ratio is None else [found.ratio.value, found.ratio.low, found.ratio.high]
    return {"questions": pair.questions, "count": found.num,
            "model": pair.second[0], "chip": pair.second[1],
            "against": {"model": pair.first[0], "chip": pair.first[1]},
            "relative": ratio, "difference": [d.value, d.low, d.high], "p": found.difference.p,
            "only_against": found.only[0], "only_this": found.only[1], "smallest_seen": found.seen}
