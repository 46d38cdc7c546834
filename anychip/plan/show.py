"""Plans on a terminal: one table each, times simulated, published figures with their source."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from .constants import constants
from .fit import Fit
from .kernels import SOURCES
from .memory import TrainMemory
from .pools import Pools
from .search import Found
from .serve import ServePlan
from .train import TrainPlan
from .validate import GROUPS, TARGETS, Judged, Validation


def show_fits(fits: Sequence[Fit], console: Console) -> None:
    """Print one line a weight format, then why each does not fit or what it needs."""
    first = fits[0]
    console.print(f"[bold]{first.model}[/bold] on {first.cluster.describe()}, "
                  f"{first.cluster.facts.memory_bytes / 2**30:g} GiB a device, cache {first.serving.cache} "
                  "(GB a device, bytes counted; reserves are guesses); @: sequences of that context in all",
                  highlight=False)
    contexts = [context for context in first.sequences if context in (4096, 131072, 1048576)]
    lengths = ("@1M" if n == 2**20 else f"@{n // 1024}K" for n in contexts)
    table = Table(*(Column(name, no_wrap=True, justify="right") for name in (
        "weights", "fits", "TP", "experts", "others", "buffers", "free", *lengths)),
        box=SIMPLE_HEAD, pad_edge=False)
    for fit in fits:
        parts = fit.parts
        buffers = sum(parts.values()) - parts["routed experts"] - parts["other weights"]
        table.add_row(fit.serving.weights, "[green]yes[/green]" if fit.fits else "[red]no[/red]",
                      str(fit.serving.tensor), *(f"{value / 1e9:.1f}" for value in
                        (parts["routed experts"], parts["other weights"], buffers, fit.free)),
                      *(str(fit.sequences[context]) for context in contexts))
    console.print(table)
    for fit in fits:
        for note in fit.notes:
            console.print(f"{fit.serving.weights}: {note}", markup=False, highlight=False)


def show_train(plan: TrainPlan, memory: TrainMemory, found: Found | None, console: Console,
               ours: TrainPlan | None = None) -> None:
    """Print a training plan: speed, where the time goes, memory, and what the search left out; `ours` is the same step
    with this project's kernels."""
    console.print(f"[bold]{plan.model}[/bold] on {plan.cluster.describe()}: {plan.job.sequences} x {plan.job.length} "
                  f"tokens a step, {plan.job.precision}\nlayout {plan.parallel.describe()}", highlight=False)
    table = Table("simulated", Column("value", justify="right"))
    table.add_row("step", f"{plan.step_s:.4g} s")
    if ours is not None:
        table.add_row("step with this project's kernels (virtual Ascend)", f"{ours.step_s:.4g} s")
    table.add_row("tokens/s", f"{plan.tokens_per_s:,.0f}")
    table.add_row("tokens/s a device", f"{plan.tokens_per_s_device:,.1f}")
    table.add_row("model FLOP/s over bf16 peak", f"{100 * plan.mfu:.1f} %")
    table.add_row("fullest expert rank over the mean", f"{plan.load:.2f}")
    for name, value in plan.parts_s.items():
        table.add_row(f"  {name}", f"{value:.4g} s ({100 * value / plan.step_s:.1f} %)")
    for name, value in memory.parts.items():
        table.add_row(f"  memory: {name}", f"{value / 1e9:.2f} GB")
    table.add_row("memory a device", f"{memory.total / 1e9:.1f} of {memory.available / 1e9:.1f} GB"
                  + ("" if memory.fits else "  DOES NOT FIT"))
    console.print(table)
    console.print(f"op times: {SOURCES[plan.job.op_times]}", highlight=False)
    if found is not None:
        left = ", ".join(f"{count:,} {why}" for why, count in found.left_out.items())
        console.print(f"{found.examined:,} layouts examined: {left}", highlight=False)
        for other in found.others:
            console.print(f"  next: {other.parallel.describe()}: {100 * (other.step_s / plan.step_s - 1):+.1f} % time",
                          highlight=False)


