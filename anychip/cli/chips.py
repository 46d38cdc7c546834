"""`anychip chips`: what can be run here, and why a chip cannot."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from .terminal import print_json, working


def chips(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List real chips found here, virtual ones, and why a real one cannot be used.

    Example: [bold]anychip chips[/bold]
    """
    from ..chips import list_chips

    with working("looking for chips"):
        found = list_chips()
    if as_json:
        print_json([{**asdict(chip), "numerics": chip.numerics.value, "timing": chip.timing.value,
                     "available": not chip.reason} for chip in found])
        return
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(Column("chip", no_wrap=True), "what it is", "numbers", "times", "here")
    for chip in found:
        table.add_row(chip.name, chip.description, chip.numerics.value, chip.timing.value,
                      "[green]yes[/green]" if not chip.reason else "[yellow]no[/yellow]")
    Console().print(table)
    for chip in found:
        if chip.reason:
            typer.echo(f"{chip.name}: {chip.reason}")
