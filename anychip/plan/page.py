"""Plans as one HTML page that needs nothing else: figures, tables with bars, the pipeline or a curve drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from .memory import TrainMemory
from .pools import Pools
from .reliability import RatePoint, Reliability
from .serve import ServePlan
from .simulate import Timeline
from .train import TrainPlan
from .validate import GROUPS, validate

_COLOURS = {"F": "#4477aa", "B": "#ee8866", "b": "#ee8866", "w": "#44aa77"}
_MOST_TASKS = 4000  # drawn: a browser shows more of them slowly, a reader not at all
TRAINING, SERVING = GROUPS[0], GROUPS[2]  # the published rows whose error a page tells
_BAR = 240.0  # pixels of a bar that is all


@dataclass(frozen=True)
class Bars:
    """A table of parts: (name, value as text, share of the whole)."""

    title: str
    rows: Sequence[tuple[str, str, float]]
    total: str = ""


@dataclass(frozen=True)
class Section:
    """One plan on the page: what was asked, its figures, where time and bytes go, and a drawing (SVG) with its words.
    """

    title: str
    asked: str
    figures: Mapping[str, str]
    bars: Sequence[Bars] = field(default=())
    drawing: str = ""
    drawn: str = ""


def write_page(title: str, sections: Sequence[Section], path: Path, *, answer: str = "", group: str = "") -> None:
    """Write the page. `answer` is a sentence over all plans; `group` the published rows whose error is told."""
    import jinja2
    import markupsafe

    text = (files("anychip.plan") / "page.html.j2").read_text(encoding="utf-8")
    error = validate(folds=0, trace=False).summary(group) if group else None
    page = jinja2.Environment(autoescape=True).from_string(text).render(
        title=title, sections=sections, answer=answer, error=error, group=group, bar=_BAR,
        drawings=[markupsafe.Markup(section.drawing) for section in sections])
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)


def train_section(plan: TrainPlan, memory: TrainMemory) -> Section:
    """Return a training step's section, with the pipeline where there is one."""
    asked = (f"{plan.job.sequences} x {plan.job.length} tokens a step, {plan.job.precision}, layout "
             f"{plan.parallel.describe()}")
    figures = {"step": f"{plan.step_s:.4g} s", "tokens/s": f"{plan.tokens_per_s:,.0f}",
               "tokens/s a device": f"{plan.tokens_per_s_device:,.1f}",
               "model FLOP/s over bf16 peak": f"{100 * plan.mfu:.1f} %"}
    held = Bars("Memory of a device", [(name, f"{value / 1e9:.2f} GB", value / memory.available)
                                       for name, value in memory.parts.items()],
                f"{memory.total / 1e9:.1f} of {memory.available / 1e9:.1f} GB")
    drawn = plan.timeline is not None and plan.parallel.pipeline > 1
    return Section(plan.cluster.describe(), asked, figures, (_seconds("Where the step goes", plan), held),
                   draw(plan.timeline) if drawn and plan.timeline else "",
                   "The pipeline (first tasks). Blue: forward; orange: backward; green: gradients of weights")


def serve_section(plan: ServePlan) -> Section:
    """Return the section of one decode or prefill pass."""
    asked = (f"{plan.task}, weights {plan.serving.weights}, cache {plan.serving.cache}, attention over "
             f"{plan.serving.tensor} device(s)")
    figures = {"tokens/s a device": f"{plan.tokens_per_s_device:,.1f}", "tokens/s": f"{plan.tokens_per_s:,.0f}",
               "step": f"{1e3 * plan.step_s:.2f} ms", "largest part": plan.bound,
               "between tokens" if plan.task == "decode" else "to the first token": f"{1e3 * plan.token_s:.2f} ms"}
    return Section(f"{plan.task}: {plan.cluster.describe()}", asked, figures, (_seconds("Where a pass goes", plan),))


def pools_sections(pools: Pools) -> list[Section]:
    """Return the sections of two pools: what users see, then each pool."""
    seen = pools.seen
    figures = {"requests/s": f"{pools.requests_per_s:.2f}", "answer tokens/s": f"{pools.answer_tokens_per_s:,.0f}",
               "first token, median and 99 of 100": f"{seen.first_s[0]:.2f} s, {seen.first_s[1]:.2f} s",
               "between tokens, median and 99 of 100":
                   f"{1e3 * seen.token_s[0]:.1f} ms, {1e3 * seen.token_s[1]:.1f} ms"}
    asked = f"seen at {100 * pools.busy:g} % of the full rate, {seen.requests} simulated requests"
    whole = Section(f"{pools.prefill_devices} devices prefill, {pools.decode_devices} decode", asked, figures)
    return [whole, serve_section(pools.prefill), serve_section(pools.decode)]


