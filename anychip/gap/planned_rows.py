"""What `anychip plan` expects of many devices of both chips, as rows of the speed table: training and decoding."""

from __future__ import annotations

from functools import lru_cache

from ..chips.facts import known_chips, load_facts
from ..errors import AnychipError
from ..plan.cluster import parse_cluster
from ..plan.fit import Serving
from ..plan.models import find_model
from ..plan.parallel import Parallel
from ..plan.serve import Traffic, plan_decode
from ..plan.train import TrainJob, plan_train
from ..record import Kind, Quantity
from .row import Row

DEVICES, SEQUENCES, LENGTH = 512, 4096, 4096
LAYOUT = Parallel(data=64, pipeline=8, expert=64, recompute="full", schedule="dualpipe")
TOGETHER = ("v4-flash", "v4-pro")  # a report on one of these plans both


def planned_rows(model: str, chips: tuple[str, str]) -> list[Row]:
    """Return the rows of a published model on two chips, by the names of their facts; none where a chip has none."""
    if not set(chips) <= set(known_chips()):
        return []
    return [row for name in (TOGETHER if model in TOGETHER else (model,)) for row in _rows(name, chips)]


def _rows(model: str, chips: tuple[str, str]) -> list[Row]:
    found = []
    for task, plan, note in (("training", _train, f"bf16, {LAYOUT.describe()} on both, no search"),
                             ("decode", _decode, f"{SEQUENCES} sequences, contexts of {LENGTH}")):
        (a, why_a), (b, why_b) = (plan(model, chip) for chip in chips)
        ratio = Quantity(b / a, "x", Kind.SIMULATED) if a and b else None
        note = "; ".join([note, *(f"{side}: {why}" for side, why in (("A", why_a), ("B", why_b)) if why)])
        left, right = (Quantity(value, "tokens/s a device", Kind.SIMULATED) for value in (a, b))
        found.append(Row(f"plan of {model}: {task}, {DEVICES} devices", left, right, ratio, note))
    return found


@lru_cache(maxsize=64)
def _train(model: str, chip: str) -> tuple[float | None, str]:
    """Tokens a second of one device of a training step, or why there is no such step."""
    try:
        job = TrainJob(SEQUENCES, LENGTH)
        plan = plan_train(find_model(model), parse_cluster(f"{DEVICES}x{chip}"), LAYOUT, job, trace=False)
        return plan.tokens_per_s_device, ""
    except AnychipError as error:
        return None, str(error)


@lru_cache(maxsize=64)
def _decode(model: str, chip: str) -> tuple[float | None, str]:
    formats = load_facts(chip).formats
    serving = Serving("fp8" if "fp8" in formats else "w8a8" if "int8" in formats else "bf16", "bf16")
    try:
        plan = plan_decode(find_model(model), parse_cluster(f"{DEVICES}x{chip}"), serving, Traffic(SEQUENCES, LENGTH))
        return plan.tokens_per_s_device, f"weights {serving.weights}"
    except AnychipError as error:
        return None, str(error)
