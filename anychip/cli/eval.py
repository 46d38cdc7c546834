"""`anychip eval`: the same questions to models on chips and to endpoints, and each as a percentage of one of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from .terminal import print_json, progress_bar

REPLIES = "replies.sqlite"


def evaluate(
    systems: Annotated[list[str], typer.Argument(help="Systems: MODEL@CHIP (nano@cpu), openai:MODEL[@URL], "
                                                 "anthropic:MODEL[@URL]. The first is the reference.")],
    task: Annotated[str, typer.Option(help="Comma-separated: arithmetic, books, strings, .jsonl files of questions, "
                                      "or lm:NAME[:FILTER], a task of lm-evaluation-harness that has answers "
                                      "generated.")] = "arithmetic,books,strings",
    tasks_folder: Annotated[Path | None, typer.Option(help="Look for lm:NAME among your own task files "
                                                      "in this folder.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first questions of each task.")] = None,
    out: Annotated[Path, typer.Option(help="Folder that keeps the replies: a run that is cut off goes on from "
                                      "there.")] = Path("eval"),
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a reply.")] = 256,
    temperature: Annotated[float | None, typer.Option(min=0, help="Of every system. Default: each endpoint's own, "
                                                      "greedy for models on chips.")] = None,
    thinking: Annotated[bool, typer.Option(help="Let local models reason first.")] = False,
    parallel: Annotated[int, typer.Option(min=1, help="Requests under way at once to one endpoint.")] = 8,
    price: Annotated[list[str] | None, typer.Option(help="SYSTEM=IN/OUT, USD for a million tokens; may be given for "
                                                    "several systems.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Ask every system the same questions; show shares, differences and relative scores with their intervals.

    Keys are read from OPENAI_API_KEY and ANTHROPIC_API_KEY. Replies are kept: none is asked, or paid, for twice.
    Example: [bold]anychip eval anthropic:claude-opus-4-6 nano@cpu --task arithmetic[/bold]
    """
    from ..errors import InputError
    from ..eval.replies import Replies
    from ..eval.report import rows, sentence, table
    from ..eval.run import TaskRun, run_task
    from ..eval.systems import Ask, open_system
    from ..eval.tasks import find_task

    if len(set(systems)) < len(systems):
        raise InputError(f"each system can be given once; given were {', '.join(systems)}")
    tasks = [find_task(name.strip(), tasks_folder).first(limit) for name in task.split(",")]
    prices = _prices(price or [], systems)
    replies = Replies(out / REPLIES)
    runs: list[TaskRun] = []
    for name in systems:
        system = open_system(name, Ask(max_tokens, temperature, thinking), _key, parallel)
        try:
            for each in tasks:
                with progress_bar(f"{name}: {each.name}") as advance:
                    runs.append(run_task(system, each, replies, advance))
        finally:
            system.close()
    found = rows(runs, systems[0], prices)
    if as_json:
        print_json(found)
        return
    from rich.console import Console

    Console().print(table(found))
    names = ", ".join(each.name for each in tasks)
    for row in found:
        if row.get("relative") and (row["task"] == "all" or len(tasks) == 1):
            typer.echo(sentence(row, names))


def _key(provider: str) -> str | None:
    return os.environ.get(f"{provider.upper()}_API_KEY") or None


def _prices(given: list[str], systems: list[str]) -> dict[str, tuple[float, float]]:
    """Read --price. Raises InputError for anything else than SYSTEM=IN/OUT of a system that is asked."""
    from ..errors import InputError

    found = {}
    for text in given:
        name, _, amounts = text.rpartition("=")
        try:
            dollars_in, dollars_out = (float(part) for part in amounts.split("/"))
        except ValueError as error:
            raise InputError(f"--price {text!r}: write SYSTEM=IN/OUT, e.g. openai:gpt-5=1.25/10") from error
        if name not in systems:
            raise InputError(f"--price names {name!r}, which is not asked; systems are {', '.join(systems)}")
        found[name] = dollars_in, dollars_out
    return found
