"""Numerics in a matrix: one model at a time, each chip against the first on equal weights and tokens."""

from __future__ import annotations

from collections.abc import Mapping

from ...record import Quantity
from ..compare import Comparison, compare
from ..gates import metrics
from .block import Block
from .grid import Grid, Key


def compare_chips(grid: Grid) -> dict[Key, Comparison]:
    """Return the whole comparison of every model's runs with its run on the first chip that has one.

    Raises BundleError where they ran different weights, tokens or settings.
    """
    found = {}
    for model in grid.models:
        run = [chip for chip in grid.chips if (model, chip) in grid.bundles]
        for chip in run[1:]:
            found[model, chip] = compare(grid.bundles[model, run[0]], grid.bundles[model, chip])
    return found


NUMERICS = {  # figure of `gates.metrics` -> its name, unit, note
    "kl": ("KL divergence from the first chip", "nats/token", "next-token distributions on real text"),
    "op": ("largest difference of an op", "", "relative rms, on equal inputs, from the first chip's"),
    "layer": ("difference of the streams", "", "largest relative rms difference of a layer, each chip on its own"),
}


def numerics_blocks(comparisons: Mapping[Key, Comparison]) -> list[Block]:
    """Return one block a figure of the numerics; across models these mean nothing and have no ratio."""
    blocks = []
    for name, (title, unit, note) in NUMERICS.items():
        cells = {}
        for key, comparison in comparisons.items():
            value = metrics(comparison)[name]
            if value is not None:
                row = next((row for row in comparison.model if name == "kl" and row.name == "KL divergence"), None)
                cells[key] = row.gap if row is not None and row.gap is not None else Quantity(
                    value, unit, comparison.kind)
        if cells:
            blocks.append(Block("Numerics", title, unit, note, cells, lower=True))
    return blocks
