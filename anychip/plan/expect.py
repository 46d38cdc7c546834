"""Is this speed normal? A user's own number between the roofline bound, the plan and what others published."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, InputError
from .cluster import parse_cluster
from .fit import Serving
from .models import find_model
from .rows import Row, Unusable, read_rows, row_cluster, row_model
from .serve import ServePlan, Traffic, bound_seconds, largest_batch
from .train import TrainJob, TrainPlan
from .validate import GROUPS, validate

# What `causes` are, told wherever they are shown
HEURISTIC = ("a heuristic: each known effect's planned size, those nearest to the shortfall first; nothing of your run "
             "was looked at")


@dataclass(frozen=True)
class Published:
    """The best published rate of this model and chip: tokens/s of one device, the row, its conditions."""

    tokens_per_s_device: float
    row: Row


@dataclass(frozen=True)
class Expectation:
    """Tokens/s of one device: the user's, the bound, the planned range (half of published runs lie closer), the best
    published, and what may explain a shortfall (HEURISTIC), nearest in size first."""

    mine: float
    bound: float
    low: float
    planned: float
    high: float
    published: Published | None
    causes: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """Say in one sentence where the number lies."""
        if self.mine > self.bound * 1.02:
            return ("above the roofline bound: check that it is tokens a second of one device, and that a card of two "
                    "dies is not counted as one")
        if self.mine > self.high:
            return "faster than planned: better than most published runs of this kind"
        if self.mine >= self.low:
            return "normal: within the range that published runs of this kind lie in around the plan"
        return f"{100 * (1 - self.mine / self.planned):.0f} % below the plan: something costs time"


def expect(plan: TrainPlan | ServePlan, mine: float, spread: float | None = None) -> Expectation:
    """Place `mine` (tokens/s a device). `spread` is the planner's usual error; by default its 90th percentile."""
    serving = isinstance(plan, ServePlan)
    if spread is None:
        group = GROUPS[2] if serving else GROUPS[0]
        spread = validate(folds=0, trace=False).summary(group)[2]
    planned = plan.tokens_per_s_device
    low, high = planned / (1 + spread), planned * (1 + spread)
    task = plan.task if isinstance(plan, ServePlan) else "train"
    return Expectation(mine, roofline_bound(plan), low, planned, high, best_published(plan, task),
                       tuple(causes(plan, mine)))


def roofline_bound(plan: TrainPlan | ServePlan) -> float:
    """Tokens/s of one device at the chip's peaks: all products of training, every call of a pass in serving."""
    facts = plan.cluster.facts
    if isinstance(plan, TrainPlan):
        peak = facts.peak_flops_per_s[plan.job.precision]
        return plan.job.tokens * peak / plan.model_flops
    return plan.tokens_per_s_device * plan.step_s / bound_seconds(plan.work, plan.cluster, plan.serving)


def best_published(plan: TrainPlan | ServePlan, task: str) -> Published | None:
    """Return the fastest published row of the same model, chip and task, None where there is none."""
    best: Published | None = None
    for row in read_rows():
        if row["task"] != task or row["metric"] != "throughput" or "tokens/s/" not in row["unit"]:
            continue
        try:
            if row_model(row).name != plan.model:
                continue
            cluster, per_chip = row_cluster(row)
            value = row.value / (8 if "/node" in row["unit"] else per_chip)
        except Unusable:
            continue
        if cluster.facts.name == plan.cluster.facts.name and (best is None or value > best.tokens_per_s_device):
            best = Published(value, row)
    return best


def causes(plan: TrainPlan | ServePlan, mine: float) -> Sequence[str]:
    """Return what may explain a shortfall, with each effect's size by the plan: HEURISTIC, the nearest size first."""
    missing = plan.step_s * (plan.tokens_per_s_device / mine - 1)
    if missing <= 0:
        return []
    found: list[tuple[float, str]] = []
    if isinstance(plan, ServePlan):
        launch = 3 * plan.parts_s.get("vector", 0.0)
        found = [
            (launch, "kernels started one by one instead of from a recorded graph (eager mode), or a busy host"),
            (plan.parts_s["exchange"] * 2, "expert transfers over a slower path than planned (no fused dispatch, RoCE "
                                           "instead of the supernode, few large buffers)"),
            (plan.parts_s["experts"], "unevenly loaded experts (no redundant copies of the busy ones)"),
            (plan.step_s * 0.4, "a running batch smaller than planned: check sequences in flight and cache room"),
        ]
    else:
        found = [
            (plan.parts_s["compute and transfers"] * 0.33, "recomputation of more than the plan assumes"),
            (plan.parts_s["compute and transfers"] * 0.5, "element-wise ops that are not fused, or experts in a loop"),
            (plan.parts_s["pipeline bubble"] + plan.step_s * 0.1,
             "too few micro-batches for the pipeline, or stages of unequal length"),
            (plan.parts_s["gradients"] / 0.2 + plan.step_s * 0.05, "gradients summed over the fabric without overlap"),
            (plan.step_s * (plan.load - 1 + 0.1), "unevenly loaded experts"),
        ]
    near = sorted(found, key=lambda item: abs(math.log(max(item[0], 1e-9) / missing)))
    return [f"{text} (would explain {100 * min(seconds / missing, 9.99):.0f} % of it)" for seconds, text in near[:3]]


def expected(model: str, chip: str, *, devices: int = 64, context: int = 4096, weights: str | None = None
             ) -> dict[str, Any]:
    """Return what to expect of `devices` of a chip with a model, as JSON: a training step (best layout) and decoding.

    `chip` is a facts file's name; `weights` the served format, by default the lowest that the chip computes. Where the
    devices cannot hold the model, that part says why. Every number has its unit and kind; `error` is the planner's own
    on published runs. Raises ConfigError or ChipError for an unknown model or chip.
    """
    from .as_json import serve_json, train_json
    from .memory import train_memory
    from .search import search_layouts

    found, cluster = find_model(model), parse_cluster(f"{devices}x{chip}")
    formats = cluster.facts.formats
    serving = Serving(weights or ("fp4" if "fp4" in formats else "fp8" if "fp8" in formats else "w8a8"), "bf16")
    document: dict[str, Any] = {"model": model, "cluster": cluster.describe()}
    judged = validate(folds=0, trace=False)
    document["error"] = {group: dict(zip(("rows", "median", "p90"), judged.summary(group), strict=True))
                         for group in (GROUPS[0], GROUPS[2])}
    try:
        job = TrainJob(max(2**22 // context, devices), context, "bf16")
        best = search_layouts(found, cluster, job).best
        document["train"] = train_json(best, train_memory(found, cluster, best.parallel, job))
    except (ConfigError, InputError) as error:
        document["train"] = {"impossible": str(error)}
    try:
        document["decode"] = serve_json(largest_batch(found, cluster, serving, Traffic(1, context), 0.05))
    except (ConfigError, InputError) as error:
        document["decode"] = {"impossible": str(error)}
    return document
