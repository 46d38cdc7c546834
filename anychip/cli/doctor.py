"""`anychip doctor`: what is installed, whether it goes together, and the command that mends it."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Annotated

import typer

from .terminal import CHECK_FAILED, print_json, working

_COLOURS = {"ok": "green", "warn": "yellow", "missing": "red", "wrong": "red"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Check torch, triton, drivers, CANN and compilers against a table of what goes together.

    Exits with 1 where something is missing or wrong. Example: [bold]anychip doctor[/bold]
    """
    from ..doctor import Probe, examine, is_healthy

    with working("examining this machine"):
        findings = examine(Probe.of_this_machine(os.environ))
    healthy = is_healthy(findings)
    first = next((f.command for f in findings if f.status in ("missing", "wrong")), None)
    if as_json:
        print_json({"healthy": healthy, "next_command": first, "findings": [asdict(f) for f in findings]})
    else:
        _print(findings, first)
    raise typer.Exit(0 if healthy else CHECK_FAILED)


def _print(findings: list, first: str | None) -> None:  # type: ignore[type-arg]
    from rich.console import Console
    from rich.table import Table

    console, table = Console(), Table("component", "found", "wanted", "status")
    for finding in findings:
        colour = _COLOURS[finding.status]
        table.add_row(finding.component, finding.found, finding.wanted, f"[{colour}]{finding.status}[/{colour}]")
    console.print(table)
    for finding in findings:
        if finding.status == "warn":
            typer.echo(f"{finding.component}: to mend the warning: {finding.command}")
    typer.echo(f"run this first: {first}" if first else "nothing is missing or wrong")
