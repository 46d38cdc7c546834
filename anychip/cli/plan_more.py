"""`anychip plan`'s other commands: reliability and expect; and two runs compared in time, money and failures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .terminal import print_json, working

if TYPE_CHECKING:
    from ..plan.failures import FailureRate
    from ..plan.page import Section
    from ..plan.reliability import RatePoint, Reliability
    from ..plan.train import TrainPlan

CHIPS = typer.Option(help="COUNTxCHIP, e.g. 64xascend910c (a 910C card is two), or a cluster's .toml file.")
JSON = typer.Option("--json", help="Print JSON instead of tables.")


def compare_runs(plans: Sequence[TrainPlan], tokens: float, *, quiet: bool) -> dict[str, Any]:
    """Time, money, energy and failures of training `tokens` by each plan, and the second against the first."""
    from ..plan.cost import Spent, compare, cost_of
    from ..plan.failures import rate_of_chip

    spent = []
    for plan in plans:
        seconds = tokens / plan.tokens_per_s
        rate = rate_of_chip(plan.cluster.facts.name)
        failures = None if rate is None else 86400 / rate.mtbf_s(plan.cluster.count)
        cost = cost_of(plan.cluster.facts, seconds / 3600 * plan.cluster.count)
        spent.append(Spent(f"{plan.cluster.count} x {plan.cluster.facts.name}", seconds / 3600, failures, cost))
    document: dict[str, Any] = {"tokens": tokens, "runs": []}
    for one in spent:
        price = one.cost.price
        document["runs"].append({
            "cluster": one.name, "days": one.hours / 24, "device_hours": one.cost.device_hours,
            "money": one.cost.money, "currency": price.currency if price else None,
            "price_source": price.source if price else "unknown", "energy_kwh": one.cost.energy_kwh,
            "power": one.cost.power_source, "failures_per_day": one.failures_per_day, "kind": "simulated"})
        if not quiet:
            typer.echo(_run_text(one, tokens))
    if len(spent) == 2:
        sentence = compare(spent[0], spent[1]).sentence()
        document["answer"] = sentence
        if not quiet:
            typer.echo(sentence)
    return document


def write_report(plans: Sequence[TrainPlan], optimizer: str, answer: str, path: Path) -> None:
    """Write the plans' page, with the memory of each."""
    from ..plan.memory import train_memory
    from ..plan.models import find_model
    from ..plan.page import TRAINING, train_section

    sections = [train_section(plan, train_memory(find_model(plan.model), plan.cluster, plan.parallel, plan.job,
                                                 optimizer)) for plan in plans]
    write_sections(plans[0].model, sections, path, answer=answer, group=TRAINING)


def write_sections(title: str, sections: Sequence[Section], path: Path, *, answer: str = "", group: str = "") -> None:
    """Write a page of sections and say where."""
    from ..plan.page import write_page
    from .terminal import stderr

    write_page(title, sections, path, answer=answer, group=group)
    stderr().print(f"wrote {path}")


def _run_text(one: Any, tokens: float) -> str:
    money = "unknown price" if one.cost.money is None else (
        f"{one.cost.money[0]:,.0f} to {one.cost.money[1]:,.0f} {one.cost.price.currency}")
    energy = "unknown power" if one.cost.energy_kwh is None else (
        f"{one.cost.energy_kwh:,.0f} kWh ({one.cost.power_source})")
    failures = "failure rate unknown" if one.failures_per_day is None else f"{one.failures_per_day:.2g} failures a day"
    return (f"{tokens:.3g} tokens on {one.name}: {one.hours / 24:,.1f} days without failures, "
            f"{one.cost.device_hours:,.0f} device hours, {money}, {energy}, {failures} (simulated)")


