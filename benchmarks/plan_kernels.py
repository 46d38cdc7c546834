"""What share of the roofline do our compiled kernels reach on the virtual Ascend, op by op?

Times every op call of one layer of each kind of v4-flash (its share of experts over 32 devices, bf16) at a few numbers
of tokens on each Ascend chip whose speed is known, and writes the shares that the planner ships
(`anychip/plan/kernel_shares.toml`). An op's share is the roofline of all its calls over the time of all of them. All
times are simulated. Needs the `[ascend]` extra.

    python -m benchmarks.plan_kernels [--chips ascend910b2,ascend910c]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from anychip.ascend.targets import find_target
from anychip.ascend.toolchain import find_toolchain
from anychip.chips.facts import load_facts
from anychip.chips.kernel_times import KernelTimes
from anychip.plan.cut import Share, cut
from anychip.plan.kernels import ideal_s, peaks_of
from anychip.plan.models import find_model
from anychip.plan.work import Batch, Call

CHIPS = ("ascend910b1", "ascend910b2", "ascend910b3", "ascend910b4", "ascend910c")
DEVICES = 32  # that the experts are spread over
BATCHES = (Batch(16, 1, 8192), Batch(128, 1, 8192), Batch(1, 1024, training=True), Batch(1, 4096, training=True))
COMMAND = "python -m benchmarks.plan_kernels"


def calls(batch: Batch) -> Iterator[tuple[Call, Any]]:
    """Each call of one layer of each kind, with its cut."""
    share = Share(1, 1, DEVICES)
    for part in find_model("v4-flash").work(batch).parts.values():
        for call in part.calls:
            yield call, cut(replace(part, calls=(call,)), share)


def shares_of(chip: str) -> dict[str, dict[str, dict[int, float]]]:
    """Return op -> forward or backward -> rows -> share of the roofline."""
    peaks, times = peaks_of(load_facts(chip)), KernelTimes(find_target(chip), torch.bfloat16)
    ideal: defaultdict[tuple[str, str, int], float] = defaultdict(float)
    taken: defaultdict[tuple[str, str, int], float] = defaultdict(float)
    for batch in BATCHES:
        for call, cuts in calls(batch):
            arguments = list(call.arguments)
            if call.op == "experts":
                arguments[3] = tuple(bank[: -(-bank.shape[0] // DEVICES)] for bank in arguments[3])
            found = times.time(call.op, tuple(arguments), dict(call.named), backward=batch.training)
            for way, seconds in (("forward", found.forward_s), ("backward", found.backward_s)):
                if seconds:
                    key = call.op, way, round(cuts.rows[0])
                    ideal[key] += float(ideal_s(cuts, peaks)[0])
                    taken[key] += seconds
    shares: dict[str, dict[str, dict[int, float]]] = {}
    for op, way, rows in sorted(ideal):
        shares.setdefault(op, {}).setdefault(way, {})[rows] = ideal[op, way, rows] / taken[op, way, rows]
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chips", default=",".join(CHIPS))
    chips = parser.parse_args().chips.split(",")
    found = {}
    for chip in chips:
        found[chip] = shares_of(chip)
        print(chip, len(found[chip]), "ops", file=sys.stderr, flush=True)
    lines = ["# Shares of the roofline that this project's compiled kernels reach on the virtual Ascend, by op and its",
             "# rows, backward over the roofline of the forward call. Above 1 is what the L2 cache takes. See",
             "# benchmarks/plan_kernels.py.",
             'kind = "simulated"', f'command = "{COMMAND}"', f'date = "{datetime.now(UTC):%Y-%m-%d}"',
             f'versions = "{find_toolchain().versions}"', ""]
    for chip, shares in found.items():
        for op, ways in shares.items():
            lines.append(f"[chips.{chip}.{op}]")
            lines += [f"{way} = {{ {', '.join(f'{rows} = {share:.4g}' for rows, share in points.items())} }}"
                      for way, points in ways.items()]
    (Path(__file__).parent.parent / "anychip" / "plan" / "kernel_shares.toml").write_text("\n".join(lines) + "\n")
    print(json.dumps({"chips": chips, "kind": "simulated", "shares": {chip: {
        op: ways["forward"][max(ways["forward"])] for op, ways in shares.items()} for chip, shares in found.items()}}))


if __name__ == "__main__":
    main()
