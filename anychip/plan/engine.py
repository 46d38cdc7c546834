"""How another engine should spread a checkpoint over the chips of one machine: by the planned rate of decoding."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import AnychipError, InputError
from .cluster import parse_cluster
from .fit import Serving
from .models import find_model
from .serve import ServePlan, Traffic, largest_batch

CONTEXT = 4096  # tokens before a decoded one
TOKEN_S = 0.05  # seconds between a user's tokens


def plan_tensor(folder: Path, chip: str, num_chips: int) -> ServePlan:
    """Return the decode plan of the tensor-parallel degree (`serving.tensor`) that gives the most tokens a second.

    For the folder's own format of weights, a bf16 cache, contexts of 4,096 tokens and at most 50 ms a token; experts
    are spread over all chips. Raises InputError, with each degree's reason, where none fits or the planner does not
    know the model or its format.
    """
    cluster, model = parse_cluster(f"{num_chips}x{chip}"), find_model(str(folder))
    weights, found, reasons = _format(folder), list[ServePlan](), list[str]()
    for tensor in (each for each in range(1, num_chips + 1) if num_chips % each == 0):
        try:
            found.append(largest_batch(model, cluster, Serving(weights, "bf16", tensor), Traffic(1, CONTEXT), TOKEN_S))
        except AnychipError as error:
            reasons.append(f"tensor={tensor}: {error}")
    if not found:
        raise InputError("; ".join(reasons))
    return max(found, key=lambda plan: plan.tokens_per_s)


def _format(folder: Path) -> str:
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    quantized = fields.get("quantization_config")
    if quantized is None:
        return "bf16"
    if quantized.get("quant_method") == "fp8":
        return "fp4" if fields.get("expert_dtype") == "fp4" else "fp8"
    raise InputError(f"the planner does not know weights of quant_method {quantized.get('quant_method')!r}")
