"""The report's plots as SVG that lives inside an HTML page: text stays text, colours are the page's CSS variables.

Drawn at 440 units' width so that the labels stay readable on a phone. Chip A is solid with circles, chip B dashed
with squares; bars beyond a limit are hatched: nothing is told by colour alone.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ...record import Kind, Quantity
from ..compare import Comparison
from ..row import Row
from .words import number, seconds, visible

WIDTH_IN, POINTS_PER_IN = 6.1, 72
BAR_IN = 0.25  # height of one horizontal bar with its gap
KL_BINS = 8
# Stand-in colours that only plots use; `_inline` turns each into a CSS variable of the page.
INK, CHIP_A, CHIP_B, GAP, LIMIT, GRID = "#010203", "#010204", "#010205", "#010206", "#010207", "#010208"
_VARIABLES = {INK: "--ink", CHIP_A: "--chip-a", CHIP_B: "--chip-b", GAP: "--gap", LIMIT: "--limit", GRID: "--line"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "anychip", "font.size": 11, "axes.titlesize": 11, "axes.labelsize": 11,
    "xtick.labelsize": 10, "ytick.labelsize": 10, "legend.fontsize": 10, "text.color": INK, "axes.labelcolor": INK,
    "axes.edgecolor": GRID, "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "text.parse_math": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.6, "hatch.color": INK,
    "hatch.linewidth": 0.6, "legend.frameon": False, "lines.linewidth": 1.6, "axes.axisbelow": True,
}


def ops_plot(comparison: Comparison, explained_by: str) -> str:
    """Return horizontal bars, largest first: each op's difference between the chips on a log axis."""
    rows = comparison.ops

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        values = [_value(row) for row in rows]
        floor = _floor([*values, comparison.explained])
        beyond = [not value <= comparison.explained for value in values]
        for i, (value, out) in enumerate(zip(values, beyond, strict=True)):
            drawn = math.isfinite(value) and value > 0
            if drawn:
                axes.barh(i, value - floor, left=floor, height=0.62, color=GAP, hatch="////" if out else "",
                          edgecolor=INK if out else GAP, linewidth=0.6)
            axes.text(max(value, floor) * 1.15 if drawn else floor * 1.15, i, number(value), va="center", fontsize=9)
        axes.axvline(comparison.explained, color=LIMIT, linestyle="--", linewidth=1.4)
        axes.set_xscale("log")
        top = max([comparison.explained, *(v for v in values if math.isfinite(v))])
        axes.set(xlim=(floor, top * 12), ylim=(len(rows) - 0.4, -1.5), xlabel="relative rms difference, B from A")
        side = -1 if top > 20 * comparison.explained else 1
        axes.annotate(f"{explained_by} explains {number(comparison.explained)}", (comparison.explained, -1.0),
                      (5 * side, 0), textcoords="offset points", va="center", fontsize=9,
                      ha="left" if side > 0 else "right")
        axes.set_yticks(range(len(rows)), [visible(row.name) for row in rows])
        axes.grid(False, axis="y")

    return _svg(draw, 0.9 + BAR_IN * (len(rows) + 1), "ops", "Difference of each op between the chips, log scale")


def layers_plot(comparison: Comparison, explained_by: str) -> str:
    """Return a line over the layers on a log axis; layers that are exactly equal stand at the foot as triangles."""
    rows = comparison.layers

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        values = [_value(row) for row in rows]
        floor = _floor([*values, comparison.explained_layers])
        shown = [(i, value) for i, value in enumerate(values) if math.isfinite(value) and value > 0]
        axes.plot([i for i, _ in shown], [value for _, value in shown], color=GAP, marker="o", markersize=5)
        for i, value in enumerate(values):
            if value == 0:
                axes.plot(i, floor * 1.25, color=GAP, marker="v", markersize=6)
                axes.text(i, floor * 1.6, "0, equal", ha="left", fontsize=9)
            elif not math.isfinite(value):
                axes.text(i, floor * 1.3, number(value), ha="center", fontsize=10)
        axes.axhline(comparison.explained_layers, color=LIMIT, linestyle="--", linewidth=1.4)
        said = f"{explained_by} explains {number(comparison.explained_layers)}"
        axes.text(len(rows) - 0.6, comparison.explained_layers * 1.12, said, ha="right", va="bottom", fontsize=9)
        axes.set_yscale("log")
        top = max([comparison.explained_layers, *(v for v in values if math.isfinite(v))])
        axes.set(ylim=(floor, top * 3), xlim=(-0.4, len(rows) - 0.6), ylabel="relative rms, B from A")
        step = max(1, len(rows) // 8)
        names = [visible(row.name).removeprefix("layers.") for row in rows]
        axes.set_xticks(range(0, len(rows), step), names[::step])
        axes.set_xlabel("layer")

    return _svg(draw, 3.1, "layers", "Difference of the residual streams after each layer, log scale")


def kl_plot(comparison: Comparison) -> str:
    """Return dots of KL by position on a log axis, and their mean over stretches of the text."""
    pairs = list(zip(comparison.kl_positions, comparison.kl_by_position, strict=True))
    shown = [(x, y) for x, y in pairs if math.isfinite(y) and y > 0]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        if shown:
            axes.scatter([x for x, _ in shown], [y for _, y in shown], s=9, color=GAP, alpha=0.55, linewidths=0,
                         label="one position")
            means = _stretch_means(shown)
            axes.plot([x for x, _ in means], [y for _, y in means], color=INK, marker="D", markersize=4.5,
                      linestyle="-", label="mean of a stretch")
            axes.set_yscale("log")
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=2)
        else:
            axes.set(xticks=[], yticks=[])
        hidden = len(pairs) - len(shown)
        if hidden:
            axes.text(0.99, 0.03, f"not drawn: {hidden} of {len(pairs)}, which are 0, below it by rounding, or NaN",
                      ha="right", transform=axes.transAxes, fontsize=9)
        axes.set(xlabel="position in the text", ylabel="KL(A, B), nats")

    return _svg(draw, 3.1, "kl", "KL divergence by position in the text, log scale")


