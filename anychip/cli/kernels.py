"""`anychip kernels`: the suite and its state on each chip; `anychip kernels check`: kernels on the virtual Ascend."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .terminal import CHECK_FAILED, print_json, progress_bar, stderr, working

if TYPE_CHECKING:
    from ..ascend.check import Checked, Settings
    from ..ascend.pool import Task
    from ..kernels.example import Kernel

LISTED = ("ascend910b", "ascend910c", "ascend950")
SUITE = "anychip.kernels.suite"


def build() -> typer.Typer:
    """Return the command with its one subcommand."""
    app = typer.Typer(invoke_without_command=True, rich_markup_mode="rich", help=show.__doc__)
    app.callback()(show)
    app.command("check")(check)
    return app


def show(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the suite of kernels, and what the last check of each said on each chip.

    Example: [bold]anychip kernels[/bold]; to check them: [bold]anychip kernels check[/bold]
    """
    if context.invoked_subcommand is not None:
        return
    from ..ascend.records import state

    rows = [{"kernel": kernel.name, "place": _place(kernel), "examples": [e.name for e in kernel.examples],
             "chips": {chip: state(kernel, chip) for chip in LISTED}} for kernel in _suite()]
    if as_json:
        print_json(rows)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("kernel", "examples", *LISTED)
    for row in rows:
        states = [str(row["chips"][chip]) for chip in LISTED]  # type: ignore[index]
        table.add_row(str(row["kernel"]), str(len(row["examples"])), *(_coloured(s) for s in states))  # type: ignore[arg-type]
    Console().print(table)
    if any("not checked" in row["chips"].values() for row in rows):  # type: ignore[attr-defined]
        typer.echo("to check them: anychip kernels check --target " + ",".join(LISTED))


