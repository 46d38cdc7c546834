"""`anychip bench serve` and `anychip soak`: load on a server, and what comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from .terminal import CHECK_FAILED, print_json, stderr, working

Url = Annotated[str, typer.Argument(help="The server's root, http://HOST:PORT.")]
Model = Annotated[str, typer.Option(help="The model to ask for; the first that the server lists, if not given.")]
KeyFile = Annotated[Path | None, typer.Option(help="A file that holds the API key alone.")]


def build() -> typer.Typer:
    """Return the group of benchmarks."""
    app = typer.Typer(no_args_is_help=True, help="Measure a server.", rich_markup_mode="rich")
    app.callback()(_group)
    app.command("serve")(serve)
    return app


def _group() -> None:
    """Measure a server."""


def serve(
    url: Url,
    model: Model = "",
    key_file: KeyFile = None,
    requests: Annotated[int, typer.Option(min=1, help="Requests to send.")] = 100,
    rate: Annotated[float | None, typer.Option(help="Requests a second, Poisson; closed-loop if not given.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Closed-loop: requests at once.")] = 8,
    mix: Annotated[Path | None, typer.Option(help='JSON lines {"prompt_words": N, "new_tokens": N}.')] = None,
    longest: Annotated[int, typer.Option(min=1, help="Cuts the default mix's lengths.")] = 1024,
    ttft_s: Annotated[float, typer.Option(help="A good answer's first token comes within.")] = 2.0,
    tpot_s: Annotated[float, typer.Option(help="And each further one within, on average.")] = 0.1,
    timeout_s: Annotated[float, typer.Option(help="When a request counts as hung.")] = 600,
    seed: Annotated[int, typer.Option(help="Lengths, prompts and arrivals.")] = 0,
) -> None:
    """Put load on any OpenAI-compatible server: percentiles, and goodput at a target. Prints one JSON object.

    Example: [bold]anychip bench serve http://127.0.0.1:8000 --requests 200 --rate 4[/bold]
    """
    import asyncio

    from ..bench.serving import Goal, run_load, summary
    from ..bench.workload import Workload, like_sharegpt, read_mix

    if rate is not None and not rate > 0:
        raise InputError(f"--rate {rate} must be above 0")
    asks = read_mix(mix, requests, seed) if mix else like_sharegpt(requests, seed, longest)
    workload = Workload(tuple(asks), rate, concurrency, seed)
    target = _target(url, model, key_file)
    with working("asking"):
        answers, wall_s = asyncio.run(run_load(target, workload, timeout_s))
    found = summary(answers, wall_s, workload, Goal(ttft_s, tpot_s))
    named = {"url": url, "model": target.model, "mix": str(mix or "synthetic, ShareGPT-like"), "seed": seed}
    print_json(named | found)
    if not found["complete"]:
        raise typer.Exit(CHECK_FAILED)


def soak(
    url: Url,
    model: Model = "",
    key_file: KeyFile = None,
    hours: Annotated[float, typer.Option(help="How long.")] = 1.0,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 16,
    pid: Annotated[int | None, typer.Option(help="The server's process, to watch its memory.")] = None,
    folder: Annotated[Path, typer.Option(help="Where a bundle is written for each failure.")] = Path("soak"),
    seed: Annotated[int, typer.Option(help="What is asked, and when clients leave.")] = 0,
) -> None:
    """Use a server for hours: mixed lengths, clients that leave, bad requests. Prints one JSON object.

    It gives the mean time between failures with its 95 % interval, the slope of memory, and for each failure the
    request that shows it. Exit code 1 where something failed.
    Example: [bold]anychip soak http://127.0.0.1:8000 --hours 8 --pid $(pgrep -f 'anychip serve')[/bold]
    """
    import asyncio

    from ..bench.soak import Plan, soak_server

    if not hours > 0:
        raise InputError(f"--hours {hours} must be above 0")
    plan = Plan(hours * 3600, concurrency, seed, folder, pid)
    found = asyncio.run(soak_server(_target(url, model, key_file), plan, stderr().print))
    print_json(found)
    if found["failures"]:
        raise typer.Exit(CHECK_FAILED)


def _target(url: str, model: str, key_file: Path | None):  # type: ignore[no-untyped-def]
    """Return the server, its model asked for where none is named."""
    from ..bench.client import Target, first_model

    try:
        key = key_file.read_text(encoding="utf-8").strip() if key_file else None
    except OSError as error:
        raise InputError(f"cannot read the key file {key_file}: {error.strerror or error}") from error
    target = Target(url, model, key)
    return target if model else Target(url, first_model(target), key)
