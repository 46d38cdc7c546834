"""The best layout of a training job: every possible one, pruned only where it cannot win, and explained.

A layout is left out for one of three reasons, each exact: it is impossible, it does not fit the memory, or its compute
alone (no bubble, no transfer, no optimizer) takes longer than the best layout found so far.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace

from ..errors import ConfigError, InputError
from .cluster import Cluster
from .constants import Constants, constants
from .layer_times import LayerTime
from .memory import TrainMemory, train_memory
from .models import Model
from .parallel import SCHEDULES, Parallel
from .train import TrainJob, TrainPlan, assemble, job_times, plan_train
from .work import Batch, Work

_INNER = ("tensor", "context", "expert", "micro_batch", "recompute", "pipeline")


@dataclass(frozen=True)
class Found:
    """What a search found: the best plan (simulated), the next best layouts, and how many were left out and why."""

    best: TrainPlan
    memory: TrainMemory
    others: tuple[TrainPlan, ...]
    examined: int
    left_out: dict[str, int]
    closest: str = field(default="", repr=False)


def search_layouts(model: Model, cluster: Cluster, job: TrainJob, *, fixed: dict[str, int | str] | None = None,
                   optimizer: str = "muon", keep: int = 5, c: Constants | None = None) -> Found:
    """Return the fastest layout that fits, with `fixed` degrees kept as given.

    Raises InputError for an unknown degree, ConfigError where no layout is possible or none fits, with the closest.
    """
    c = c or constants()
    fixed = fixed or {}
    wrong = [name for name in fixed if name not in {f.name for f in fields(Parallel)}]
    if wrong:
        raise InputError(f"a layout has no {', '.join(wrong)}; it has {', '.join(f.name for f in fields(Parallel))}")
    search = _Search(model, cluster, job, optimizer, c)
    for parallel in _candidates(search.shape_work(1), cluster, job, fixed):
        search.try_layout(parallel)
    plans = sorted(search.plans, key=lambda plan: plan.step_s)[:keep]
    if not plans:
        raise ConfigError(search.why_none(fixed))
    best = plan_train(model, cluster, plans[0].parallel, job, c=c)
    return Found(best, train_memory(model, cluster, best.parallel, job, optimizer), tuple(plans[1:]),
                 search.examined, dict(search.left_out))


class _Search:
    """The state of one search: times of layers by the degrees that decide them, the plans kept, counts."""

    def __init__(self, model: Model, cluster: Cluster, job: TrainJob, optimizer: str, c: Constants) -> None:
        self.model, self.cluster, self.job, self.optimizer, self.c = model, cluster, job, optimizer, c
        self.plans: list[TrainPlan] = []
        self.best_s = float("inf")
        self.examined = 0
        self.left_out: Counter[str] = Counter()
        self._times: dict[tuple[object, ...], dict[str, LayerTime]] = {}
        self._floors: dict[tuple[object, ...], float] = {}
        self._closest = (float("inf"), "")

    def shape_work(self, micro_batch: int) -> Work:
        """The model's work of one micro-batch."""
        return self.model.work(Batch(micro_batch, self.job.length, training=True))

    def try_layout(self, p: Parallel) -> None:
        """Plan a layout in closed form where it may win."""
        self.examined += 1
        work = self.shape_work(p.micro_batch)
        if next(p.reasons(work.shape, len(work.layers), self.cluster.count, self.job.sequences), None):
            self.left_out["impossible"] += 1
            return
        key = tuple(getattr(p, name) for name in _INNER if name != "pipeline")
        if key not in self._times:
            self._times[key] = job_times(work, self.cluster, p, self.job, self.c)
            self._floors[key] = sum((t.forward_s + t.backward_s) * work.count[name]
                                    for name, t in self._times[key].items())
        if self._floors[key] / p.pipeline * p.micro_batches(self.job.sequences) > self.best_s:
            self.left_out["compute alone is slower than the best"] += 1
            return
        memory = train_memory(self.model, self.cluster, p, self.job, self.optimizer)
        if not memory.fits:
            self.left_out["does not fit"] += 1
            over = memory.total - memory.available
            self._closest = min(self._closest, (over, f"{p.describe()} needs {over / 1e9:.1f} GB a device too much"))
            return
        plan = assemble(self.model, work, self._times[key], (self.cluster, p, self.job), self.c, trace=False)
        self.plans.append(plan)
        self.best_s = min(self.best_s, plan.step_s)

    def why_none(self, fixed: dict[str, int | str]) -> str:
        """What to say where no layout was found."""
        counts = ", ".join(f"{n} {why}" for why, n in self.left_out.items()) or "no candidate"
        kept = f" with {', '.join(f'{k}={v}' for k, v in fixed.items())}" if fixed else ""
        nearest = f"; closest: {self._closest[1]}. Take more devices, a shorter sequence or a smaller batch" \
            if self._closest[1] else "; change the batch, the number of devices or the fixed degrees"
        return (f"no layout{kept} runs {self.model.name} on {self.cluster.describe()} with {self.job.sequences} "
                f"sequences of {self.job.length}: {counts}{nearest}")


