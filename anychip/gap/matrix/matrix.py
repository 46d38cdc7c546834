"""What a matrix says: its blocks of figures, the comparisons behind them, a sentence for each step along an axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...errors import BundleError
from ...plan.cost import Price
from ...record import Quantity
from ..compare import Comparison
from ..report.marks import Mark, Verdict
from ..report.verdict import headline, verdicts
from .block import Block
from .grid import Grid, Key
from .numerics import compare_chips, numerics_blocks
from .planned import planned_blocks
from .quality import EvalRun, Paired, quality_blocks
from .serving import Serving, serving_blocks
from .speed import cost_blocks, sources, speed_blocks


@dataclass(frozen=True)
class Matrix:
    """A report of models on chips. `comparisons` are a model's runs on two chips in full, by the second's cell;
    `paired` the quality comparisons behind the ratios; `prices` where each chip's price is from."""

    grid: Grid
    blocks: list[Block]
    verdict: list[Verdict]
    comparisons: dict[Key, Comparison]
    paired: list[Paired]
    evals: list[EvalRun]
    prices: dict[str, str]

    @property
    def missing(self) -> list[Key]:
        """Cells that no run was given for."""
        return [(model, chip) for model in self.grid.models for chip in self.grid.chips
                if (model, chip) not in self.grid.bundles]

    @property
    def about(self) -> list[tuple[str, str, str]]:
        """What each model and chip is: ("model" or "chip", name, words), the first of each being the reference."""
        found: dict[tuple[str, str], str] = {}
        for (model, chip), bundle in self.grid.bundles.items():
            about = bundle.about
            size = f"{about['parameters'] / 1e6:,.3g}M parameters, " if "parameters" in about else ""
            weights = "trained" if about.get("trained", True) else "random weights"
            found.setdefault(("model", model), f"{size}{weights}; sha256 {about['digests']['weights'][:12]}")
            found.setdefault(("chip", chip), f"{about['description']}; matrix products in {about['precision']}; "
                                             f"numbers {about['numerics']}, times {about['timing']}")
        names = [*(("model", model) for model in self.grid.models), *(("chip", chip) for chip in self.grid.chips)]
        return [(*name, found[name]) for name in names]


def build(grid: Grid, *, evals: Sequence[EvalRun] = (), prices: Mapping[str, Price] | None = None,
          serving: Sequence[Serving] = (), plan: int = 0) -> Matrix:
    """Return the matrix of a grid. `evals` are runs of `anychip eval`, `serving` of `anychip bench serve` and `soak`,
    `prices` the user's own by chip; `plan` devices are planned with (0: none).

    Raises BundleError where a model's runs cannot be compared, InputError where an eval or serving run names no cell.
    """
    if not grid.bundles:
        raise BundleError("there is no run to show")
    comparisons, prices = compare_chips(grid), prices or {}
    quality, paired = quality_blocks(grid, evals)
    timed = all("speed" in bundle.about["levels"] for bundle in grid.bundles.values())
    speeds = speed_blocks(grid) if timed else []
    costs = cost_blocks(grid, speeds, prices) if timed else []
    planned = planned_blocks(grid, plan, prices) if timed else []
    blocks = [*quality, *speeds, *costs, *planned, *serving_blocks(grid, serving), *numerics_blocks(comparisons)]
    told = [*_untrained(grid), *_chips(grid, comparisons, blocks), *_models(grid, blocks, paired)]
    return Matrix(grid, blocks, told, comparisons, paired, list(evals), sources(grid, prices) if timed else {})


def _untrained(grid: Grid) -> list[Verdict]:
    names = [model for model in grid.models if not next(
        bundle.about.get("trained", True) for (name, _), bundle in grid.bundles.items() if name == model)]
    return [Verdict(Mark.FACT, "weights", (f"{', '.join(names)}: random, not trained. Numerics and speed hold; quality "
                                           "means nothing and is not compared",))] if names else []


def _chips(grid: Grid, comparisons: Mapping[Key, Comparison], blocks: Sequence[Block]) -> list[Verdict]:
    """One sentence a model and chip: is it the same model there, and how fast."""
    found = []
    for (model, chip), comparison in comparisons.items():
        marks = {line.mark for line in verdicts(comparison)}
        worst = next((mark for mark in (Mark.GAP, Mark.NOISE) if mark in marks), Mark.SAME)
        wrong = [line.about for line in verdicts(comparison) if line.mark is Mark.GAP]
        parts: list[str | Quantity] = [f"{model} on {chip}, beside {comparison.about_a['chip']}: "
                                       f"{headline(comparison)}"]
        if wrong and not comparison.places:
            parts.append(f"; a real gap in: {', '.join(wrong)}")
        found.append(Verdict(worst, "chips", (*parts, *_ratios(blocks, (model, chip), across="chips"))))
    return found


def _models(grid: Grid, blocks: Sequence[Block], paired: Sequence[Paired]) -> list[Verdict]:
    """One sentence a further model and chip: its quality beside its speed and cost."""
    found = []
    for model in grid.models[1:]:
        for chip in grid.chips:
            key = model, chip
            ratios = _ratios(blocks, key, across="models")
            if not ratios:
                continue
            seen = [f"; on {pair.found.num} questions ({pair.questions}) a difference below "
                    f"{100 * pair.found.seen:.1f} points would not have been seen"
                    for pair in paired if pair.second == key and pair.first[1] == chip]
            found.append(Verdict(Mark.FACT, "models", (f"{model} on {chip}, beside {grid.models[0]}", *ratios, *seen)))
    return found


def _ratios(blocks: Sequence[Block], key: Key, *, across: str) -> list[str | Quantity]:
    """`; 97 % of its quality; 2 x its speed of prefill`: a cell's ratios, the first of those that say the same."""
    found: dict[str, Quantity] = {}
    for block in blocks:
        ratio = (block.across_chips if across == "chips" else block.across_models).get(key)
        if ratio is not None and block.said:
            found.setdefault(block.said, ratio)
    return [part for said, ratio in found.items() for part in ("; ", ratio, f" {said}")]
