"""Simulated times against published ones: `python -m anychip.ascend.published` prints predicted / published / ratio.

Every row says whether it was used to fit a constant or kept apart to check; nothing is fitted when this runs.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import AnychipError, KernelError
from .compile import compile_kernel
from .die import KernelTime, Launched, record
from .rates import load_rates
from .sensitivity import Sensitivity, Timed, sensitivities_of, suite_launches
from .targets import find_target

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
BUDGET = 1_500_000  # instructions recorded of one launch


@dataclass(frozen=True)
class Row:
    """One published time and the simulated one of the Triton kernel that stands for it.

    use: `fit` (it gave a constant) or `check` (kept apart). tiling: the fastest of those tried. ratio: predicted over
    published. time: how the predicted time comes about.
    """

    name: str
    series: str
    target: str
    shape: tuple[int, ...]
    tiling: tuple[int, ...]
    use: str
    published_us: float
    predicted_us: float
    source: str
    note: str
    time: KernelTime

    @property
    def ratio(self) -> float:
        """Predicted over published."""
        return self.predicted_us / self.published_us


@dataclass(frozen=True)
class Comparison:
    """All rows; the published rows that no Triton kernel here stands for, with the reason; sensitivities."""

    rows: tuple[Row, ...]
    left_out: tuple[tuple[str, str], ...]
    sensitivities: tuple[Sensitivity, ...]

    def median_error(self, series: Sequence[str] | None = None) -> float:
        """Return the median |ratio - 1| of the rows kept apart, of some series (default: all products)."""
        return statistics.median(abs(row.ratio - 1) for row in self.rows if row.use == "check"
                                 and (row.series in series if series else row.series != "attention"))

    def ranks_tilings(self) -> bool:
        """Return whether the tilings of one product are predicted in their published order."""
        rows = [row for row in self.rows if row.series == "tilings"]
        return (sorted(rows, key=lambda r: r.published_us) == sorted(rows, key=lambda r: r.predicted_us)
                and len(rows) > 1)


def compare_published(*, names: Sequence[str] = (), sensitivity: bool = True) -> Comparison:
    """Compile, record and time every published row (or those whose name contains one of `names`); about a minute.

    Raises NotSupported where the compilers are not installed.
    """
    data = _data()
    rows, launches = [], []
    for entry in (*data["gemm"], *data["attention"]):
        if not names or any(name in entry["name"] for name in names):
            row, launched = _fastest(entry, data["sources"])
            rows.append(row)
            launches.append(Timed(launched, bool(entry.get("warm", True))))
    sensitivities = tuple(sensitivities_of(launches, suite_launches())) if sensitivity else ()
    return Comparison(tuple(rows), tuple((entry["name"], entry["why"]) for entry in data["none"]), sensitivities)


def _fastest(entry: dict[str, Any], sources: dict[str, str]) -> tuple[Row, Launched]:
    """The row of the tiling with the least predicted time; one that does not compile is left out."""
    shape = tuple(entry["shape"])
    published = entry.get("time_us") or 2.0 * math.prod(shape) / entry["tflops"] / 1e6
    target = find_target(entry["target"])
    found: list[tuple[KernelTime, Launched, tuple[int, ...]]] = []
    recorded = _product if "form" in entry else _attention
    faults = []
    for tiling in entry["tilings"]:
        try:
            launched = recorded(entry, shape, tuple(tiling))
        except KernelError as error:
            faults.append(f"{tiling}: {error}")
            continue
        found.append((launched.time(load_rates(target), warm=entry.get("warm", True)), launched, tuple(tiling)))
    if not found:
        raise KernelError(f"{entry['name']}: no tiling compiles: {'; '.join(faults)}")
    time, launched, tiling = min(found, key=lambda f: f[0].time_s)
    return Row(entry["name"], entry["series"], target.name, shape, tiling, entry["use"], published,
               time.time_s * 1e6, sources[entry["source"]], entry.get("note", ""), time), launched


def _attention(entry: dict[str, Any], shape: tuple[int, ...], tiling: tuple[int, ...]) -> Launched:
    from ..kernels.example import Launch, signature
    from .published_attention import flash_attention

    queries, channels, keys = shape
    tensors = {name: torch.zeros(rows, channels, dtype=torch.float16)
               for name, rows in (("q", queries), ("k", keys), ("v", keys), ("out", queries))}
    constants = {"CHANNELS": channels, "BLOCK_M": tiling[0], "BLOCK_N": tiling[1]}
    launch = Launch({**tensors, "keys": keys, "scale": channels**-0.5}, (queries // tiling[0],), constants, ("out",))
    compiled = compile_kernel(flash_attention, signature(launch), constants, entry["target"])
    return record(compiled, launch.args, launch.grid, numerics=False, budget=BUDGET)


def _product(entry: dict[str, Any], shape: tuple[int, ...], tiling: tuple[int, ...]) -> Launched:
    from ..kernels.example import Launch, signature
    from ..kernels.matmul import matmul, plan_product

    m, k, n = shape
    target = find_target(entry["target"])
    a = torch.zeros(1, m, k, dtype=DTYPES[entry["dtype"]])
    b = torch.zeros((1, n, k) if entry["form"] == "nt" else (1, k, n), dtype=DTYPES[entry["dtype"]])
    out = torch.zeros(1, m, n, dtype=DTYPES[entry["out"]])
    args, constants = plan_product(a, b, out, entry["form"], (tiling[0], tiling[1], tiling[2]))
    tiles = -(-m // tiling[0]) * -(-n // tiling[1])
    launch = Launch(args, (min(tiles, target.num_cube), 1), constants, ("out",))
    compiled = compile_kernel(matmul, signature(launch), launch.constants, target)
    return record(compiled, launch.args, launch.grid, numerics=False, budget=BUDGET)


def table(comparison: Comparison) -> str:
    """Return the comparison as text."""
    lines = [f"{'published row':36} {'use':5} {'tiling':14} {'published':>11} {'predicted':>11} {'ratio':>6}  bound"]
    for row in comparison.rows:
        tiling = "x".join(map(str, row.tiling))
        lines.append(f"{row.name:36} {row.use:5} {tiling:14} {row.published_us:8.1f} us {row.predicted_us:8.1f} us "
                     f"{row.ratio:6.2f}  {row.time.bound}")
    if any(row.use == "check" for row in comparison.rows):
        products = any(row.use == "check" and row.series != "attention" for row in comparison.rows)
        if products:
            lines += ["", f"median |error| of the products kept apart: {100 * comparison.median_error():.1f} %"]
        for series in dict.fromkeys(row.series for row in comparison.rows if row.use == "check"):
            lines.append(f"  {series}: {100 * comparison.median_error([series]):.1f} %")
    if len([row for row in comparison.rows if row.series == "tilings"]) > 1:
        lines.append(f"order of the tilings of one product: {'right' if comparison.ranks_tilings() else 'WRONG'}")
    if comparison.sensitivities:
        lines += ["", "guesses (no public source): times at both ends of the range over times as they are,",
                  f"  {'':22} {'range':>20}  {'median of rows':>16}  {'median of suite':>16}  most moved of the suite"]
        lines += [_sensitivity_line(s) for s in comparison.sensitivities]
    lines += ["", "published, and not compared:"]
    lines += [f"  {name}: {why}" for name, why in comparison.left_out]
    lines += ["", "sources:"] + [f"  {source}" for source in dict.fromkeys(row.source for row in comparison.rows)]
    return "\n".join(lines)


def _sensitivity_line(s: Sensitivity) -> str:
    ends = f"{s.guess.low:8g} .. {s.guess.high:8g}"
    rows, suite = (f"{low:6.3f} .. {high:6.3f}" for low, high in (s.rows, s.suite))
    return f"  {s.guess.key:22} {ends:>20}  {rows}  {suite}  {s.most_kernel} {s.most[0]:.2f} .. {s.most[1]:.2f}"


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as plain data."""
    rows = []
    for row in comparison.rows:
        entry = asdict(row) | {"ratio": row.ratio}
        entry["time"].pop("schedule")
        rows.append(entry)
    return {"rows": rows, "left_out": dict(comparison.left_out), "median_error": comparison.median_error(),
            "tilings_ranked": comparison.ranks_tilings(),
            "sensitivities": [asdict(s) for s in comparison.sensitivities]}


def _data() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("published.toml").read_text())


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m anychip.ascend.published", description=__doc__)
    parser.add_argument("names", nargs="*", help="only rows whose name contains one of these")
    parser.add_argument("--json", action="store_true", help="print the comparison as one JSON object")
    parser.add_argument("--no-sensitivity", action="store_true", help="do not vary the guesses")
    options = parser.parse_args(argv)
    try:
        comparison = compare_published(names=options.names, sensitivity=not options.no_sensitivity)
    except AnychipError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(as_json(comparison)) if options.json else table(comparison))
    return 0


if __name__ == "__main__":
    sys.exit(main())