def reliability(
    chips: Annotated[str, CHIPS],
    days: Annotated[float, typer.Option(help="Days of training, failures not counted.")] = 30.0,
    rate: Annotated[str | None, typer.Option(
        help="Failures per 1,000 node-days, or a published rate's name; the chip's own if published.")] = None,
    interval_s: Annotated[float | None, typer.Option(help="Between checkpoints; the best if not given.")] = None,
    stall_s: Annotated[float, typer.Option(help="Training stops so long for a checkpoint.")] = 5.0,
    write_s: Annotated[float, typer.Option(help="Until a checkpoint is durable.")] = 60.0,
    detect_s: Annotated[float, typer.Option(help="Until a failure is noticed.")] = 60.0,
    restart_s: Annotated[float, typer.Option(help="From then until the job runs again.")] = 300.0,
    spare_nodes: Annotated[int | None, typer.Option(help="Nodes that stand ready; unlimited if not given.")] = None,
    trials: Annotated[int, typer.Option(help="Simulated runs.")] = 400,
    html: Annotated[Path | None, typer.Option(help="Write a page with the run and other rates here.")] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Simulate failures of a long run: effective training time with its interval, and the best checkpoint interval.

    Example: [bold]anychip plan reliability --chips 16384xh100 --days 54[/bold]
    """
    from dataclasses import replace

    from ..plan.cluster import parse_cluster
    from ..plan.failures import find_rate, rate_of_chip
    from ..plan.page import reliability_sections
    from ..plan.reliability import (
        ReliabilityJob,
        best_interval_s,
        daly_interval_s,
        rate_sensitivity,
        simulate_run,
        young_interval_s,
    )

    cluster = parse_cluster(chips)
    known = find_rate(rate) if rate is not None else rate_of_chip(cluster.facts.name)
    found = None
    with working("simulating runs"):
        if known is not None:
            job = ReliabilityJob(cluster.count, days * 86400, known, interval_s, stall_s, write_s, detect_s, restart_s,
                                 spare_nodes)
            best = best_interval_s(job) if interval_s is None else interval_s
            found = simulate_run(replace(job, interval_s=best), trials=trials)
        points = rate_sensitivity(cluster.count, days * 86400) if known is None or html or as_json else []
    if html is not None:
        write_sections("reliability", reliability_sections(found, points, cluster.facts.name), html)
    document: dict[str, Any] = {"chip": cluster.facts.name, "rate": "unknown"}
    if known is not None and found is not None:
        intervals = {"Young": young_interval_s(stall_s, job.mtbf_s), "Daly": daly_interval_s(stall_s, job.mtbf_s),
                     "used": best}
        document |= _reliability_json(found, known, intervals)
        if not as_json:
            _print_reliability(found, known, intervals)
    elif not as_json:
        _print_sensitivity(points, cluster.facts.name)
    if as_json:
        print_json({**document, "sensitivity": [_point_json(point) for point in points]})


def _reliability_json(found: Reliability, rate: FailureRate, intervals: dict[str, float]) -> dict[str, Any]:
    return {"devices": found.job.devices, "rate": {"name": rate.name, "per_1000_node_days": rate.per_1000_node_days,
                                                   "source": rate.source},
            "mean_time_between_failures_h": found.job.mtbf_s / 3600, "interval_s": intervals,
            "effective": vars(found.effective), "wall_h": vars(found.wall_h),
            "failures_per_day": vars(found.failures_per_day), "lost_h": found.lost_h, "trials": found.trials,
            "kind": "simulated"}


def _print_reliability(found: Reliability, rate: FailureRate, intervals: dict[str, float]) -> None:
    effective, failures = found.effective, found.failures_per_day
    typer.echo(f"{found.job.devices:,} devices at {rate.per_1000_node_days:.3g} failures per 1,000 node-days "
               f"({rate.source})")
    typer.echo(f"one failure every {found.job.mtbf_s / 3600:.2f} h; checkpoints every {intervals['used']:.0f} s (Young "
               f"{intervals['Young']:.0f} s, Daly {intervals['Daly']:.0f} s)")
    typer.echo(f"effective training time {100 * effective.mean:.1f} % [{100 * effective.low:.1f}, "
               f"{100 * effective.high:.1f}], {failures.mean:.2f} failures a day [{failures.low:.2f}, "
               f"{failures.high:.2f}], {found.wall_h.mean:.0f} h in all (simulated, {found.trials} runs)")
    for cause, hours in found.lost_h.items():
        typer.echo(f"  lost to {cause}: {hours:.1f} h")


def _point_json(point: RatePoint) -> dict[str, Any]:
    return {"per_1000_node_days": point.per_1000_node_days, "failures_per_day": point.failures_per_day.mean,
            "effective": point.effective.mean, "low": point.effective.low, "high": point.effective.high,
            "kind": "simulated"}


def _print_sensitivity(points: Sequence[RatePoint], chip: str) -> None:
    """The chip's rate is not published: what each possible rate would mean."""
    typer.echo(f"the failure rate of {chip} is unknown: nobody published one. Give yours with --rate; what each would "
               "mean (simulated):")
    for point in points:
        bar = "#" * round(40 * point.effective.mean)
        failures, effective = point.failures_per_day.mean, 100 * point.effective.mean
        typer.echo(f"  {point.per_1000_node_days:5g} per 1,000 node-days: {failures:7.2f} failures a day, effective "
                   f"{effective:5.1f} % {bar}")


def expect(
    model: Annotated[str, typer.Argument(help="As for the other commands.")],
    chips: Annotated[str, CHIPS],
    mine: Annotated[float, typer.Option(help="Your tokens a second of one device.")],
    task: Annotated[str, typer.Option(help="train, decode or prefill.")] = "decode",
    weights: Annotated[str, typer.Option(help="bf16, fp8, fp4, w8a8, w4a8 (decode, prefill).")] = "w8a8",
    cache: Annotated[str, typer.Option(help="fp8, int8, bf16.")] = "bf16",
    tensor: Annotated[int, typer.Option(help="Tensor parallelism of attention.")] = 1,
    sequences: Annotated[int, typer.Option(help="In flight on all devices (decode).")] = 64,
    context: Annotated[int, typer.Option(help="Tokens before the decoded one, or of a prompt.")] = 4096,
    layout: Annotated[str | None, typer.Option(help="The layout trained with; the best if not given.")] = None,
    precision: Annotated[str, typer.Option(help="Of training: bf16, fp8, fp4.")] = "bf16",
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Place your own measured speed: roofline bound, planned range, best published run, likeliest causes.

    Example: [bold]anychip plan expect v4-flash --chips 16xascend910c --sequences 256 --mine 812[/bold]
    """
    from ..errors import InputError
    from ..plan.cluster import parse_cluster
    from ..plan.expect import HEURISTIC
    from ..plan.expect import expect as place
    from ..plan.fit import Serving
    from ..plan.layout_text import complete_layout, parse_layout
    from ..plan.models import find_model
    from ..plan.parallel import Parallel
    from ..plan.search import search_layouts
    from ..plan.serve import Traffic, plan_decode, plan_prefill
    from ..plan.train import TrainJob, plan_train

    if mine <= 0:
        raise InputError(f"--mine {mine}: give tokens a second of one device, above 0")
    cluster, found_model, serving = parse_cluster(chips), find_model(model), Serving(weights, cache, tensor)
    plan: Any
    if task == "decode":
        plan = plan_decode(found_model, cluster, serving, Traffic(sequences, context))
    elif task == "prefill":
        plan = plan_prefill(found_model, cluster, serving, context, 8192)
    elif task == "train":
        job = TrainJob(max(2**22 // context, cluster.count), context, precision)
        if layout is None:
            plan = search_layouts(found_model, cluster, job).best
        else:
            p = Parallel(**complete_layout(parse_layout(layout), cluster.count))  # type: ignore[arg-type]
            plan = plan_train(found_model, cluster, p, job)
    else:
        raise InputError(f"--task {task!r}: choose train, decode or prefill")
    found = place(plan, mine)
    best = found.published
    document = {"mine": mine, "unit": "tokens/s a device", "verdict": found.verdict, "causes": list(found.causes),
                "causes_kind": HEURISTIC,
                "roofline_bound": {"value": found.bound, "kind": "simulated"},
                "planned": {"value": found.planned, "low": found.low, "high": found.high, "kind": "simulated"},
                "best_published": None if best is None else {"value": best.tokens_per_s_device, "kind": "published",
                                                             "id": best.row["id"], "source": best.row["source"]}}
    if as_json:
        print_json(document)
        return
    typer.echo(f"yours: {mine:,.1f} tokens/s a device: {found.verdict}")
    typer.echo(f"  roofline bound {found.bound:,.0f}; planned {found.planned:,.0f} [{found.low:,.0f}, "
               f"{found.high:,.0f}] (simulated)")
    typer.echo("  best published: none for this model and chip" if best is None else
               f"  best published {best.tokens_per_s_device:,.0f}: {best.row['id']}, {best.row['source']}")
    for number, cause in enumerate(found.causes, 1):
        typer.echo(f"  possible cause {number}: {cause}")
    if found.causes:
        typer.echo(f"  the causes are {HEURISTIC}")
