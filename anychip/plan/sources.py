"""Where the seconds of a plan's ops come from: op by op, forward, of one rank's micro-batch or pass."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import NamedTuple

from .constants import constants
from .cut import Share, cut
from .fit import experts_over
from .kernels import KERNELS, PUBLISHED, timed_chips
from .models import Model
from .serve import ServePlan, serve_rates
from .times import WIDTHS, Rates, by_kernels, forward_s
from .train import TrainPlan, job_rates, plan_train
from .work import Batch, Work


class OpTime(NamedTuple):
    """Forward seconds of all calls of an op, and the source of their times (one of `kernels.SOURCES`)."""

    seconds: float
    source: str


def with_kernels(plan: TrainPlan, model: Model) -> TrainPlan | None:
    """Return the same step with the times of this project's kernels, where they were timed on this chip and the plan
    has other times."""
    known = plan.cluster.facts.name in timed_chips() and WIDTHS[plan.job.precision] == 2.0
    if not known or plan.job.op_times == KERNELS:
        return None
    return plan_train(model, plan.cluster, plan.parallel, replace(plan.job, op_times=KERNELS), trace=False)


def train_ops(plan: TrainPlan, model: Model) -> dict[str, OpTime]:
    """Return the ops of one micro-batch of a training plan."""
    p, work = plan.parallel, model.work(Batch(plan.parallel.micro_batch, plan.job.length, training=True))
    return _ops(work, (p.tensor, p.context, p.expert), job_rates(plan.cluster, plan.job, constants()))


def serve_ops(plan: ServePlan) -> dict[str, OpTime]:
    """Return the ops of one pass of a serving plan, experts evenly loaded."""
    expert = experts_over(plan.work, plan.cluster.count)
    return _ops(plan.work, (plan.serving.tensor, 1, expert), serve_rates(plan.cluster, plan.serving, constants()))


def _ops(work: Work, degrees: tuple[int, int, int], r: Rates) -> dict[str, OpTime]:
    tensor, context, expert = degrees
    seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
    for name, times in work.count.items():
        part = work.parts[name]
        cuts = cut(part, Share(tensor, context, expert if part.moe else 1))
        for op, by_kernel, each in zip(cuts.ops, by_kernels(cuts, r), forward_s(cuts, r), strict=True):
            seconds[op, KERNELS if by_kernel else PUBLISHED] += float(each) * times
    return {op if source == KERNELS or (op, KERNELS) not in seconds else f"{op} ({source})": OpTime(each, source)
            for (op, source), each in sorted(seconds.items())}
