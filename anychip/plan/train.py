"""One training step on a cluster: layers on pipeline ranks, a simulated schedule, gradients, optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..errors import ConfigError
from .cluster import Cluster
from .collectives import Group, all_gather_s, send_s
from .constants import Constants, constants
from .cut import Share, cut
from .imbalance import expert_load
from .kernels import PUBLISHED, find_kernels
from .layer_times import LayerTime, layer_times
from .models import Model
from .parallel import Parallel, divisors
from .schedule import Task, orders
from .simulate import Timeline, pipeline_needs, simulate
from .times import WIDTHS, Rates, rates
from .work import Batch, Work


@dataclass(frozen=True)
class TrainJob:
    """What is trained: `sequences` of `length` tokens a step, products in `precision`.

    `balanced` takes the experts as evenly loaded (most published runs force it), otherwise their load is drawn from
    `imbalance.expert_load`. `stack` names the training software whose fitted efficiency applies (empty: none);
    `graphs` that its calls start from recorded graphs, `overlapped` that dense layers' products are cut into pieces
    to overlap with tensor-parallel transfers. `passes` is how often a step fills and drains the pipeline (gradients
    accumulated outside of it). `torch_attention`: attention runs in torch's own kernels, not the vendor's. `op_times`:
    where the seconds of ops come from, one of `kernels.SOURCES`.
    """

    sequences: int
    length: int
    precision: str = "bf16"
    balanced: bool = False
    stack: str = ""
    graphs: bool = False
    overlapped: bool = True
    passes: int = 1
    torch_attention: bool = False
    op_times: str = PUBLISHED

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.sequences * self.length


@dataclass(frozen=True)
class TrainPlan:
    """A planned step, seconds simulated. `parts_s` adds up to `step_s`; `timeline` has every task of the pipeline."""

    model: str
    cluster: Cluster
    parallel: Parallel
    job: TrainJob
    step_s: float
    parts_s: dict[str, float]
    bubble: float
    load: float
    model_flops: float
    timeline: Timeline | None = field(default=None, repr=False)

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second of the whole cluster."""
        return self.job.tokens / self.step_s

    @property
    def tokens_per_s_device(self) -> float:
        """Tokens a second of one device."""
        return self.tokens_per_s / self.cluster.count

    @property
    def flops_per_s_device(self) -> float:
        """Model FLOP/s of one device: recomputation is not counted."""
        return self.model_flops / self.step_s / self.cluster.count

    @property
    def mfu(self) -> float:
        """Model FLOP/s over the chip's dense bf16 peak, whatever the precision."""
        return self.flops_per_s_device / self.cluster.facts.peak_flops_per_s["bf16"]


