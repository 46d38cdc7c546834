"""The gap report as one HTML file: inline style and plots, no scripts, nothing fetched, all text escaped."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from ...record import Kind, Quantity
from ..bundle import write_whole
from ..compare import Comparison
from ..proof import EXPLAINED
from . import plots
from .verdict import beyond, headline, verdicts
from .words import (
    MEANINGS,
    TAGS,
    chip_names,
    coarser_format,
    command,
    equal_tokens,
    interval,
    limits_note,
    number,
    row_note,
    row_unit,
    seconds,
    visible,
)

NEAREST = 12  # hard cases that the page lists


def _near(row: dict[str, Any]) -> float:
    return float(row["error"] / row["allowed"])


def write_html(comparison: Comparison, path: str | Path) -> None:
    """Write the report to `path`, whole or not at all. Raises InputError where it cannot be written."""
    write_whole(Path(path), render(comparison).encode())


def render(comparison: Comparison) -> str:
    """Return the report's page."""
    return page_environment().get_template("report.html.j2").render(_page(comparison))


def page_environment() -> jinja2.Environment:
    """Return the environment of the report's templates: everything is escaped, an unknown name is an error."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader(__package__, "."), autoescape=True, trim_blocks=True,
                                     lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(visible=visible, number=number, quantity=quantity)
    return environment


def quantity(value: Quantity | None, unit: str | None = None) -> Markup:
    """Return a number with its kind's tag, its unit unless `unit` says it, and its interval; empty for None."""
    if value is None:
        return Markup('<span class="none" title="this chip has no such number">\u2013</span>')
    if value.value is None:
        return Markup('<span class="none">unknown</span>')
    shown = f"\u00a0{value.unit}" if value.unit and value.unit != unit else ""
    spread = interval(value)
    text = Markup('<span class="q">{}{}\u00a0<abbr class="{}" title="{}: {}">{}</abbr></span>').format(
        number(value.value), shown, value.kind.value, value.kind.value, MEANINGS[value.kind], TAGS[value.kind])
    return text + Markup(' <span class="ci">{}</span>').format(spread) if spread else text


def _page(comparison: Comparison) -> dict[str, Any]:
    names = chip_names(comparison)
    format_name = coarser_format(comparison)
    return {
        "c": comparison, "names": names, "format": format_name, "headline": headline(comparison),
        "verdicts": verdicts(comparison), "legend": [(kind.value, TAGS[kind], MEANINGS[kind]) for kind in Kind],
        "is_quantity": lambda part: isinstance(part, Quantity), "row_note": row_note, "row_unit": row_unit,
        "equal_tokens": equal_tokens, "hard_cases": sorted(comparison.hard_cases, key=_near, reverse=True)[:NEAREST],
        "seconds": lambda row: seconds(row["time_s"], Kind.SIMULATED),
        "share": lambda row: Quantity(100 * row["share"], "%", Kind.SIMULATED),
        "limits": [limits_note(limits) for limits in comparison.limits], "command": command(comparison),
        "bounds": [(name, number(value)) for name, value in EXPLAINED.items()],
        "beyond": lambda row: beyond(row, comparison.explained_layers),
        "generation": [row | {"a": _parted(row["a"], row["b"]), "b": _parted(row["b"], row["a"])}
                       for row in comparison.generation],
        "plots": {name: Markup(svg) for name, svg in _plots(comparison, names, format_name).items()},
    }


def _plots(comparison: Comparison, names: tuple[str, str], format_name: str) -> dict[str, str]:
    drawn: dict[str, dict[str, Callable[[], str]]] = {
        "op": {"ops": lambda: plots.ops_plot(comparison, format_name)},
        "layer": {"layers": lambda: plots.layers_plot(comparison, format_name)},
        "model": {"kl": lambda: plots.kl_plot(comparison)},
        "train": {"losses": lambda: plots.losses_plot(comparison, names)},
        "speed": {"training": lambda: plots.costliest_plot(comparison.costliest, names, "training"),
                  "decode": lambda: plots.costliest_plot(comparison.costliest_decode, names, "decode")},
    }
    return {name: draw() for level in comparison.levels for name, draw in drawn.get(level, {}).items()}


def _parted(text: str, other: str) -> Markup:
    """The text with all that follows its common start with `other` marked."""
    same = len(os.path.commonprefix([text, other]))
    rest = Markup("<mark>{}</mark>").format(visible(text[same:])) if text[same:] else Markup("")
    return escape(visible(text[:same])) + rest
