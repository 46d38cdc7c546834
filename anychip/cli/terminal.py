"""What every command does alike on a terminal: errors on one line, JSON on stdout, progress on stderr."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from typer.core import TyperGroup

from .. import __version__
from ..errors import AnychipError

BAD_INPUT = 2
CHECK_FAILED = 1


class Commands(TyperGroup):
    """Turns an AnychipError of any command into a message on stderr and its exit code (2 for bad input)."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except AnychipError as error:
            typer.echo(f"anychip: error: {error}", err=True)
            raise typer.Exit(error.exit_code) from error


def show_version(wanted: bool) -> None:
    """Print the version and end, where asked for."""
    if wanted:
        typer.echo(f"anychip {__version__}")
        raise typer.Exit


def print_json(value: object) -> None:
    """Print one JSON document on stdout."""
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))


def stderr() -> Console:
    """Return a console for what is not the command's result."""
    return Console(stderr=True)


@contextmanager
def working(text: str) -> Iterator[None]:
    """Show that something of unknown length is under way (terminals only)."""
    console = stderr()
    if not console.is_terminal:
        yield
        return
    with console.status(text):
        yield


@contextmanager
def progress_bar(text: str, total: int | None = None) -> Iterator[Callable[[int, int, str], None]]:
    """Show a bar on stderr. Yields `advance(done, total, note)`; it is gone when the work is done (terminals only)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
               TimeElapsedColumn(), TimeRemainingColumn())
    console = stderr()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(text, total=total, note="")

        def advance(done: int, total: int, note: str = "") -> None:
            progress.update(task, completed=done, total=total, note=note)

        yield advance
