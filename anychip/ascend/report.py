"""What checked kernels are told as: words for a terminal, plain data for JSON, one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .check import Checked

COLUMNS = ("kernel", "example", "chip", "result", "cores", "memory", "time", "bound", "error/limit")
WORDS = {"pass": "pass", "fail": "FAIL", "error": "ERROR"}


def row(checked: Checked) -> tuple[str, ...]:
    """Return one line of the table, in the order of COLUMNS. Times are simulated."""
    time = f"{checked.time.time_s * 1e6:.4g} us" if checked.time else ""
    bound = checked.time.bound if checked.time else ""
    return (checked.kernel, checked.example, checked.target, WORDS[checked.status], checked.core_type,
            fullest_memory(checked), time, bound, outputs(checked))


def fullest_memory(checked: Checked) -> str:
    """Return the on-chip memory that is nearest to its limit, such as `UB 63 %`."""
    shares = {space: use.used_bytes / use.limit_bytes for space, use in checked.memory.items()
              if space in ("ub", "l1", "l0c")}
    if not shares:
        return ""
    space = max(shares, key=lambda s: shares[s])
    return f"{space.upper()} {100 * shares[space]:.0f} %"


def outputs(checked: Checked) -> str:
    """Return how near the outputs are to the reference: `exact`, or the share of the rule's limit that is used up."""
    if checked.status == "error":
        return ""
    if not checked.has_reference:
        return "no reference"
    if all(p.exact for p in checked.outputs.values()):
        return "exact"
    return f"{100 * max(p.share for p in checked.outputs.values()):.2g} %"


def problems(checked: Checked) -> list[str]:
    """Return what is wrong, one text each: an error, findings, outputs that are off, paths that disagree."""
    if checked.status == "error":
        return [f"{checked.error_kind}: {checked.error}"]
    found = [finding.text() for finding in checked.findings]
    found += [f"wrong result: output {name!r} {p.reason}" for name, p in checked.outputs.items() if not p.passed]
    if not checked.findings and all(p.passed for p in checked.outputs.values()):
        found += [f"paths disagree: output {name!r} of the chip's program and of the native path: {p.reason}. They "
                  "share the Triton front end only; where the reference agrees with one, the other is at fault"
                  for name, p in checked.native.items() if not p.passed]
    return found


def to_json(results: Sequence[Checked], wall_s: float) -> dict[str, Any]:
    """Return the document that `--json` prints; every time but `seconds` and `wall_s` is simulated."""
    return {"healthy": all(c.status == "pass" for c in results), "passed": sum(c.status == "pass" for c in results),
            "checked": len(results), "wall_s": round(wall_s, 3), "results": [_plain(checked) for checked in results]}


def render(results: Sequence[Checked], wall_s: float) -> str:
    """Return the report as one HTML page: no scripts, nothing fetched, all text escaped."""
    import jinja2

    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
                                     trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    lines = [{"cells": row(checked), "status": checked.status, "problems": problems(checked), "notes": checked.notes,
              "place": checked.place, "checked": checked} for checked in results]
    return environment.get_template("report.html.j2").render(
        columns=COLUMNS, lines=lines, wall_s=wall_s, passed=sum(c.status == "pass" for c in results))


def _plain(checked: Checked) -> dict[str, Any]:
    plain = asdict(checked)
    if checked.time is not None:
        plain["time"] = {**plain["time"], "kind": "simulated"}
        del plain["time"]["schedule"]  # one entry a program; the trace has it
    return {**plain, "problems": problems(checked)}
