"""`anychip conform`: does any implementation of DeepSeek-V4 give the reference's log-probabilities?"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .terminal import CHECK_FAILED, print_json, progress_bar

if TYPE_CHECKING:
    from ..conform.report import Report


def conform(
    file: Annotated[Path | None, typer.Argument(help="A Python file with logits(ids), or with ops by name.")] = None,
    transformers: Annotated[bool, typer.Option("--transformers", help="Judge the installed transformers.")] = False,
    endpoint: Annotated[str | None, typer.Option(help="Judge an OpenAI-compatible server at this URL.")] = None,
    model: Annotated[str | None, typer.Option(help="The endpoint's model. Default: the first that it lists.")] = None,
    key_env: Annotated[str | None, typer.Option(help="The environment variable that holds the endpoint's key.")] = None,
    export: Annotated[Path | None, typer.Option(help="Write the weights to this new folder instead.")] = None,
    weights: Annotated[str | None, typer.Option(help="nano or outliers. Default: both where both can be loaded, else "
                                                "outliers.")] = None,
    naming: Annotated[str, typer.Option(help="Tensor names of exported weights: transformers or publisher.")] = (
        "transformers"),
    index_head_dim: Annotated[int | None, typer.Option(help="Export the same function with a wider indexer (128 for "
                                                       "llama.cpp).")] = None,
    dtype: Annotated[str, typer.Option(help="What the implementation computes in: float32, bfloat16, float16.")] = (
        "float32"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Hold an implementation of DeepSeek-V4 to golden vectors; say which part fails and which known bug it resembles.

    Exits with 1 where it does not conform. Example: [bold]anychip conform my_model.py[/bold]
    Others: [bold]anychip conform --transformers --dtype bfloat16[/bold],
    [bold]anychip conform --export DIR[/bold], then [bold]anychip conform --endpoint http://localhost:8000[/bold]
    """
    asked = {"FILE.py": file is not None, "--transformers": transformers, "--endpoint URL": endpoint is not None,
             "--export FOLDER": export is not None}
    _check(asked, index_head_dim if export is None else None)
    if export is not None:
        _export(export, weights or "outliers", naming, index_head_dim)
        return
    with progress_bar("judging") as advance:
        tell = lambda text: advance(0, 1, text)  # noqa: E731
        if endpoint is not None:
            report = _judge_endpoint((endpoint, model, key_env), weights or "outliers", dtype, tell)
        else:
            report = _judge(file, weights, dtype, naming, tell)
    _show(report, as_json)


def _check(asked: dict[str, bool], without_export: int | None) -> None:
    """Raise InputError where the options ask for no or several things."""
    from ..errors import InputError

    if sum(asked.values()) != 1:
        given = " and ".join(name for name, is_asked in asked.items() if is_asked) or "nothing"
        raise InputError(f"{given} was given; say one of: {', '.join(asked)}")
    if without_export is not None:
        raise InputError("--index-head-dim changes exported weights: give it with --export FOLDER")


def _export(folder: Path, weights: str, naming: str, index_head_dim: int | None) -> None:
    from ..conform.weights import export, weight_set, widened

    chosen = weight_set(weights)
    export(chosen if index_head_dim is None else widened(chosen, index_head_dim), folder, naming)
    typer.echo(f"wrote {folder}: weights {weights}, fp32, {naming}'s names")


def _judge(file: Path | None, weights: str | None, dtype: str, naming: str, tell: Callable[[str], None]) -> Report:
    from ..conform.judge import tolerance
    from ..conform.logits import loads, open_file
    from ..conform.run import judge_file, judge_transformers
    from ..conform.weights import SETS

    tolerance(dtype)
    if file is None:
        return judge_transformers(SETS if weights is None else (weights,), dtype, tell)
    both = weights is None and loads(open_file(file))
    return judge_file(file, SETS if both else (weights or "outliers",), dtype, naming, tell)


def _judge_endpoint(where: tuple[str, str | None, str | None], weights: str, dtype: str,
                    tell: Callable[[str], None]) -> Report:
    from ..conform.endpoint import connect
    from ..conform.judge import tolerance
    from ..conform.run import judge_endpoint
    from ..conform.weights import weight_set
    from ..errors import InputError

    url, model, key_env = where
    tolerance(dtype)
    if key_env is not None and key_env not in os.environ:
        raise InputError(f"--key-env {key_env}: there is no such environment variable")
    tested = connect(url, model, os.environ[key_env] if key_env else None, weight_set(weights).tokenizer)
    return judge_endpoint(f"{tested.server.model} at {url} ({tested.describe()})", tested, weights, dtype, tell)


def _show(report: Report, as_json: bool) -> None:
    from rich.console import Console

    from ..conform.report import print_report, to_json

    if as_json:
        print_json(to_json(report))
    else:
        print_report(report, Console())
    if report.failed:
        raise typer.Exit(CHECK_FAILED)
