"""The gap report as tables in a terminal: readable at 100 columns, whole at 80."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from ...record import Kind, Quantity
from ..compare import Comparison
from ..row import Row
from .marks import Verdict
from .verdict import beyond, headline, verdicts
from .words import (
    MEANINGS,
    TAGS,
    chip_names,
    coarser_format,
    equal_tokens,
    interval,
    limits_note,
    number,
    row_note,
    row_unit,
    seconds,
    visible,
)

BAR_CELLS = 16
WIDE = 100  # columns from which notes stand beside the numbers
TEXT_CHARACTERS = 160  # of a prompt or a generated text


def print_report(comparison: Comparison, console: Console) -> None:
    """Print the whole report: header, verdict, then one table a topic. Every number has its unit and kind."""
    _header(comparison, console)
    _verdict(comparison, console)
    shown = {"op": [_ops], "layer": [_layers], "model": [_model, _generation], "train": [_training],
             "speed": [_speed, _costliest, _memory]}
    for level in comparison.levels:
        for part in shown.get(level, []):
            part(comparison, console)


def _ops(comparison: Comparison, console: Console) -> None:
    section(console, "Ops on equal inputs", "relative rms differences, largest over an op's calls: each chip from the "
             "fp32 definition, and B from A")
    console.print(_rows_table(comparison.ops, ("A off by", "B off by", "B from A"), console))


def _layers(comparison: Comparison, console: Console) -> None:
    section(console, "Layers, each chip on its own", "relative rms difference of the residual streams; a full bar is "
             f"{number(_full_bar(comparison))}")
    console.print(_layers_table(comparison, console))


def _model(comparison: Comparison, console: Console) -> None:
    section(console, "Model", "teacher-forced on real text; KL has A first; brackets hold 95 %")
    console.print(_rows_table(comparison.model, ("A", "B", "B less A"), console))
    section(console, "Noise", "how far each chip's output moves from itself: mean KL")
    console.print(_rows_table(comparison.noise, ("A", "B"), console))


def _training(comparison: Comparison, console: Console) -> None:
    section(console, "Training", "same seeded weights, same batches")
    console.print(_rows_table(comparison.training, ("A", "B", "B less A"), console))


def _speed(comparison: Comparison, console: Console) -> None:
    section(console, "Speed", "(sim): a model of time; (meas): timed on the chip")
    console.print(_rows_table(comparison.speed, ("A", "B", "B / A"), console))


def _memory(comparison: Comparison, console: Console) -> None:
    section(console, "Memory", "one chip, all weights in its memory")
    console.print(_rows_table(comparison.memory, ("A", "B"), console))


def _header(comparison: Comparison, console: Console) -> None:
    a, b = chip_names(comparison)
    title = f"gap of {comparison.about_a['model']}: {a} and {b}"
    console.print(Rule(Text(visible(title), "bold")))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for letter, about in (("A", comparison.about_a), ("B", comparison.about_b)):
        role = "reference" if letter == "A" else ""
        said = (f"{about['description']}; matrix products in {about['precision']}; numbers {about['numerics']}, "
                f"times {about['timing']}")
        table.add_row(Text(letter, "bold"), Text(visible(str(about["chip"])), "bold"), Text(visible(said)),
                      Text(role, "dim"))
    console.print(table)
    print_kinds(console)


def print_kinds(console: Console) -> None:
    """Print what the tags behind numbers mean."""
    meanings = "; ".join(f"({TAGS[kind]}) {kind.value}, {MEANINGS[kind]}" for kind in Kind)
    console.print(Text("kinds: ").append(meanings, "dim"))


def _verdict(comparison: Comparison, console: Console) -> None:
    console.print()
    console.print(Text(visible(headline(comparison)), "bold"))
    console.print(verdict_table(verdicts(comparison)))


def verdict_table(lines: Sequence[Verdict]) -> Table:
    """Return a verdict's lines: mark, what they are about, and the sentence."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for line in lines:
        table.add_row(Text(line.mark.value, STYLES[line.mark.value]), Text(line.about, "bold"),
                      Text(visible(line.text())))
    return table


STYLES = {"same": "green", "within noise": "green", "real gap": "yellow", "fact": "", "unknown": "dim"}


def section(console: Console, title: str, note: str) -> None:
    """Print a section's title, and what it shows."""
    console.print()
    console.print(Text(title, "bold").append(f"  {note}" if note else "", "not bold dim"))


