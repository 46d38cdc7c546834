"""Runs of `anychip bench serve` and `anychip soak` in a matrix: what users of a cell's server saw."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...record import Kind, Quantity
from .block import Block, with_ratios
from .grid import Grid, Key


@dataclass(frozen=True)
class Serving:
    """One run's JSON, of a server that ran `cell`."""

    cell: Key
    path: str
    found: Mapping[str, Any]

    @property
    def soak(self) -> bool:
        """Whether it is a soak's, not a load's."""
        return "mtbf_s" in self.found


def read_serving(text: str) -> Serving:
    """Read `MODEL@CHIP=FILE`. Raises InputError where it is written otherwise or the file is no such run's output."""
    name, _, path = text.partition("=")
    model, _, chip = name.rpartition("@")
    if not (model and chip and path):
        raise InputError(f"--serving {text!r}: write MODEL@CHIP=FILE, the output of `anychip bench serve` or `soak`")
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if "mtbf_s" not in found:
            found["goodput"]["share"], found["ttft_s"], found["tpot_s"], found["new_tokens_per_s"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not the output of `anychip bench serve` or `anychip soak` "
                         f"({type(error).__name__}: {error})") from error
    return Serving((model, chip), path, found)


def serving_blocks(grid: Grid, runs: Sequence[Serving]) -> list[Block]:
    """Return what the runs measured. Raises InputError where one is of no cell, or two of one kind are of the same."""
    for run in runs:
        if run.cell not in grid.bundles:
            raise InputError(f"{run.path} is of {'@'.join(run.cell)}, which is no cell of this matrix: "
                             + ", ".join("@".join(key) for key in grid.bundles))
    if len({(run.cell, run.soak) for run in runs}) < len(runs):
        raise InputError("two serving runs of one kind are of the same cell; give one of each")
    loads = [run for run in runs if not run.soak]
    blocks = [_block(grid, loads, *figure) for figure in _FIGURES]
    blocks.append(_mtbf(grid, [run for run in runs if run.soak]))
    return [block for block in blocks if block.cells]


def _percentile(name: str, which: str) -> Callable[[Mapping[str, Any]], float | None]:
    def read(found: Mapping[str, Any]) -> float | None:
        value = (found[name] or {}).get(which)
        return None if value is None else 1e3 * value

    return read


_FIGURES: tuple[tuple[str, str, Callable[[Mapping[str, Any]], float | None], bool], ...] = (
    ("serving: answers", "tokens/s", lambda found: found["new_tokens_per_s"], False),
    ("serving: first token, median", "ms", _percentile("ttft_s", "p50"), True),
    ("serving: first token, p99", "ms", _percentile("ttft_s", "p99"), True),
    ("serving: further token, median", "ms", _percentile("tpot_s", "p50"), True),
    ("serving: good answers", "%", lambda found: 100 * found["goodput"]["share"], False),
)


def _block(grid: Grid, runs: Sequence[Serving], name: str, unit: str, read: Callable[[Mapping[str, Any]], float | None],
           lower: bool) -> Block:
    cells = {run.cell: Quantity(value, unit, Kind.MEASURED) for run in runs
             if (value := read(run.found)) is not None}
    loads = {(str(run.found["arrivals"]), run.found["requests"], run.found.get("mix"), run.found.get("seed"))
             for run in runs}
    block = Block("Serving", name, unit, "`anychip bench serve`" + _load(runs), cells, lower=lower)
    if len(loads) > 1:
        block.why.update({run.cell: "another load than its neighbours': no ratio" for run in runs})
        return block
    return with_ratios(block, grid.models, grid.chips)


def _load(runs: Sequence[Serving]) -> str:
    if not runs:
        return ""
    found = runs[0].found
    arrivals = ", ".join(f"{name} {value}" for name, value in found["arrivals"].items()).replace("_", " ")
    good = found["goodput"]
    return (f": {found['requests']} requests, {arrivals}; good: first token within {good['ttft_within_s']:g} s, each "
            f"further one within {good['tpot_within_s']:g} s")


def _mtbf(grid: Grid, runs: Sequence[Serving]) -> Block:
    cells = {}
    for run in runs:
        ends = [None if (end := run.found["mtbf_s"][name]) is None else end / 3600 for name in ("mean", "low", "high")]
        cells[run.cell] = Quantity(ends[0], "h", Kind.MEASURED, ends[1], ends[2])
    why = {run.cell: f"{run.found['failures']} failures in {run.found['wall_time_s'] / 3600:.2g} h; at least "
                     f"{run.found['mtbf_s']['low'] / 3600:.2g} h between two" for run in runs}
    return Block("Serving", "serving: mean time between failures", "h", "`anychip soak`", cells, why=why)
