"""`anychip plan`: will it fit, how fast, what does it cost, how often does it break; and how wrong the plans are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .terminal import CHECK_FAILED, Commands, print_json, working

if TYPE_CHECKING:
    from ..plan.cluster import Cluster
    from ..plan.models import Model
    from ..plan.search import Found
    from ..plan.train import TrainJob, TrainPlan

MODEL = typer.Argument(help="v4-flash, v4-pro, another preset, a config.json, or a published model (deepseek-v3, ...).")
CHIPS = typer.Option(help="COUNTxCHIP, e.g. 64xascend910c (a 910C card is two), or a cluster's .toml file.")
JSON = typer.Option("--json", help="Print JSON instead of tables.")
OP_TIMES = typer.Option(help="published (constants fitted on published runs), or kernels (Ascend, bf16: this project's "
                             "own, timed on the virtual chip).")


def build() -> typer.Typer:
    """Return the `plan` command with its subcommands."""
    from .plan_more import expect, reliability

    app = typer.Typer(cls=Commands, no_args_is_help=True, rich_markup_mode="rich",
                      help="Will it fit, how fast is it, what does it cost, how often does it break?")
    for command in (fit, train, serve, reliability, validate, expect):
        app.command(command.__name__)(command)
    return app


def fit(
    model: Annotated[str, MODEL],
    chips: Annotated[str, CHIPS],
    weights: Annotated[str | None, typer.Option(help="Only this format: bf16, fp8, fp4, w8a8, w4a8.")] = None,
    cache: Annotated[str, typer.Option(help="Format of the cache: fp8, int8, bf16.")] = "fp8",
    tensor: Annotated[int | None, typer.Option(help="Tensor parallelism of attention; the best if not given.")] = None,
    chunk: Annotated[int, typer.Option(help="The most new tokens of one pass.")] = 4096,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Answer whether a model's weights and caches fit, per weight format, and what to change if not.

    Example: [bold]anychip plan fit v4-flash --chips 8x910b4_32g[/bold]
    """
    from dataclasses import replace

    from rich.console import Console

    from ..plan.as_json import fit_json
    from ..plan.cluster import parse_cluster
    from ..plan.fit import fit_formats, fit_serving
    from ..plan.formats import find_format
    from ..plan.models import find_model
    from ..plan.show import show_fits

    cluster, found_model = parse_cluster(chips), find_model(model)
    if weights is not None:
        find_format(weights)
    fits = [answer for answer in fit_formats(found_model, cluster, cache, chunk)
            if weights in (None, answer.serving.weights)]
    if tensor is not None:
        fits = [fit_serving(found_model, cluster, replace(answer.serving, tensor=tensor)) for answer in fits]
    if as_json:
        print_json([fit_json(answer) for answer in fits])
    else:
        show_fits(fits, Console())
    if not any(answer.fits for answer in fits):
        raise typer.Exit(CHECK_FAILED)


