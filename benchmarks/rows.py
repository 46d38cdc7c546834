"""One JSON line for every figure that a benchmark measures, appended to results/<chip>.jsonl."""

from __future__ import annotations

import datetime
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from anychip.chips.cpu.chip import processor_name

RESULTS = Path(__file__).parent.parent / "results"


def row(benchmark: str, what: str, values: Sequence[float], unit: str, shape: str) -> dict[str, Any]:
    """Return a measured figure: the median of `values`, its spread, and where it was taken."""
    return {
        "benchmark": benchmark, "what": what, "chip": "cpu", "kind": "measured", "shape": shape, "dtype": "fp32",
        "value": statistics.median(values), "unit": unit, "n": len(values), "low": min(values), "high": max(values),
        "processor": processor_name(), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "python": platform.python_version(), "commit": _commit(), "command": "python -m " + " ".join(
            [f"benchmarks.{benchmark}", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def append(rows: Sequence[dict[str, Any]], chip: str = "cpu") -> None:
    """Add the rows to results/<chip>.jsonl."""
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{chip}.jsonl").open("a") as file:
        file.writelines(json.dumps(item) + "\n" for item in rows)


def _commit() -> str:
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent)
    return asked.stdout.strip() or "unknown"