def losses_plot(comparison: Comparison, names: tuple[str, str]) -> str:
    """Return both chips' losses over the steps, mean and range over the seeds, and under them B less A by seed."""
    assert comparison.train is not None
    a, b = (np.array(side) for side in comparison.train.losses)
    steps = range(1, a.shape[1] + 1)

    def draw(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        every = max(1, a.shape[1] // 10)
        styles = ((CHIP_A, "o", "-", 0), (CHIP_B, "s", "--", every // 2))
        for side, letter, name, (colour, marker, line, start) in zip((a, b), "AB", names, styles, strict=True):
            upper.plot(steps, side.mean(0), color=colour, marker=marker, markersize=5, markevery=(start, every),
                       linestyle=line, label=f"{letter} {_short(name)}")
            upper.fill_between(steps, side.min(0), side.max(0), color=colour, alpha=0.15, linewidth=0)
        upper.legend(loc="upper right")
        upper.set_ylabel("nats/token")
        for seed, delta in enumerate(b - a):
            lower.plot(steps, delta, color=GAP, linewidth=1.6 if not seed else 0.9, alpha=1.0 if not seed else 0.6)
        lower.axhline(0, color=INK, linewidth=0.8)
        lower.set(xlim=(0.5, a.shape[1] + 0.5), xlabel="training step", ylabel="B less A")

    return _svg(draw, 4.1, "losses", "Training loss of both chips step by step, and their difference")


def costliest_plot(pair: Sequence[Sequence[dict[str, Any]]], names: tuple[str, str], what: str) -> str:
    """Return bars of the costliest ops, one panel a chip: share of the step, the time written beside each."""
    counts = [max(1, len(rows)) for rows in pair]

    def panel(axes: Axes, rows: Sequence[dict[str, Any]], colour: str, title: str) -> None:
        axes.set_title(title, loc="left")
        if not rows:
            axes.text(0.0, 0.5, "unknown: no facts describe this chip", transform=axes.transAxes, va="center")
            axes.axis("off")
            return
        for i, row in enumerate(rows):
            share, time = 100 * row["share"], seconds(row["time_s"], Kind.SIMULATED)
            axes.barh(i, share, height=0.62, color=colour)
            axes.annotate(f"{number(time.value)} {time.unit}", (share, i), (4, 0), textcoords="offset points",
                          va="center", fontsize=9)
        axes.set_yticks(range(len(rows)), [f"{visible(row['op'])} \u00d7{row['calls']}" for row in rows])
        axes.set(ylim=(len(rows) - 0.4, -0.6))
        axes.grid(False, axis="y")

    def draw(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=counts)
        for axes, rows, colour, letter, name in zip((upper, lower), pair, (CHIP_A, CHIP_B), "AB", names, strict=True):
            panel(axes, rows, colour, f"{letter} {_short(name)}: {what} step")
        widest = max((100 * row["share"] for rows in pair for row in rows), default=1.0)
        lower.set(xlim=(0, widest * 1.3), xlabel="share of the step, % (simulated)")

    return _svg(draw, 1.6 + BAR_IN * sum(counts), what, f"Costliest ops of a {what} step on each chip, simulated")


def _stretch_means(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    size = max(1, -(-len(pairs) // KL_BINS))
    parts = [pairs[i : i + size] for i in range(0, len(pairs), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _value(row: Row) -> float:
    quantity: Quantity | None = row.gap
    return math.nan if quantity is None or quantity.value is None else quantity.value


def _floor(values: Sequence[float]) -> float:
    """The left end of a log axis: a decade's start below the smallest value above zero."""
    smallest = min(value for value in values if math.isfinite(value) and value > 0)
    return float(10.0 ** math.floor(math.log10(smallest) - 0.3))


def _short(name: str) -> str:
    shown = visible(name)
    return shown if len(shown) <= 40 else shown[:39] + "\u2026"


def _svg(draw: Callable[[Figure], None], height_in: float, name: str, title: str) -> str:
    """Run `draw` on a new figure and return it as one <svg> element for the page."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        draw(figure)
        for axes in figure.axes:
            _plain_log_ticks(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), name, title)


def _plain_log_ticks(axes: Axes) -> None:
    """Label powers of ten as 1e-3: mathtext would need glyphs that are drawn, not written."""
    for axis, scale in ((axes.xaxis, axes.get_xscale()), (axes.yaxis, axes.get_yscale())):
        if scale == "log":
            low, high = sorted(axis.get_view_interval())
            if high < 100 * low:
                axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-")))
            axis.set_minor_formatter(NullFormatter())


def _inline(svg: str, name: str, title: str) -> str:
    """Strip what only a separate file needs, make ids the page's own, and name colours by CSS variable."""
    svg = svg[svg.index("<svg"):]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<svg [^>]*?viewBox=(\"[^\"]*\")[^>]*>",
                 rf'<svg viewBox=\1 role="img" aria-label="{title}">', svg, count=1)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r"font: (\S+?)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r"font-family: [^;\"]*;?", "", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(f'"{colour}"', f'"var({variable})"').replace(colour, f"var({variable})")
    return svg
