"""`anychip gap`: the same model, weights and tokens on two chips, and how far apart they are; or a matrix."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .gap_matrix import Beside, check_prices, read_beside, report_matrix, run_grid
from .terminal import print_json, progress_bar, stderr

if TYPE_CHECKING:
    from ..gap.bundle import Bundle
    from ..gap.gates import Gate
    from ..gap.subject import Subject


def gap(
    bundles: Annotated[list[Path] | None, typer.Argument(help="Two recorded bundles, or two training runs' folders, "
                                                              "to compare; more bundles make a matrix.")] = None,
    model: Annotated[str, typer.Option(help="nano, a small preset (random weights), or the folder of a checkpoint or a "
                                            "training run; several make a matrix: a,b.")] = "nano",
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
    keep: Annotated[Path | None, typer.Option(help="Matrix: keep each run in this folder, and take up those that lie "
                                                   "there.")] = None,
    evals: Annotated[list[Path] | None, typer.Option("--eval", help="Matrix: the output of `anychip eval --json` to "
                                                     "stand beside; may be repeated.")] = None,
    serving: Annotated[list[str] | None, typer.Option(help="Matrix: MODEL@CHIP=FILE, the output of `anychip bench "
                                                           "serve` or `anychip soak`; may be repeated.")] = None,
    price: Annotated[list[str] | None, typer.Option(help="Matrix: CHIP=USD an hour, instead of the published rent; may "
                                                         "be repeated.")] = None,
    plan: Annotated[int, typer.Option(min=0, help="Matrix: what so many devices of each chip are expected to serve, by "
                                                  "`anychip plan`.")] = 0,
    html: Annotated[Path | None, typer.Option(help="Write the report here (default: gap.html).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Compare two chips on the same weights and tokens; or record one chip's run; or compare two recordings.

    Example: [bold]anychip gap --model nano --chips cpu,virtual:ascend910b[/bold]
    On two machines: [bold]anychip gap --record a.gap --chip cuda[/bold], then [bold]anychip gap a.gap b.gap[/bold]
    Models and chips: [bold]anychip gap --model nano,qwen3-moe-nano --chips cpu,virtual:ascend910b[/bold]
    Two training runs, loss for loss, with speed and reliability: [bold]anychip gap RUN_A RUN_B[/bold]
    """
    from ..gap.gates import parse_gates
    from ..gap.load import load_subject
    from ..gap.record import choose_levels
    from ..gap.runs import compare_runs, runs_text
    from ..gap.subject import Settings

    if bundles and len(bundles) == 2 and all(path.is_dir() for path in bundles):
        found_runs = compare_runs(bundles[0], bundles[1])
        print_json(found_runs) if as_json else typer.echo(runs_text(found_runs, (bundles[0], bundles[1])))
        return
    beside = read_beside(evals, serving, price, plan)
    names, levels, gates = _check(bundles, chips, record, chip), choose_levels(level), parse_gates(fail_if or [])
    models, page = _names(model), html or Path("gap.html")
    if bundles:
        _report_bundles(bundles, beside, gates, page, as_json)
        return
    several = len(models) > 1 or len(names) != 2 or bool(beside) or keep is not None
    _check_models(models, names, record, several)
    check_prices(beside, names)
    subjects = [load_subject(name, text, Settings(seed=seed)) for name in models]
    if record is None and several:
        report_matrix(run_grid(subjects, names, levels, keep), beside, gates, page, as_json=as_json)
        return
    found = _record_all(subjects[0], names, levels, record or page)
    if record is not None:
        found[0].save(record)
        stderr().print(f"wrote {record} ({names[0]}); compare it with another chip's: anychip gap {record} OTHER.gap")
    else:
        _report((found[0], found[1]), gates, page, as_json)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _check(bundles: list[Path] | None, chips: str | None, record: Path | None, chip: str | None) -> list[str]:
    """Return the chips to run. Raises InputError where the options ask for no or two different things."""
    from ..errors import InputError

    asked = [bool(bundles), chips is not None, record is not None]
    if sum(asked) != 1:
        raise InputError("say one of: two chips (--chips a,b), a recording (--record FILE --chip NAME), or two "
                         "bundles (anychip gap A.gap B.gap)")
    if bundles:
        if len(bundles) < 2:
            raise InputError("1 bundle was given; a comparison takes two or more")
        return []
    if record is not None:
        if chip is None:
            raise InputError("--record needs the chip to run: --chip NAME (`anychip chips` lists them)")
        return [chip]
    return _names(chips or "")


def _check_models(models: list[str], chips: list[str], record: Path | None, several: bool) -> None:
    """Raise InputError where there is nothing to compare, or one is named twice in a matrix."""
    from ..errors import InputError

    if not models:
        raise InputError("--model names no model")
    if record is not None:
        if len(models) > 1:
            raise InputError(f"--record runs one model on one chip; --model names {len(models)}: record each")
        return
    if len(models) * len(chips) < 2:
        raise InputError(f"--chips names {len(chips)} chips for {len(models)} model: two are compared, reference "
                         "first: --chips a,b, or two models on one chip: --model a,b --chips c")
    twice = [name for names in (models, chips) for name in names if names.count(name) > 1]
    if several and twice:
        raise InputError(f"{twice[0]!r} is named twice; name each model and chip of a matrix once")


def _report_bundles(paths: list[Path], beside: Beside, gates: list[Gate], page: Path, as_json: bool) -> None:
    """Two recordings of one model are compared; others, or with something to stand beside, make a matrix."""
    from ..gap.bundle import Bundle
    from ..gap.matrix import from_bundles

    found = [Bundle.load(path) for path in paths]
    models, chips = ({str(bundle.about[name]) for bundle in found} for name in ("model", "chip"))
    if len(found) == 2 and not beside and not (len(models) == 2 and len(chips) == 1):
        _report((found[0], found[1]), gates, page, as_json)
    else:
        report_matrix(from_bundles(found), beside, gates, page, as_json=as_json)


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


def _report(pair: tuple[Bundle, Bundle], gates: list[Gate], path: Path, as_json: bool) -> None:
    """Write and print the comparison; exit with 1 where a gate fails."""
    from rich.console import Console

    from ..gap.compare import compare
    from ..gap.report import print_report, to_json, write_html

    comparison = compare(*pair)
    failed = [wrong for gate in gates if (wrong := gate.fails(comparison))]
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
