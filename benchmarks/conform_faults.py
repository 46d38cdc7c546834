"""Does `anychip conform` find every planted fault from log-probabilities alone, and name it?

Limit: every fault of the forward pass fails fp32's tolerance on one of the weight sets, and is among those named.

    python -m benchmarks.conform_faults
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

import torch

from anychip.conform.cases import Suite, run, shipped
from anychip.conform.judge import judge
from anychip.conform.likeness import Signatures, likeness
from anychip.conform.logits import Functions
from anychip.conform.weights import SETS, WeightSet, weight_set
from anychip.faults import Fault, list_faults
from anychip.model import Transformer
from anychip.ops import Ops


def main() -> None:
    """Plant every fault in the reference, judge it, and print one line each and the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", nargs="*", default=SETS, choices=SETS)
    sets, start = parser.parse_args().weights, time.monotonic()
    torch.set_num_threads(1)
    pairs = [(weight_set(name), shipped(name)) for name in sets]
    signatures = {chosen.name: Signatures(chosen) for chosen, _suite in pairs}
    rows = [_row(fault, pairs, signatures) for fault in list_faults()]
    judged = [row for row in rows if row["visible"]]
    print(json.dumps({"faults": len(rows), "visible in logits": len(judged),
                      "found": sum(row["failed"] > 0 for row in judged),
                      "named": sum(row["named"] for row in judged), "named first": sum(row["first"] for row in judged),
                      "found in bfloat16's tolerance": sum(row["failed_bf16"] > 0 for row in judged),
                      "seconds": round(time.monotonic() - start)}))


def _row(fault: Fault, pairs: Sequence[tuple[WeightSet, Suite]], signatures: dict[str, Signatures]) -> dict[str, Any]:
    row: dict[str, Any] = {"fault": fault.name, "failed": 0, "failed_bf16": 0, "visible": False, "named": False,
                           "first": False}
    for chosen, suite in pairs:
        model = chosen.model(fault.ops(Ops()))
        fault.prepare(model)
        outcome = judge(_functions(model), suite, "float32")
        row["visible"] |= any((one.worst or 0) > 2e-5 for one in outcome.rows)
        row["failed"] += len(outcome.failed)
        row["failed_bf16"] += sum(one.size > 0.1 or one.worst > 2.0 for one in outcome.rows if one.size is not None
                                  and one.worst is not None)
        names = [one.fault for one in likeness(signatures[chosen.name], outcome.failed) if one.left < 0.1]
        row["named"] |= fault.name in names
        row["first"] |= names[:1] == [fault.name]
    print(row, flush=True)
    return row


def _functions(model: Transformer) -> Functions:
    whole = {name: lambda ids, kind=kind: run(model, kind, (tuple(ids),))
             for name, kind in (("logits", "whole"), ("mtp", "mtp"))}
    cut = {kind: lambda pieces, kind=kind: run(model, kind, pieces) for kind in ("chunked", "packed")}
    return Functions(whole | cut, model.config.vocab_size)


if __name__ == "__main__":
    main()