def _rows_table(rows: Sequence[Row], columns: Sequence[str], console: Console) -> Table:
    """A table of rows: name with unit, A, B, their gap where a third column is named, and the note beside or below."""
    noted = any(row_note(row) for row in rows)
    wide = noted and console.width >= WIDE
    table = table_of("", *columns)
    if wide:
        table.add_column("")
    for row in rows:
        unit, note = row_unit(row), visible(row_note(row))
        name = Text(visible(row.name)).append(f", {unit}" if unit and unit not in row.name else "", "dim")
        if note and not wide:
            name.append(f"\n{note}", "dim")
        cells = [cell_of(value, unit) for value in (row.a, row.b, row.gap)[: len(columns)]]
        table.add_row(name, *cells, *([Text(note, "dim")] if wide else []))
    return table


def _layers_table(comparison: Comparison, console: Console) -> Table:
    table = table_of("layer", "B from A", "", f"bound of {coarser_format(comparison)}")
    for row in comparison.layers:
        mark = "beyond" if beyond(row, comparison.explained_layers) else "within"
        table.add_row(Text(visible(row.name)), cell_of(row.gap), Text(_bar(row.gap, _full_bar(comparison), console)),
                      Text(mark))
    table.columns[2].justify = "left"
    return table


def _full_bar(comparison: Comparison) -> float:
    """What a full bar stands for: the larger of what the format explains and the largest difference."""
    values = [row.gap.value for row in comparison.layers if row.gap is not None and row.gap.value is not None]
    return max([comparison.explained_layers, *(value for value in values if math.isfinite(value))])


def _bar(quantity: Quantity | None, full: float, console: Console) -> str:
    """A bar on a linear scale; at least one cell for anything above zero."""
    if not _drawn(quantity):
        return ""
    assert quantity is not None and quantity.value is not None
    cell = "#" if console.options.ascii_only else "\u2588"
    return cell * max(1, round(BAR_CELLS * quantity.value / full))


def _drawn(quantity: Quantity | None) -> bool:
    value = None if quantity is None else quantity.value
    return value is not None and math.isfinite(value) and value > 0


def _costliest(comparison: Comparison, console: Console) -> None:
    for name, limits in zip(chip_names(comparison), comparison.limits, strict=True):
        console.print(Text(f"{visible(name)}: {visible(limits_note(limits))}", "dim"))
    for what, pair in (("training step", comparison.costliest),
                       ("decode step at the longest context", comparison.costliest_decode)):
        for name, rows in zip(chip_names(comparison), pair, strict=True):
            section(console, f"Costliest ops of a {what}: {visible(name)}", "" if rows else "unknown")
            if rows:
                console.print(_costliest_table(rows))


def _costliest_table(rows: Sequence[dict[str, Any]]) -> Table:
    table = table_of("op", "shape", "calls", "time", "share")
    for row in rows:
        table.add_row(Text(visible(row["op"])), Text(visible(row["shape"]), "dim"), Text(number(row["calls"])),
                      cell_of(seconds(row["time_s"], Kind.SIMULATED)),
                      cell_of(Quantity(100 * row["share"], "%", Kind.SIMULATED)))
    table.columns[1].justify, table.columns[1].no_wrap = "left", True
    return table


def _generation(comparison: Comparison, console: Console) -> None:
    a, b = chip_names(comparison)
    section(console, "Generated text", "greedy; shortened")
    for row in comparison.generation:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
        table.add_row(Text("prompt", "dim"), Text(_short(row["prompt"])))
        table.add_row(Text(visible(a), "bold"), Text(_short(row["a"])))
        table.add_row(Text(visible(b), "bold"), Text(_short(row["b"]) if not row["identical"] else "the same text"))
        table.add_row(Text(""), Text(equal_tokens(row), "dim"))
        console.print(table)


def _short(text: str) -> str:
    shown = visible(text)
    return shown if len(shown) <= TEXT_CHARACTERS else shown[:TEXT_CHARACTERS] + " ..."


def table_of(first: str, *others: str) -> Table:
    """Return an empty table of names and numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(first)
    for name in others:
        table.add_column(visible(name), justify="right", no_wrap=True)
    return table


def cell_of(quantity: Quantity | None, unit: str | None = None) -> Text:
    """A number with its kind, its unit unless the row says it, and its interval on a second line."""
    if quantity is None:
        return Text("")
    if quantity.value is None:
        return Text("unknown", "dim")
    shown = "" if quantity.unit == unit else f" {quantity.unit}"
    text = Text(f"{number(quantity.value)}{shown}".rstrip()).append(f" ({TAGS[quantity.kind]})", "dim")
    spread = interval(quantity)
    return text.append(f"\n{spread}", "dim") if spread else text