def show_serve(plans: Sequence[ServePlan], console: Console) -> None:
    """Print passes side by side."""
    console.print(f"[bold]{plans[0].model}[/bold] on {plans[0].cluster.describe()}, weights "
                  f"{plans[0].serving.weights}, cache {plans[0].serving.cache}", highlight=False)
    table = Table("simulated", *(Column(f"{p.task} ({p.cluster.count} devices)", justify="right") for p in plans))
    table.add_row("tokens/s a device", *(f"{p.tokens_per_s_device:,.1f}" for p in plans))
    table.add_row("tokens/s", *(f"{p.tokens_per_s:,.0f}" for p in plans))
    table.add_row("step", *(f"{1e3 * p.step_s:.2f} ms" for p in plans))
    table.add_row("between tokens (prefill: a pass)", *(f"{1e3 * p.token_s:.2f} ms" for p in plans))
    for name in plans[0].parts_s:
        table.add_row(f"  {name}", *(f"{1e3 * p.parts_s.get(name, 0.0):.2f} ms" for p in plans))
    console.print(table)


def show_pools(pools: Pools, console: Console) -> None:
    """Print two pools and what users see."""
    show_serve((pools.prefill, pools.decode), console)
    seen = pools.seen
    console.print(
        f"{pools.prefill_devices} devices prefill, {pools.decode_devices} decode: {pools.requests_per_s:.2f} "
        f"requests/s, {pools.answer_tokens_per_s:,.0f} answer tokens/s\nat {100 * pools.busy:g} % of that (simulated, "
        f"{seen.requests} requests): first token {seen.first_s[0]:.2f} s (median), {seen.first_s[1]:.2f} s (99 of 100);"
        f" between tokens {1e3 * seen.token_s[0]:.1f} ms, {1e3 * seen.token_s[1]:.1f} ms", highlight=False)


def show_validation(found: Validation, console: Console, *, rows: bool = True) -> None:
    """Print every row with its error, the rows that cannot be modelled, the constants, and the groups' errors."""
    if rows:
        for group in GROUPS:
            _show_group(group, found.of(group), console)
    if found.unusable:
        table = Table(Column("not modelled", no_wrap=True), "reason", title=f"{len(found.unusable)} rows not modelled")
        for row, reason in found.unusable:
            table.add_row(row["id"], reason[:200])
        console.print(table)
    c = constants()
    table = Table("constant", Column("value", justify="right"), Column("fitted on", justify="right"), "meaning",
                  title="constants, and how many rows each was fitted on (--json and constants.toml name them)")
    for name, constant in c.by_name.items():
        on = len(c.fitted_on(name))
        table.add_row(name, f"{constant.value:.4g}", f"{on} rows" if on else "not fitted", constant.meaning)
    console.print(table)
    table = Table("group", "rows", "median |error|", "90 of 100 below", "held out: median", "90 of 100", "target")
    for group in GROUPS:
        count, median, high = found.summary(group)
        held = found.summary(group, held_out=True)
        target = TARGETS.get(group)
        table.add_row(group, str(count), f"{100 * median:.1f} %", f"{100 * high:.1f} %",
                      f"{100 * held[1]:.1f} %" if held[0] else "", f"{100 * held[2]:.1f} %" if held[0] else "",
                      f"{100 * target[0]:g} / {100 * target[1]:g} %" if target else "")
    console.print(table)


def _show_group(group: str, judged: Sequence[Judged], console: Console) -> None:
    if not judged:
        return
    numbers = (Column(name, justify="right") for name in ("predicted", "published", "error", "held out"))
    table = Table(Column("row", no_wrap=True), *numbers, "unit", "planned as", title=group)
    for j in judged:
        table.add_row(j.row["id"], f"{j.predicted:,.4g}", f"{j.published:,.4g}", f"{100 * j.error:+.1f} %",
                      "" if j.held_out is None else f"{100 * j.held_out:+.1f} %", j.row["unit"], j.note)
    console.print(table)
