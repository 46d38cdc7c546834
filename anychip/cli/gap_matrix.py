"""`anychip gap` with several models or chips: one matrix of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .terminal import CHECK_FAILED, print_json, progress_bar, stderr

if TYPE_CHECKING:
    from ..gap.gates import Gate
    from ..gap.matrix import Grid
    from ..gap.matrix.quality import EvalRun
    from ..gap.matrix.serving import Serving
    from ..gap.subject import Subject
    from ..plan.cost import Price


@dataclass(frozen=True)
class Beside:
    """What stands beside the runs: runs of `anychip eval`, of served loads, the user's own prices by chip, and a plan
    of so many devices (0: none)."""

    evals: Sequence[EvalRun] = ()
    serving: Sequence[Serving] = ()
    prices: Mapping[str, Price] = field(default_factory=dict)
    plan: int = 0

    def __bool__(self) -> bool:
        return bool(self.evals or self.serving or self.prices or self.plan)


def read_beside(evals: Sequence[Path] | None, serving: Sequence[str] | None, prices: Sequence[str] | None,
                plan: int) -> Beside:
    """Read files and options. Raises InputError for what cannot be read."""
    from ..gap.matrix.quality import read_eval
    from ..gap.matrix.serving import read_serving

    return Beside([read_eval(path) for path in evals or ()], [read_serving(text) for text in serving or ()],
                  _prices(prices or ()), plan)


def check_prices(beside: Beside, chips: Sequence[str]) -> None:
    """Raise InputError for a price of a chip that is not asked for."""
    from ..errors import InputError

    strange = [name for name in beside.prices if name not in chips]
    if strange:
        raise InputError(f"--price names {strange[0]!r}, which is none of the chips: {', '.join(chips)}")


def run_grid(subjects: Sequence[Subject], chips: Sequence[str], levels: Sequence[str], keep: Path | None) -> Grid:
    """Run what is missing of every subject on every chip."""
    from ..gap.matrix import fill

    with progress_bar("running") as advance:
        return fill(subjects, chips, levels, keep, advance)


def report_matrix(grid: Grid, beside: Beside, gates: Sequence[Gate], html: Path, *, as_json: bool) -> None:
    """Write and print the matrix; exit with 1 where a gate fails for a model on two chips."""
    from rich.console import Console

    from ..gap.matrix import build
    from ..gap.matrix.as_json import matrix_json
    from ..gap.matrix.page import write_matrix
    from ..gap.matrix.show import print_matrix

    check_prices(beside, grid.chips)
    matrix = build(grid, evals=beside.evals, serving=beside.serving, prices=beside.prices,
                   plan=beside.plan)
    failed = [f"{model} on {chip}: {wrong}" for (model, chip), comparison in matrix.comparisons.items()
              for gate in gates if (wrong := gate.fails(comparison))]
    written = write_matrix(matrix, html)
    if as_json:
        print_json(matrix_json(matrix))
    else:
        print_matrix(matrix, Console())
    stderr().print("report: " + ", ".join(map(str, written)), markup=False)
    for wrong in failed:
        stderr().print(f"failed: {wrong}", markup=False)
    if failed:
        raise typer.Exit(CHECK_FAILED)


def _prices(given: Sequence[str]) -> dict[str, Price]:
    from ..errors import InputError
    from ..plan.cost import given_price

    found = {}
    for text in given:
        name, _, amount = text.rpartition("=")
        try:
            found[name] = given_price(float(amount))
        except ValueError as error:
            raise InputError(f"--price {text!r}: write CHIP=USD_AN_HOUR, e.g. cpu=0.2") from error
    return found