def reliability_sections(found: Reliability | None, points: Sequence[RatePoint], chip: str) -> list[Section]:
    """Return what a run loses at its rate (None: the chip's rate is unknown), and the curve over rates."""
    sections = []
    if found is not None:
        hours = found.wall_h.mean
        figures = {"effective training time": f"{100 * found.effective.mean:.1f} % [{100 * found.effective.low:.1f}, "
                                              f"{100 * found.effective.high:.1f}]",
                   "failures a day": f"{found.failures_per_day.mean:.2f}", "hours in all": f"{hours:,.0f}"}
        lost = Bars("Hours lost", [(cause, f"{lost:.1f} h", lost / hours) for cause, lost in found.lost_h.items()])
        sections.append(Section(f"{found.job.devices:,} x {chip}", f"{found.job.rate.per_1000_node_days:.3g} failures "
                                f"per 1,000 node-days ({found.job.rate.source})", figures, (lost,)))
    known = "what other rates would mean" if found else f"the failure rate of {chip} is unknown: nobody published one"
    rows = [(f"{p.per_1000_node_days:g} per 1,000 node-days", f"{100 * p.effective.mean:.1f} %, "
             f"{p.failures_per_day.mean:.2f} failures a day", p.effective.mean) for p in points]
    sections.append(Section("Sensitivity to the failure rate", known, {}, (Bars("Effective training time", rows),),
                            draw_rates(points), "Effective training time over the rate (logarithmic), with the range "
                                                "that holds 95 of 100 runs"))
    return sections


def _seconds(title: str, plan: TrainPlan | ServePlan) -> Bars:
    unit, scale = ("s", 1.0) if plan.step_s > 1 else ("ms", 1e3)
    return Bars(title, [(name, f"{scale * value:.4g} {unit}", value / plan.step_s)
                        for name, value in plan.parts_s.items()])


def draw(timeline: Timeline) -> str:
    """Return the timeline as SVG: a row a rank, a rectangle a task."""
    spans = sorted(timeline.spans, key=lambda span: span.start_s)[:_MOST_TASKS]
    end, ranks = max(span.end_s for span in spans), max(span.rank for span in spans) + 1
    width, height = 1000.0, 14.0
    boxes = []
    for span in spans:
        share = len(span.task.units)
        for place, (kind, _, i) in enumerate(span.task.units):
            x, box = width * span.start_s / end, width * (span.end_s - span.start_s) / end
            y = height * (span.rank + place / share)
            boxes.append(f'<rect x="{x:.2f}" y="{y:.2f}" width="{max(box - 0.3, 0.2):.2f}" '
                         f'height="{height / share - 1:.1f}" fill="{_COLOURS[kind]}">'
                         f"<title>micro-batch {i}</title></rect>")
    return (f'<svg viewBox="0 0 {width:.0f} {height * ranks:.0f}" role="img" aria-label="pipeline">'
            f'{"".join(boxes)}</svg>')


def draw_rates(points: Sequence[RatePoint]) -> str:
    """Return effective training time over the failure rate as SVG: the mean's line in the band of 95 of 100 runs."""
    left, right = (math.log(points[i].per_1000_node_days) for i in (0, -1))

    def at(rate: float, value: float) -> str:
        return f"{60 + 900 * (math.log(rate) - left) / (right - left):.1f},{220 - 200 * value:.1f}"

    mean = " ".join(at(p.per_1000_node_days, p.effective.mean) for p in points)
    band = " ".join([*(at(p.per_1000_node_days, p.effective.high) for p in points),
                     *(at(p.per_1000_node_days, p.effective.low) for p in reversed(points))])
    labels = "".join(f'<text x="{at(p.per_1000_node_days, 0).split(",")[0]}" y="236" text-anchor="middle">'
                     f"{p.per_1000_node_days:g}</text>" for p in points)
    levels = "".join(f'<line x1="60" x2="960" y1="{220 - 200 * y}" y2="{220 - 200 * y}" stroke="#ccc"/><text x="52" '
                     f'y="{224 - 200 * y}" text-anchor="end">{100 * y:.0f} %</text>' for y in (0.0, 0.5, 1.0))
    return (f'<svg viewBox="0 0 1000 240" role="img" aria-label="effective time over rate" font-size="12" '
            f'fill="currentColor">{levels}{labels}<polygon points="{band}" fill="#4477aa" opacity="0.3"/>'
            f'<polyline points="{mean}" fill="none" stroke="#4477aa" stroke-width="2"/></svg>')