def train(
    model: Annotated[str, MODEL],
    chips: Annotated[str, CHIPS],
    batch: Annotated[int, typer.Option(help="Tokens of a step.")] = 2**24,
    length: Annotated[int, typer.Option(help="Tokens of a sequence.")] = 4096,
    precision: Annotated[str | None, typer.Option(help="bf16, fp8, fp4; the lowest of bf16, fp8 the chip has.")] = None,
    layout: Annotated[str | None, typer.Option(help="e.g. 'TP4 PP8 EP32 MBS1'; searched if not given.")] = None,
    fix: Annotated[str | None, typer.Option(help="Degrees that the search keeps, e.g. 'EP32'.")] = None,
    optimizer: Annotated[str, typer.Option(help="muon or adamw.")] = "muon",
    balanced: Annotated[bool, typer.Option(help="Take the experts as evenly loaded.")] = False,
    why_not: Annotated[str | None, typer.Option(help="Explain why not these degrees, e.g. 'EP16'.")] = None,
    vs: Annotated[str | None, typer.Option(help="A second cluster to compare with, e.g. 64xh100.")] = None,
    tokens: Annotated[float, typer.Option(help="Tokens of the whole run, for time and money.")] = 1e12,
    op_times: Annotated[str, OP_TIMES] = "published",
    trace: Annotated[Path | None, typer.Option(help="Write the step's Chrome trace here.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with the plans here.")] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Plan a training step: the best layout or a given one, where its time goes, and its memory.

    Example: [bold]anychip plan train v4-flash --chips 512xascend910c --vs 512xh100[/bold]
    """
    from ..plan.cluster import parse_cluster
    from ..plan.models import find_model
    from ..plan.train import TrainJob, global_batch
    from .plan_more import compare_runs, write_report

    found_model = find_model(model)
    planned = []
    for text in (chips, *((vs,) if vs else ())):
        cluster = parse_cluster(text)
        job = TrainJob(global_batch(batch, length), length, precision or _usual_precision(cluster), balanced,
                       op_times=op_times)
        planned.append(_plan(found_model, cluster, job, (layout, fix, optimizer)))
    documents = [_report_train(plan, found, optimizer, (why_not, found_model), as_json) for plan, found in planned]
    plans = [plan for plan, _ in planned]
    compared = compare_runs(plans, tokens, quiet=as_json)
    if trace is not None:
        _write_trace(plans[0], trace)
    if html is not None:
        write_report(plans, optimizer, compared.get("answer", ""), html)
    if as_json:
        print_json({"plans": documents, "run": compared})


def _usual_precision(cluster: Cluster) -> str:
    return "fp8" if "fp8" in cluster.facts.formats else "bf16"


def _plan(model: Model, cluster: Cluster, job: TrainJob, how: tuple[str | None, str | None, str]
          ) -> tuple[TrainPlan, Found | None]:
    """The plan of a given layout, or the search's best."""
    from ..plan.layout_text import complete_layout, parse_layout
    from ..plan.parallel import Parallel
    from ..plan.search import search_layouts
    from ..plan.train import plan_train

    layout, fix, optimizer = how
    if layout is not None:
        p = Parallel(**complete_layout(parse_layout(layout), cluster.count))  # type: ignore[arg-type]
        return plan_train(model, cluster, p, job), None
    with working("searching layouts"):
        found = search_layouts(model, cluster, job, fixed=parse_layout(fix or ""), optimizer=optimizer)
    return found.best, found


def _report_train(plan: TrainPlan, found: Found | None, optimizer: str, asked: tuple[str | None, Model],
                  as_json: bool) -> dict[str, object]:
    from rich.console import Console

    from ..plan.as_json import number, ops_json, train_json
    from ..plan.layout_text import parse_layout
    from ..plan.memory import train_memory
    from ..plan.search import why_not as explain
    from ..plan.show import show_train
    from ..plan.sources import train_ops, with_kernels

    change, model = asked
    memory = train_memory(model, plan.cluster, plan.parallel, plan.job, optimizer)
    document = train_json(plan, memory, found) | {"op_times": ops_json(train_ops(plan, model))}
    ours = with_kernels(plan, model)
    if ours is not None:
        document["step_with_kernels"] = number(ours.step_s, "s")
    if not as_json:
        show_train(plan, memory, found, Console(), ours)
    if change and found is not None:
        document["why_not"] = explain(found, model, **parse_layout(change))
        if not as_json:
            typer.echo(f"why not {document['why_not']}")
    return document


def _write_trace(plan: TrainPlan, path: Path) -> None:
    from ..plan.simulate import write_chrome_trace
    from .terminal import stderr

    assert plan.timeline is not None
    write_chrome_trace(plan.timeline, path)
    stderr().print(f"wrote {path}: open it at https://ui.perfetto.dev")


def serve(
    model: Annotated[str, MODEL],
    chips: Annotated[str, CHIPS],
    weights: Annotated[str, typer.Option(help="bf16, fp8, fp4, w8a8, w4a8.")] = "fp4",
    cache: Annotated[str, typer.Option(help="Format of the cache: fp8, int8, bf16.")] = "fp8",
    tensor: Annotated[int, typer.Option(help="Tensor parallelism of attention.")] = 1,
    prompt: Annotated[int, typer.Option(help="Tokens of a prompt.")] = 4096,
    answer: Annotated[int, typer.Option(help="Tokens of an answer.")] = 1024,
    hit: Annotated[float, typer.Option(help="Share of a prompt that is cached.")] = 0.0,
    drafts: Annotated[int, typer.Option(help="Tokens drafted a step by the MTP block.")] = 1,
    accepted: Annotated[float, typer.Option(help="Drafted tokens accepted a step, on average.")] = 0.7,
    token_ms: Annotated[float, typer.Option(help="The longest time between a user's tokens.")] = 50.0,
    sequences: Annotated[int | None, typer.Option(help="Plan one decode step of so many instead of two pools.")] = None,
    op_times: Annotated[str, OP_TIMES] = "published",
    vs: Annotated[str | None, typer.Option(help="A second cluster to compare with.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with the plans here.")] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Plan serving: prefill and decode pools that meet a latency, tokens a second, what users see.

    Example: [bold]anychip plan serve v4-flash --chips 64xascend910c --weights w8a8 --token-ms 50[/bold]
    """
    from rich.console import Console

    from ..plan.as_json import pools_json, serve_json
    from ..plan.cluster import parse_cluster
    from ..plan.fit import Serving
    from ..plan.models import find_model
    from ..plan.page import SERVING, pools_sections, serve_section
    from ..plan.pools import Request, plan_pools
    from ..plan.serve import Traffic, plan_decode
    from ..plan.show import show_pools, show_serve
    from .plan_more import write_sections

    found_model, serving = find_model(model), Serving(weights, cache, tensor, op_times=op_times)
    documents, sections = [], []
    for text in (chips, *((vs,) if vs else ())):
        cluster = parse_cluster(text)
        if sequences is not None:
            traffic = Traffic(sequences, prompt + answer // 2, drafts, accepted)
            plan = plan_decode(found_model, cluster, serving, traffic)
            documents.append(serve_json(plan))
            sections.append(serve_section(plan))
            if not as_json:
                show_serve([plan], Console())
            continue
        pools = plan_pools(found_model, cluster, serving, Request(prompt, answer, hit, drafts, accepted),
                           token_s=token_ms / 1e3)
        documents.append(pools_json(pools))
        sections += pools_sections(pools)
        if not as_json:
            show_pools(pools, Console())
    if html is not None:
        write_sections(found_model.name, sections, html, group=SERVING)
    if as_json:
        print_json(documents)


def validate(
    rows: Annotated[Path | None, typer.Option(help="A CSV file with published.csv's columns.")] = None,
    held_out: Annotated[bool, typer.Option(help="Also fit without each fold and predict it.")] = True,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Predict every published run and print the error of each; exits with 1 where a target is missed.

    Example: [bold]anychip plan validate --json[/bold]
    """
    from rich.console import Console

    from ..plan.as_json import validation_json
    from ..plan.show import show_validation
    from ..plan.validate import FOLDS, TARGETS
    from ..plan.validate import validate as judge

    with working("predicting published runs"):
        found = judge(rows, folds=FOLDS if held_out else 0)
    if as_json:
        print_json(validation_json(found))
    else:
        show_validation(found, Console())
    summaries = [(group, found.summary(group, held_out=out)) for group in TARGETS for out in (False, held_out)]
    missed = [group for group, (count, median, high) in summaries
              if count and (median > TARGETS[group][0] or high > TARGETS[group][1])]
    if missed:
        raise typer.Exit(CHECK_FAILED)
