"""Op times by this project's compiled kernels, as the virtual Ascend times them: shares of the roofline, shipped.

    seconds = max(FLOPs / peak, bytes / bandwidth) / share(op, rows, forward or backward)

`kernel_shares.toml` holds the shares of every chip that the virtual Ascend can time, made by
`python -m benchmarks.plan_kernels`; they include the kernels' start. They are of *our* kernels: the constants fitted on
published runs are of the vendors', which are faster wherever ours have not been tuned.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np

from ..chips.facts import ChipFacts
from ..errors import InputError, NotSupported
from .cut import CLASSES, ROWS, Array, Cuts

PUBLISHED, KERNELS = "published", "kernels"
SOURCES = {PUBLISHED: "the chip's facts and constants fitted on published runs",
           KERNELS: "this project's compiled kernels, timed on the virtual Ascend"}
_VECTOR = CLASSES.index("vector")
Shares = Mapping[str, Mapping[str, Mapping[int, float]]]  # op -> forward or backward -> rows -> share


@dataclass(frozen=True, eq=False)
class Kernels:
    """The shares of one chip and the peaks that they are of. `note`: how and with what they were made."""

    shares: Shares
    matrix_flops_per_s: float
    vector_flops_per_s: float
    bytes_per_s: float
    note: str

    def covers(self, cuts: Cuts, plain: Array) -> Any:
        """Tell for every call whether a kernel was timed: `plain` marks those that compute in bf16."""
        return np.isin(np.array(cuts.ops), list(self.shares)) & (plain > 0)

    def seconds(self, cuts: Cuts, *, backward: bool) -> Array:
        """Return the seconds of every call, 0 for those without a kernel and for what a kernel does within itself."""
        ideal = ideal_s(cuts, self)
        found = np.zeros(len(ideal))
        for i, (op, name) in enumerate(zip(cuts.ops, cuts.names, strict=True)):
            if op in self.shares and not name.endswith(ROWS):
                found[i] = ideal[i] / self._share(op, cuts.rows[i], backward)
        return found

    def _share(self, op: str, rows: float, backward: bool) -> float:
        """Between the timed numbers of rows along straight lines of the logarithms; the nearest outside of them."""
        points = self.shares[op].get("backward" if backward else "forward")
        if points is None:
            return float("inf")  # the op has no gradient
        at = np.log(list(points))
        return float(np.exp(np.interp(np.log(max(rows, 1.0)), at, np.log(list(points.values())))))


def ideal_s(cuts: Cuts, peaks: Kernels) -> Array:
    """Return every call's roofline, seconds: bf16 bytes, matrix or vector peak, nothing fitted."""
    peak = np.where(cuts.kind == _VECTOR, peaks.vector_flops_per_s, peaks.matrix_flops_per_s)
    return np.maximum(cuts.flops / peak, (cuts.moved + 2 * (cuts.weights + cuts.cache)) / peaks.bytes_per_s)


def peaks_of(facts: ChipFacts, shares: Shares | None = None, note: str = "") -> Kernels:
    """Return the chip's peaks, with the shares where they are known."""
    return Kernels(shares or {}, facts.peak_flops_per_s["bf16"], facts.vector_peak_flops_per_s["fp32"],
                   facts.memory_bytes_per_s, note)


@lru_cache(maxsize=1)
def _shipped() -> dict[str, Any]:
    return tomllib.loads((files("anychip.plan") / "kernel_shares.toml").read_text(encoding="utf-8"))


def timed_chips() -> list[str]:
    """Return the chips whose kernels were timed."""
    return list(_shipped()["chips"])


def find_kernels(facts: ChipFacts, source: str) -> Kernels | None:
    """Return the kernels that `source` asks for: None for `published`.

    Raises InputError for an unknown source, NotSupported for a chip that the virtual Ascend did not time.
    """
    if source not in SOURCES:
        raise InputError(f"op times {source!r}: choose one of {', '.join(SOURCES)}")
    if source == PUBLISHED:
        return None
    data = _shipped()
    if facts.name not in data["chips"]:
        raise NotSupported(f"no kernels were timed for {facts.name}; they were for {', '.join(data['chips'])}. "
                           f"Take {PUBLISHED} op times")
    shares = {op: {way: {int(rows): share for rows, share in points.items()} for way, points in ways.items()}
              for op, ways in data["chips"][facts.name].items()}
    return peaks_of(facts, shares, f"simulated {data['date']} by `{data['command']}` with {data['versions']}")
