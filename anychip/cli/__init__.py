"""The command line `anychip`: one module a command. Exit codes: 0 done, 1 a check failed, 2 bad input."""

from __future__ import annotations

from typing import Annotated

import typer

from . import bench, card, chips, conform, convert, doctor, eval, gap, generate, kernels, plan, serve, train
from .terminal import Commands, show_version


def build() -> typer.Typer:
    """Return the application with every command. Nothing heavy is imported until a command runs."""
    app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                      rich_markup_mode="rich", help="DeepSeek-V4-family models on any chip, and the gap between chips.")
    app.callback()(_options)
    app.command("chips")(chips.chips)
    app.command("gap")(gap.gap)
    app.command("conform")(conform.conform)
    app.command("train")(train.train)
    app.command("generate")(generate.generate)
    app.command("serve")(serve.serve)
    app.command("eval")(eval.evaluate)
    app.command("convert")(convert.convert)
    app.command("doctor")(doctor.doctor)
    app.command("card")(card.card)
    app.add_typer(kernels.build(), name="kernels")
    app.add_typer(plan.build(), name="plan")
    app.add_typer(bench.build(), name="bench")
    app.command("soak")(bench.soak)
    return app


def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", callback=show_version,
                                          is_eager=True)] = False,
) -> None:
    """DeepSeek-V4-family models on any chip, and the gap between chips."""


def main() -> None:
    """Run the command line."""
    build()()
