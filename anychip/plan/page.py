"""A plan as one HTML page that needs nothing else: tables with bars, and the pipeline drawn."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from .memory import TrainMemory
from .simulate import Timeline
from .train import TrainPlan
from .validate import GROUPS, validate

_COLOURS = {"F": "#4477aa", "B": "#ee8866", "b": "#ee8866", "w": "#44aa77"}
_MOST_TASKS = 4000  # drawn: a browser shows more of them slowly, a reader not at all


def write_page(plans: Sequence[TrainPlan], memories: Sequence[TrainMemory], answer: str, path: Path) -> None:
    """Write the page of one plan, or of two compared; `answer` is the comparison's sentence, or empty."""
    import jinja2
    import markupsafe

    text = (files("anychip.plan") / "page.html.j2").read_text(encoding="utf-8")
    drawings = [markupsafe.Markup(draw(plan.timeline)) if plan.timeline and plan.parallel.pipeline > 1 else ""
                for plan in plans]
    error = validate(folds=0, trace=False).summary(GROUPS[0])[1:]
    page = jinja2.Environment(autoescape=True).from_string(text).render(
        plans=plans, memories=memories, answer=answer, drawings=drawings, error=error)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)


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