def plan_train(model: Model, cluster: Cluster, parallel: Parallel, job: TrainJob, *, c: Constants | None = None,
               trace: bool = True) -> TrainPlan:
    """Plan one step. With `trace` the schedule is simulated event by event, otherwise taken in closed form.

    Raises ConfigError with every reason for an impossible layout, NotSupported for a precision the chip lacks.
    """
    c = c or constants()
    work = model.work(Batch(parallel.micro_batch, job.length, training=True))
    if job.passes < 1 or job.sequences % job.passes:
        raise ConfigError(f"passes={job.passes} does not divide the batch of {job.sequences} sequences; use "
                          f"{divisors(job.sequences)}")
    parallel.check(work.shape, len(work.layers), cluster.count, job.sequences // job.passes)
    times = job_times(work, cluster, parallel, job, c)
    return assemble(model, work, times, (cluster, parallel, job), c, trace=trace)


def job_times(work: Work, cluster: Cluster, p: Parallel, job: TrainJob, c: Constants) -> dict[str, LayerTime]:
    """Return every part's times of a micro-batch: they depend on tensor, context, expert, micro_batch, recompute."""
    return layer_times(work, cluster, p, (job_rates(cluster, job, c), c),
                       overlapped=job.overlapped and not work.shape.experts)


def job_rates(cluster: Cluster, job: TrainJob, c: Constants) -> Rates:
    """Return the chip's rates in this job. Raises NotSupported for a precision, or kernels, that the chip lacks."""
    r = _stacked(rates(cluster.facts, job.precision, c, graphs=job.graphs,
                       attention_kernels="torch" if job.torch_attention else ""), c, job.stack)
    return replace(r, weight_width=WIDTHS[job.precision], expert_width=WIDTHS[job.precision],
                   kernels=find_kernels(cluster.facts, job.op_times))


def assemble(model: Model, work: Work, times: dict[str, LayerTime], asked: tuple[Cluster, Parallel, TrainJob],
             c: Constants, *, trace: bool) -> TrainPlan:
    """Put a step together from its layers' times: placing, schedule, gradients, optimizer."""
    cluster, parallel, job = asked
    load = 1.0 if job.balanced else expert_load(work, parallel, c)
    slowest = 1 + c["train.jitter"] * math.sqrt(2 * math.log(max(cluster.count, 2)))
    chunks = [(forward * slowest, backward * slowest)
              for forward, backward in place_layers(work, times, parallel, c, load)]
    micros = parallel.micro_batches(job.sequences)
    pipeline, timeline, busy = _pipeline(work, cluster, parallel, (chunks, micros // job.passes), trace=trace)
    pipeline, busy = pipeline * job.passes, busy * job.passes
    gradients = _gradients_s(work, cluster, parallel, (micros, busy), c)
    optimizer = _optimizer_s(work, cluster, parallel)
    parts = {"compute and transfers": busy, "pipeline bubble": pipeline - busy, "gradients": gradients,
             "optimizer": optimizer, "between steps": c["train.step_overhead"]}
    return TrainPlan(model.name, cluster, parallel, job, sum(parts.values()), parts, 1 - busy / pipeline, load,
                     train_flops(work, job), timeline)


def _stacked(r: Rates, c: Constants, stack: str) -> Rates:
    """Rates with the efficiency of one training software."""
    share = c.get(f"stack.{stack}", 1.0) if stack else 1.0
    return replace(r, low=r.low * share, wide=r.wide * share, bytes_per_s=r.bytes_per_s * share)


def train_flops(work: Work, job: TrainJob) -> float:
    """Return the model FLOPs of one step, forward and backward, from the ops' costs; no recomputation."""
    forward = sum(cut(work.parts[name], Share()).total("flops") * n for name, n in work.count.items())
    return 3 * forward / work.batch.tokens * job.tokens


def place_layers(work: Work, times: dict[str, LayerTime], p: Parallel, c: Constants, load: float
                 ) -> list[tuple[float, float]]:
    """Spread the layers over the chunks so that they take about equally long; return each one's (forward, backward).

    The embedding is the first chunk's, the head and MTP the last one's.
    """
    hidden = p.schedule == "dualpipe"
    each = {name: times[name].exposed(c, load, hidden=hidden) for name in work.count}
    count = p.pipeline * p.virtual
    if count == 1:
        return [(sum(each[name][0] * n for name, n in work.count.items()),
                 sum(each[name][1] * n for name, n in work.count.items()))]
    cost = [each[name] for name in work.order]
    total = sum(f + b for f, b in cost)
    chunks, at, passed = [[0.0, 0.0] for _ in range(count)], 0, 0.0
    for i, (forward, backward) in enumerate(cost):
        middle = passed + (forward + backward) / 2
        at = min(max(at, int(middle / total * count)), count - 1)
        if len(cost) - i <= count - at - 1:  # the rest is needed to fill the other chunks
            at = count - (len(cost) - i)
        chunks[at][0] += forward
        chunks[at][1] += backward
        passed += forward + backward
    return [(forward, backward) for forward, backward in chunks]


def _pipeline(work: Work, cluster: Cluster, p: Parallel, loaded: tuple[Sequence[tuple[float, float]], int], *,
              trace: bool) -> tuple[float, Timeline | None, float]:
    """Return (seconds of the pipeline, its timeline, seconds of its busiest rank)."""
    chunks, micros = loaded
    rows = work.batch.tokens / (p.context * p.tensor)
    hop = 0.0 if p.pipeline == 1 else send_s(
        cluster, p.devices // p.pipeline, rows * work.shape.hidden * work.shape.streams * 2.0)
    if not trace:
        return _closed_form(chunks, micros, p, hop)
    timeline = simulate_schedule(chunks, micros, p, hop)
    return timeline.makespan_s, timeline, timeline.busy_s


def _closed_form(chunks: Sequence[tuple[float, float]], micros: int, p: Parallel, hop: float
                 ) -> tuple[float, None, float]:
    """The schedules' published bubbles: the busiest rank's work, and the fill and drain of the others."""
    rank_s = [sum(chunks[i][0] + chunks[i][1] for i in range(r, len(chunks), p.pipeline)) for r in range(p.pipeline)]
    busy = max(rank_s) * micros
    others = (sum(rank_s) - max(rank_s)) / p.virtual
    share = {"zero-bubble": 1 / 3, "dualpipe": 1 / 3}.get(p.schedule, 1.0)
    return busy + others * share + 2 * hop * (p.pipeline - 1), None, busy


def simulate_schedule(chunks: Sequence[tuple[float, float]], micros: int, p: Parallel, hop: float) -> Timeline:
    """Simulate every task of the step. Backward of inputs and of weights take half of a backward each."""
    count = len(chunks)

    def seconds(task: Task) -> float:
        total = 0.0
        for kind, chunk, _ in task.units:
            forward, backward = chunks[chunk if chunk < count else chunk - count]
            total += {"F": forward, "B": backward, "b": backward / 2, "w": backward / 2}[kind]
        return total

    mirrored = p.schedule == "dualpipe"
    return simulate(orders(p.schedule, p.pipeline, micros, p.virtual), seconds,
                    pipeline_needs(count, mirrored=mirrored), hop)


def _gradients_s(work: Work, cluster: Cluster, p: Parallel, hidden_by: tuple[int, float], c: Constants) -> float:
    """Exposed seconds of summing gradients and gathering weights over the data-parallel ranks.

    `hidden_by` are the micro-batches and the seconds of compute behind which transfers can hide, at most all of them.
    """
    micros, busy = hidden_by
    dense, expert = rank_parameters(work, p)
    seconds = 0.0
    for count, size, stride in ((dense, p.dense_group, p.tensor), (expert, p.expert_group, p.expert)):
        if count and size > 1:
            once = all_gather_s(cluster, Group(size, stride), count * 2.0) / c["train.link"]
            # FSDP gathers the weights for each forward and backward, and sums the gradients once
            seconds += once * ((2 * micros + 1) if p.shard == "full" else 2)
    share = c["train.exposed_sharded" if p.shard == "full" else "train.exposed_data"]
    return max(seconds * share, seconds - busy)


def rank_parameters(work: Work, p: Parallel) -> tuple[float, float]:
    """Return the dense and the expert parameters that one rank works on (its pipeline stage's, MTP included)."""
    experts = sum(work.parts[name].num_parameters("expert") * n for name, n in work.count.items())
    every = work.num_parameters(mtp=True)
    return (every - experts) / (p.pipeline * p.tensor), experts / (p.pipeline * p.expert)


def _optimizer_s(work: Work, cluster: Cluster, p: Parallel) -> float:
    """AdamW reads and writes master weight and two moments in fp32, reads the gradient, writes the weight: 30 bytes."""
    dense, expert = rank_parameters(work, p)
    shared = p.shard != "none"
    held = dense / (p.dense_group if shared else 1) + expert / (p.expert_group if shared else 1)
    return held * 30.0 / cluster.facts.memory_bytes_per_s


def global_batch(tokens: int, length: int) -> int:
    """Return the sequences of a batch of that many tokens. Raises ConfigError where they are not whole."""
    if tokens < length or tokens % length:
        raise ConfigError(f"a batch of {tokens} tokens is not a whole number of sequences of {length}")
    return tokens // length
