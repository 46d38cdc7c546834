"""Published training rows as planned steps: layout, batch and precision read from the row, the rest from habits.

What a row leaves out is taken the same way for all: micro-batches of one sequence, ZeRO-1, 1F1B (interleaved with VP),
eight micro-batches a pipeline rank where no batch is stated; where no layout is stated, the first that fits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from .cluster import Cluster, usual_cluster
from .memory import train_memory
from .models import Model
from .parallel import Parallel
from .rows import Row, Unusable, first_number, row_cluster, row_model, row_precision, row_stack
from .train import TrainJob, TrainPlan

_DEGREES = {"TP": "tensor", "PP": "pipeline", "CP": "context", "EP": "expert", "VP": "virtual", "VPP": "virtual",
            "MBS": "micro_batch", "LBS": "micro_batch"}


@dataclass(frozen=True)
class TrainCase:
    """A row as the planner's question. `stated` tells whether the row gives its layout; `published` is tokens/s a
    device, or the metric itself (`mfu` in %, `tflops` of model FLOPs a published chip)."""

    row: Row
    model: Model
    cluster: Cluster
    parallel: Parallel
    job: TrainJob
    published: float
    metric: str
    per_chip: int
    stated: bool

    def predicted(self, plan: TrainPlan) -> float:
        """Return the plan's figure in the row's metric."""
        if self.metric == "hardware tflops":  # recomputed FLOPs count: four passes instead of three
            return plan.flops_per_s_device * self.per_chip / 1e12 * (4 / 3 if self.parallel.recompute == "full" else 1)
        if self.metric == "mfu":
            return 100 * plan.mfu
        if self.metric == "tflops":
            return plan.flops_per_s_device * self.per_chip / 1e12
        return plan.tokens_per_s_device * self.per_chip


def train_case(row: Row) -> TrainCase:
    """Return a training row as a case. Raises Unusable with the reason."""
    published, metric = _published(row)
    model = row_model(row)
    cluster, per_chip = row_cluster(row)
    length = first_number(row["seq_len"])
    if length is None and row["seq_len"]:
        raise Unusable(f"sequences of {row['seq_len']!r} tokens")
    if model.name == "pangu-ultra-moe" and row["metric"] == "MFU":
        raise Unusable("its MFU and its tokens/s do not agree (243 tokens/s a device at 30 % need 440 GFLOP a token), "
                       "so what the MFU divides by is not known")
    if model.name == "deepseek-v3.2":
        raise Unusable("it trains the sparse indexer against dense attention, whose cost is not modelled")
    if "lora" in row.words or "rl " in row.words:
        raise Unusable("only part of the model is trained, or rollouts are mixed in")
    words = row["parallelism"].upper()
    degrees = {_DEGREES[name]: int(value) for name, value in
               re.findall(r"(?<![A-Z])(TP|PP|CP|EP|VPP?|MBS|LBS) ?(\d+)", words)}
    stated = bool({"tensor", "pipeline"} & set(degrees)) or "FSDP" in words
    length = int(length or 4096)
    if not stated:
        parallel, sequences = guess_layout(model, cluster, length, row)
    else:
        parallel, sequences = _stated_layout(row, cluster, degrees, length)
        cluster = usual_cluster(cluster.facts, parallel.devices)
    balanced = any(word in row.words for word in ("balanced", "tokendrop", "megatron-core"))
    if not any(word in row.words for word in ("recompute", " ac", "checkpointing")):
        parallel = least_recompute(model, cluster, parallel, TrainJob(sequences, length))
    stack = row_stack(row)
    # Megatron-Bridge's recipes for NVL72 racks record graphs, those for single nodes mostly do not
    graphs = row["system"].startswith("Megatron-Bridge") and cluster.facts.name.startswith("gb")
    job = TrainJob(sequences, length, row_precision(row), balanced, stack, graphs,
                   stack != "torchtitan" or "asynctp" in row.words, _passes(row, parallel, sequences),
                   stack == "torchtitan" or "sdpa" in row.words or "flexattn" in row.words)
    return TrainCase(row, model, cluster, parallel, job, published, metric, per_chip, stated)


def _published(row: Row) -> tuple[float, str]:
    """The figure in tokens/s a published chip, or as MFU or TFLOP/s."""
    metric, unit, value = row["metric"], row["unit"].lower(), row.value
    if metric == "throughput" and unit.startswith("tokens/s/"):
        return value, "tokens"
    if metric == "throughput_total" and unit == "tokens/s":
        return value / (first_number(row["n_chips"]) or 1), "tokens"
    if metric == "gpu_hours_per_T_tokens":
        return 1e12 / (value * 3600), "tokens"
    if metric == "MFU":
        return value, "mfu"
    if metric == "model_tflops":
        old = "include recompute" in row.words or row["system"].startswith("Megatron-LM README")
        return value, "hardware tflops" if old else "tflops"
    raise Unusable(f"{metric} in {row['unit']!r} is not a rate of training" if "ambiguous" not in unit
                   else "the unit is ambiguous")


def _stated_layout(row: Row, cluster: Cluster, degrees: dict[str, int], length: int) -> tuple[Parallel, int]:
    fixed = degrees.get("tensor", 1) * degrees.get("pipeline", 1) * degrees.get("context", 1)
    if cluster.count % fixed:  # a cluster's round size: the job takes what its layout divides
        cluster = usual_cluster(cluster.facts, cluster.count // fixed * fixed)
    virtual = _virtual(row, degrees)
    full = ("include recompute", "megatron-lm readme", "full ac", "activation recompute", "activation checkpointing")
    again = "full" if any(word in row.words for word in full) else (
        "selective" if "selective ac" in row.words or "selective op ac" in row.words else "none")
    p = Parallel(data=cluster.count // fixed, virtual=virtual, recompute=again,
                 shard="full" if "FSDP" in row["parallelism"].upper() else "optimizer",
                 schedule=_schedule(row, virtual), **degrees)
    p = replace(p, expert=_common(p.expert, p.data * p.context * p.tensor))
    tokens = first_number(row["batch_tokens"])
    if tokens and "torchtitan" in row["system"] and "micro_batch" not in degrees:
        # a rank's batch in one go, or in as many micro-batches as the pipeline has ranks (its default)
        p = replace(p, micro_batch=max(round(tokens / length / p.data / p.pipeline), 1))
    unit = p.data * p.micro_batch
    sequences = round(tokens / length) if tokens else unit * max(8 * p.pipeline, 8 if p.pipeline > 1 else 1)
    if p.schedule == "interleaved":
        unit *= p.pipeline  # its micro-batches come in whole groups
    return p, max(round(sequences / unit), 1) * unit


def _passes(row: Row, p: Parallel, sequences: int) -> int:
    """How often a step runs the pipeline: NeMo AutoModel's GA counts whole local batches."""
    stated = re.search(r"(?<![A-Z])GA ?(\d+)", row["parallelism"].upper())
    if stated is None or row_stack(row) != "automodel" or p.pipeline == 1:
        return 1
    return _common(int(stated[1]), p.micro_batches(sequences) // p.pipeline)


def _common(expert: int, ranks: int) -> int:
    """The largest part of the stated expert parallelism that the stage's ranks allow."""
    return max(d for d in range(1, expert + 1) if expert % d == 0 and ranks % d == 0)


def _virtual(row: Row, degrees: dict[str, int]) -> int:
    """Chunks of a pipeline rank: as stated; where the row says interleaved and no number, or Llama 3's paper, four."""
    stated = degrees.pop("virtual", 0)
    if degrees.get("pipeline", 1) == 1:
        return 1
    usual = 4 if "interleaved" in row.words or row["system"].startswith("Llama 3 paper") else 1
    if usual > 1 and row_stack(row) == "torchtitan":
        usual = 2  # its default
    return stated or usual


def _schedule(row: Row, virtual: int) -> str:
    """DeepSeek-V3 was trained with DualPipe (arXiv:2412.19437, section 3.2.1), whether a row says so or not."""
    if row["system"].startswith(("DeepSeek-V3", "DeepSeek-V4")) or "dualpipe" in row.words:
        return "dualpipe"
    return "interleaved" if virtual > 1 else "1f1b"


def least_recompute(model: Model, cluster: Cluster, p: Parallel, job: TrainJob) -> Parallel:
    """Return the layout, with selective recomputation where it does not fit without.

    Where that does not fit either, activations were offloaded or weights held in fewer bytes: nothing more is assumed.
    """
    return p if train_memory(model, cluster, p, job, "adamw").fits else replace(p, recompute="selective")


def guess_layout(model: Model, cluster: Cluster, length: int, row: Row) -> tuple[Parallel, int]:
    """Return the first layout that fits, fewest ways first: what a user without a search would take."""
    from .work import Batch

    shape = model.work(Batch(1, length, training=True)).shape
    node = cluster.levels[0].size if cluster.levels[0].size >= 8 else 8
    for again in ("none", "selective", "full"):
        for tensor in (1, 2, 4, 8):
            for pipeline in (1, 2, 4, 8, 16):
                ranks = tensor * pipeline
                if tensor > node or cluster.count % ranks or (shape.heads and shape.heads % tensor):
                    continue
                expert = 1
                while shape.experts and expert * 2 <= min(cluster.count // pipeline, 64) and not (
                        shape.experts % (expert * 2) or (cluster.count // pipeline) % (expert * 2)):
                    expert *= 2
                p = Parallel(cluster.count // ranks, tensor, pipeline, expert=expert, recompute=again)
                tokens = first_number(row["batch_tokens"])
                sequences = max(round((tokens or 0) / length / p.data), 8 * pipeline if pipeline > 1 else 8) * p.data
                job = TrainJob(sequences, length)
                if train_memory(model, cluster, p, job, "adamw").fits:
                    return p, sequences
    raise Unusable("no simple layout fits the memory, and the row states none")
