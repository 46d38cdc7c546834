"""`anychip card`: everything that only a real card can tell, in one file to send."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .terminal import CHECK_FAILED, stderr


def card(
    out: Annotated[Path, typer.Option(help="The zip to write.")] = Path("card.zip"),
    chip: Annotated[str, typer.Option(help="The real chip to examine.")] = "npu",
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes: does everything run at all?")] = False,
) -> None:
    """Examine a real card: operators, gradients, waits, kernels, rates and the gap bundle, in one zip.

    Exits with 1 where a section failed; its log is in the zip. Example: [bold]anychip card --out card.zip[/bold]
    """
    from ..chips import open_chip
    from ..gap.bundle import check_writable
    from ..gap.card import run_all

    check_writable(out)
    open_chip(chip)

    def tell(name: str, fine: bool) -> None:
        stderr().print(f"{name}: {'done' if fine else 'FAILED, see its log'}")

    fine = run_all(chip, out, quick=quick, report=tell)
    typer.echo(f"wrote {out}; compare a recording in it with another chip's: anychip gap A.gap B.gap")
    raise typer.Exit(0 if fine else CHECK_FAILED)