def check(
    files: Annotated[list[Path] | None, typer.Argument(help="Python files with kernels and examples. "
                                                            "Default: the suite.")] = None,
    target: Annotated[str, typer.Option(help="Chips, by comma: ascend910b, ascend950, or a compiler's name "
                                             "(Ascend910B4).")] = "ascend910b",
    kernel: Annotated[str | None, typer.Option(help="Only the kernels of these names, by comma.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Processes. Default: one a core; 0: none but this one, for a "
                                                  "debugger.")] = None,
    limit: Annotated[float, typer.Option(help="Seconds that one check may take.")] = 120.0,
    seed: Annotated[int, typer.Option(help="Seed of the examples' inputs.")] = 0,
    level: Annotated[str, typer.Option(help="Precision level of the Ascend standard 2.1: L0, L1 or L2.")] = "L1",
    html: Annotated[Path | None, typer.Option(help="Write a report here.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Write a Perfetto trace of each check into this folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Compile, execute, check and time kernels on virtual Ascend chips. Exits with 1 where one does not pass.

    Example: [bold]anychip kernels check my_kernels.py --target ascend910b,ascend950[/bold]
    """
    from ..ascend.check import Settings
    from ..ascend.machine import library
    from ..ascend.pool import run_tasks, warm_up

    start = time.perf_counter()
    chips = _chips(target)
    processes = _check_options(level, jobs, limit)
    if processes:
        warm_up([] if files else [SUITE])
    with working("building the virtual Ascend's machine (once)"):
        library()
    if trace is not None:
        trace.mkdir(parents=True, exist_ok=True)
    broken, found = _kernels(files)
    tasks = _tasks(found, chips, kernel, Settings(seed, level, trace))
    with progress_bar("checking", len(tasks)) as advance:
        count = iter(range(1, len(tasks) + 1))
        results = run_tasks(tasks, processes, limit,
                            lambda task, _: advance(next(count), len(tasks), f"{task.kernel} on {task.target}"))
    if not files:
        _remember(found, results)
    _report([*broken, *results], time.perf_counter() - start, html, as_json)


def _chips(target: str) -> list[str]:
    from ..ascend.targets import find_target
    from ..ascend.toolchain import find_toolchain
    from ..errors import InputError

    names = [name.strip().removeprefix("virtual:") for name in target.split(",") if name.strip()]
    if not names:
        raise InputError("--target names no chip; say for instance --target ascend910b,ascend950")
    for name in names:
        find_target(name)
    find_toolchain()
    return list(dict.fromkeys(names))


def _check_options(level: str, jobs: int | None, limit: float) -> int:
    """Return the number of processes. Raises InputError for options outside their range."""
    from ..ascend.precision import LEVELS
    from ..errors import InputError

    if level not in LEVELS:
        raise InputError(f"--level {level!r} is none of {', '.join(LEVELS)}")
    if jobs is not None and jobs < 0:
        raise InputError(f"--jobs {jobs} must be at least 0 (0: in this process)")
    if limit <= 0:
        raise InputError(f"--limit {limit:g} must be more than 0 seconds")
    return len(os.sched_getaffinity(0)) if jobs is None else jobs


def _kernels(files: list[Path] | None) -> tuple[list[Checked], list[tuple[str | Path, Kernel]]]:
    """The kernels asked for, each with where it is loaded from; a file that does not run is a result of its own."""
    from ..ascend.check import Checked
    from ..errors import InputError, KernelError
    from ..kernels.example import find_kernels

    if not files:
        return [], [(kernel.fn.fn.__module__, kernel) for kernel in _suite()]
    broken, found = [], []
    for path in files:
        try:
            kernels = find_kernels(path)
        except KernelError as error:
            broken.append(Checked(path.name, "", "", str(path), "error", str(error), error.kind, error.place))
            continue
        if not kernels:
            raise InputError(f"{path} has no @triton.jit function with an example; write @example(inputs) above "
                             "@triton.jit (see docs/kernels.md)")
        found += [(path.resolve(), kernel) for kernel in kernels]
    return broken, found  # type: ignore[return-value]


def _suite() -> list[Kernel]:
    from importlib import import_module
    from importlib.util import find_spec

    from ..ascend.toolchain import INSTALL
    from ..errors import NotSupported

    if find_spec("triton") is None:
        raise NotSupported(f"the kernels are written in Triton, which is not installed: {INSTALL} for Ascend, "
                           "pip install 'anychip[cuda]' for NVIDIA")
    return list(import_module(SUITE).suite())


def _tasks(found: list[tuple[str | Path, Kernel]], chips: list[str], names: str | None,
           settings: Settings) -> list[Task]:
    from ..ascend.pool import Task
    from ..errors import InputError, nearest

    asked = {name.strip() for name in names.split(",")} if names else {kernel.name for _, kernel in found}
    known = {kernel.name for _, kernel in found}
    if unknown := sorted(asked - known):
        raise InputError(f"there is no kernel {unknown[0]!r}.{nearest(unknown[0], known)} There are "
                         f"{', '.join(sorted(known))}")
    return [Task(source, kernel.name, example.name, chip, settings) for chip in chips for source, kernel in found
            if kernel.name in asked for example in kernel.examples]


def _remember(found: list[tuple[str | Path, Kernel]], results: list[Checked]) -> None:
    from ..ascend.records import remember

    examples = {(kernel.name, example.name): (kernel, example) for _, kernel in found for example in kernel.examples}
    for checked in results:
        remember(*examples[checked.kernel, checked.example], checked)


def _report(results: list[Checked], wall_s: float, html: Path | None, as_json: bool) -> None:
    from ..ascend import report
    from ..gap.bundle import write_whole

    if html is not None:
        write_whole(html, report.render(results, wall_s).encode())
        stderr().print(f"report: {html}")
    if as_json:
        print_json(report.to_json(results, wall_s))
    else:
        _print(results, wall_s)
    raise typer.Exit(0 if all(c.status == "pass" for c in results) else CHECK_FAILED)


def _print(results: list[Checked], wall_s: float) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    from ..ascend import report

    table = Table(*(Column(name, no_wrap=True) for name in report.COLUMNS))
    for checked in results:
        cells = list(report.row(checked))
        cells[3] = _coloured(cells[3])
        table.add_row(*cells)
    console = Console()
    # A log is no terminal and has no width of its own: names stay whole there.
    (console if console.is_terminal else Console(width=200)).print(table)
    for checked in results:
        for problem in report.problems(checked):
            typer.echo(f"\n{checked.kernel} {checked.example} on {checked.target or 'every chip'}: {problem}")
    passed = sum(c.status == "pass" for c in results)
    typer.echo(f"\n{passed} of {len(results)} checks pass; {wall_s:.1f} s. Times in the table are simulated, "
               "errors emulated.")


def _coloured(word: str) -> str:
    colour = {"pass": "green", "FAIL": "red", "ERROR": "red"}.get(word, "yellow")
    return f"[{colour}]{word}[/{colour}]"


def _place(kernel: Kernel) -> str:
    from ..ascend.diagnose import definition

    path, line = definition(kernel.fn)
    return f"{path}:{line}"
