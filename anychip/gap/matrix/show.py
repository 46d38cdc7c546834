"""A matrix in a terminal: models down, chips across, a table a figure."""

from __future__ import annotations

from itertools import groupby

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from ...eval.report import sentence
from ..report.terminal import cell_of, print_kinds, section, table_of, verdict_table
from ..report.words import visible
from .block import Block, columns, lines
from .matrix import Matrix


def print_matrix(matrix: Matrix, console: Console) -> None:
    """Print the whole report: what ran, the verdict, then a table a figure. Every number has its unit and kind."""
    console.print(Rule(Text(visible(title(matrix)), "bold")))
    console.print(_header(matrix))
    print_kinds(console)
    console.print()
    console.print(verdict_table(matrix.verdict))
    for topic, blocks in groupby(matrix.blocks, key=lambda block: block.topic):
        section(console, topic, "")
        for block in blocks:
            console.print(Text(visible(f"{block.name}, {block.unit}" if block.unit else block.name)).append(
                f"  {visible(block.note)}", "dim"))
            console.print(_table(block, matrix))
        if topic == "Cost":
            for chip, text in matrix.prices.items():
                console.print(Text(visible(f"{chip}: {text}"), "dim"))
    for said in eval_sentences(matrix):
        console.print(Text(visible(said)))
    if matrix.missing:
        console.print(Text(visible("not run: " + ", ".join(f"{model} on {chip}" for model, chip in matrix.missing)),
                           "dim"))


def title(matrix: Matrix) -> str:
    """Return the report's title."""
    return f"gap of {', '.join(matrix.grid.models)} on {', '.join(matrix.grid.chips)}"


def eval_sentences(matrix: Matrix) -> list[str]:
    """Return what every system of the eval runs reaches of its run's first one, those outside the matrix too."""
    return [sentence(row, run.tasks) for run in matrix.evals for row in run.rows.values() if row.get("relative")]


def _header(matrix: Matrix) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for kind, name, text in matrix.about:
        table.add_row(Text(kind, "dim"), Text(visible(name), "bold"), Text(visible(text)))
    return table


def _table(block: Block, matrix: Matrix) -> Table:
    grid = matrix.grid
    table = table_of("", *columns(block, grid.chips))
    for line in lines(block, grid.models, grid.chips):
        name = Text(visible(line.name), "dim" if line.ratio else "")
        if line.remark:
            name.append(f"\n{visible(line.remark)}", "dim")
        table.add_row(name, *(cell_of(value, block.unit) for value in line.values))
    return table
