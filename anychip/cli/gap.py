"""`anychip gap`: the same model, weights and tokens on two chips, and how far apart they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .terminal import print_json, progress_bar, stderr

if TYPE_CHECKING:
    from ..gap.bundle import Bundle
    from ..gap.gates import Gate
    from ..gap.subject import Subject


def gap(
    bundles: Annotated[list[Path] | None, typer.Argument(help="Two recorded bundles, or two training runs' folders, "
                                                              "to compare.")] = None,
    model: Annotated[str, typer.Option(help="nano, or the folder of a checkpoint or a training run.")] = "nano",
    chips: Annotated[str | None, typer.Option(help="Two chips to run here, reference first: a,b.")] = None,
    record: Annotated[Path | None, typer.Option(help="Run --chip and write this bundle instead.")] = None,
    chip: Annotated[str | None, typer.Option(help="The chip that --record runs.")] = None,
    text: Annotated[Path | None, typer.Option(help="A .txt or .jsonl file instead of the shipped text.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the training steps' weights and batches.")] = 0,
    level: Annotated[str, typer.Option(help="Levels to run, of: op,layer,model,train,quality,speed.")] = (
        "op,layer,model,train,quality,speed"),
    fail_if: Annotated[list[str] | None, typer.Option(
        "--fail-if", help="Exit with 1 where this holds, e.g. 'kl>0.001'; may be repeated. Figures: faults, op, layer, "
        "kl, top1, loss, training, quality, speed.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report here (default: gap.html).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Compare two chips on the same weights and tokens; or record one chip's run; or compare two recordings.

    Example: [bold]anychip gap --model nano --chips cpu,virtual:ascend910b[/bold]
    On two machines: [bold]anychip gap --record a.gap --chip cuda[/bold], then [bold]anychip gap a.gap b.gap[/bold]
    Two training runs, loss for loss, with speed and reliability: [bold]anychip gap RUN_A RUN_B[/bold]
    """
    from ..gap.bundle import Bundle
    from ..gap.gates import parse_gates
    from ..gap.load import load_subject
    from ..gap.record import choose_levels
    from ..gap.runs import compare_runs, runs_text
    from ..gap.subject import Settings

    if bundles and len(bundles) == 2 and all(path.is_dir() for path in bundles):
        found_runs = compare_runs(bundles[0], bundles[1])
        print_json(found_runs) if as_json else typer.echo(runs_text(found_runs, (bundles[0], bundles[1])))
        return
    names, levels, gates = _check(bundles, chips, record, chip), choose_levels(level), parse_gates(fail_if or [])
    if bundles:
        _report((Bundle.load(bundles[0]), Bundle.load(bundles[1])), gates, html, as_json)
        return
    subject = load_subject(model, text, Settings(seed=seed))
    found = _record_all(subject, names, levels, record or html or Path("gap.html"))
    if record is not None:
        found[0].save(record)
        stderr().print(f"wrote {record} ({names[0]}); compare it with another chip's: anychip gap {record} OTHER.gap")
    else:
        _report((found[0], found[1]), gates, html, as_json)


def _check(bundles: list[Path] | None, chips: str | None, record: Path | None, chip: str | None) -> list[str]:
    """Return the chips to run. Raises InputError where the options ask for no or two different things."""
    from ..errors import InputError

    asked = [bool(bundles), chips is not None, record is not None]
    if sum(asked) != 1:
        raise InputError("say one of: two chips (--chips a,b), a recording (--record FILE --chip NAME), or two "
                         "bundles (anychip gap A.gap B.gap)")
    if bundles:
        if len(bundles) != 2:
            raise InputError(f"{len(bundles)} bundles were given; a comparison takes two")
        return []
    if record is not None:
        if chip is None:
            raise InputError("--record needs the chip to run: --chip NAME (`anychip chips` lists them)")
        return [chip]
    names = [name.strip() for name in (chips or "").split(",") if name.strip()]
    if len(names) != 2:
        raise InputError(f"--chips {chips!r} names {len(names)} chips; two are compared, reference first: --chips a,b")
    return names


def _record_all(subject: Subject, names: list[str], levels: tuple[str, ...], output: Path) -> list[Bundle]:
    """Record every chip's run, after all chips have opened and the output's folder is known to be writable."""
    from ..chips import open_chip
    from ..gap.bundle import check_writable
    from ..gap.proof import Reference
    from ..gap.record import LEVELS, record

    check_writable(output)
    reference, sections = Reference(subject), sum(len(LEVELS[level]) for level in levels)
    opened, found = [open_chip(name) for name in names], []
    with progress_bar("running", sections * len(opened)) as advance:
        for i, device in enumerate(opened):
            done = iter(range(sections * i, sections * (i + 1)))

            def tell(section: str, name: str = device.name, done: object = done) -> None:
                advance(next(done), sections * len(opened), f"{name}: {section}")  # type: ignore[call-overload]

            found.append(record(reference, device, tell, levels))
    return found


def _report(pair: tuple[Bundle, Bundle], gates: list[Gate], html: Path | None, as_json: bool) -> None:
    """Write and print the comparison; exit with 1 where a gate fails."""
    from rich.console import Console

    from ..gap.compare import compare
    from ..gap.report import print_report, to_json, write_html

    comparison = compare(*pair)
    failed = [wrong for gate in gates if (wrong := gate.fails(comparison))]
    path = html or Path("gap.html")
    write_html(comparison, path)
    if as_json:
        print_json(to_json(comparison))
    else:
        print_report(comparison, Console())
    stderr().print(f"report: {path}")
    for wrong in failed:
        stderr().print(f"failed: {wrong}", markup=False)
    if failed:
        raise typer.Exit(1)
