"""Is this speed normal? A user's own number between the roofline bound, the plan and what others published."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .rows import Row, Unusable, read_rows, row_cluster, row_model
from .serve import ServePlan, bound_seconds
from .train import TrainPlan
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