def _candidates(work: Work, cluster: Cluster, job: TrainJob, fixed: dict[str, int | str]) -> Iterator[Parallel]:
    """Yield every layout worth a look: the fastest kinds first, so that bounds are tight early."""
    def choices(name: str, usual: list[int]) -> list[int]:
        return [int(fixed[name])] if name in fixed else usual

    recomputes = [str(fixed["recompute"])] if "recompute" in fixed else ["none", "selective", "full"]
    shards = [str(fixed["shard"])] if "shard" in fixed else ["optimizer", "full"]
    layers, shape = len(work.layers), work.shape
    contexts = [1] + [n for n in (2, 4, 8, 16) if job.length // n >= 16384]
    for recompute in recomputes:
        for tensor in choices("tensor", [1, 2, 4, 8]):
            for pipeline in choices("pipeline", [n for n in range(1, min(layers, 64) + 1) if cluster.count % n == 0]):
                for context in choices("context", contexts):
                    ranks = tensor * pipeline * context
                    if cluster.count % ranks and "data" not in fixed:
                        continue
                    data = int(fixed.get("data", max(cluster.count // ranks, 1)))
                    experts = [n for n in range(1, shape.experts + 1)
                               if shape.experts % n == 0 and data * context * tensor % n == 0] or [1]
                    for expert in choices("expert", experts[::-1]):
                        for micro_batch in choices("micro_batch", [1, 2, 4]):
                            for shard in shards:
                                p = Parallel(data, tensor, pipeline, context, expert, 1, micro_batch, shard, recompute)
                                yield from _schedules(p, job, fixed, layers)


def _schedules(p: Parallel, job: TrainJob, fixed: dict[str, int | str], layers: int) -> Iterator[Parallel]:
    if p.pipeline == 1:
        yield replace(p, schedule=str(fixed.get("schedule", "1f1b")), virtual=int(fixed.get("virtual", 1)))
        return
    for schedule in [str(fixed["schedule"])] if "schedule" in fixed else SCHEDULES:
        usual = [2, 4] if schedule == "interleaved" else [1]
        for virtual in [int(fixed["virtual"])] if "virtual" in fixed else usual:
            if p.pipeline * virtual <= layers + 2:
                yield replace(p, schedule=schedule, virtual=virtual)


def why_not(found: Found, model: Model, **change: int | str) -> str:
    """Say why the best layout does not have some other degree, e.g. `why_not(found, model, expert=16)`."""
    best, job = found.best, found.best.job
    named = ", ".join(f"{name}={value}" for name, value in change.items())
    try:
        other = search_layouts(model, best.cluster, job, fixed=dict(change)).best
    except ConfigError as error:
        return f"{named}: {error}"
    slower = other.step_s / best.step_s - 1
    if slower <= 0:
        return f"{named} is what the best layout has: {best.parallel.describe()}"
    parts = sorted(((other.parts_s[name] - best.parts_s[name], name) for name in best.parts_s), reverse=True)
    return (f"{named}: the best such layout, {other.parallel.describe()}, is {100 * slower:.1f} % slower; most of it "
            f"is {parts[0][1]} (+{parts[0][0]:.3g} s of {best.step_s:.3g} s)")
