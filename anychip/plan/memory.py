"""Bytes on one device of a training layout: every part apart, for the fullest pipeline rank.

Weights in bf16, gradients in fp32, master weights and moments in fp32 (AdamW 12 bytes a weight, Muon 8: one moment).
Activations are what the ops keep for backward (`keep.py`), for the micro-batches that a schedule has in flight.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from ..errors import ConfigError
from .cluster import Cluster
from .keep import kept_bytes
from .models import Model
from .parallel import Parallel
from .train import TrainJob, rank_parameters
from .work import Batch, Work

OPTIMIZERS = ("adamw", "muon")
RESERVE = 0.06  # of the device: runtime, fragmentation (a guess: allocators of both vendors hold 3 to 10 %)
CONTEXT_BYTES = 1.5e9  # driver, libraries and communicators of one process (a guess)


@dataclass(frozen=True)
class TrainMemory:
    """Bytes of one device by part, and what the device has."""

    parts: dict[str, float]
    available: float

    @property
    def total(self) -> float:
        """Bytes needed."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Tell whether the device holds it."""
        return self.total <= self.available


def train_memory(model: Model, cluster: Cluster, p: Parallel, job: TrainJob, optimizer: str = "muon") -> TrainMemory:
    """Return the memory of the fullest rank (the first pipeline stage). Raises ConfigError for an unknown optimizer."""
    if optimizer not in OPTIMIZERS:
        raise ConfigError(f"optimizer {optimizer!r}: choose one of {', '.join(OPTIMIZERS)}")
    work = model.work(Batch(p.micro_batch, job.length, training=True))
    dense, expert = rank_parameters(work, p)
    dense_held = dense / p.dense_group if p.shard == "full" else dense
    expert_held = expert / p.expert_group if p.shard == "full" else expert
    states = {name: sum(per * held for per, held in zip(widths, _state_shares(p, dense, expert), strict=True))
              for name, widths in _state_widths(work, optimizer).items()}
    layer = max(work.parts[name].num_parameters() - work.parts[name].num_parameters("expert") for name in work.layers)
    gathered = 2.0 * 2 * layer / p.tensor if p.shard == "full" else 0.0  # this layer's weights, and the next one's
    rows = work.batch.tokens / (p.context * p.tensor)
    width = work.shape.expert_width or work.shape.hidden
    routed = 4 * rows * work.shape.topk * width * 2.0 if p.expert > 1 else 0.0
    capacity = float(cluster.facts.memory_bytes)
    parts = {
        "weights": 2.0 * (dense_held + expert_held) + gathered,
        "gradients": 4.0 * (dense_held + expert_held),
        **states,
        "activations": activation_bytes(work, p, job),
        "logits": logits_bytes(work, p),
        "communication buffers": routed + 2 * rows * work.shape.hidden * work.shape.streams * 2.0 * (p.pipeline > 1),
        "runtime": CONTEXT_BYTES,
        "allocator reserve": RESERVE * capacity,
    }
    return TrainMemory({name: value for name, value in parts.items() if value}, capacity)


def _state_shares(p: Parallel, dense: float, expert: float) -> tuple[float, float]:
    """Dense and expert parameters whose optimizer state one rank holds."""
    shared = p.shard != "none"
    return dense / (p.dense_group if shared else 1), expert / (p.expert_group if shared else 1)


def _state_widths(work: Work, optimizer: str) -> dict[str, tuple[float, float]]:
    """Bytes of optimizer state a (dense, expert) parameter: master weights and moments, Muon's and AdamW's apart."""
    if optimizer == "adamw":
        return {"AdamW state": (12.0, 12.0)}
    matrices = sum(sum(w.numel for w in work.parts[name].weights if w.kind in ("linear", "plain")) * n
                   for name, n in work.count.items())
    others = sum(sum(w.numel for w in work.parts[name].weights if w.kind in ("small", "embedding")) * n
                 for name, n in work.count.items())
    share = matrices / max(matrices + others, 1)
    return {"Muon state": (8.0 * share, 8.0), "AdamW state": (12.0 * (1 - share), 0.0)}


def activation_bytes(work: Work, p: Parallel, job: TrainJob) -> float:
    """Bytes kept by the first pipeline rank for all micro-batches in flight."""
    count = sum(work.count[name] for name in set(work.layers))
    per_layer = sum(kept_per_layer(work, name, p) * work.count[name] for name in set(work.layers)) / count
    layers = count / p.pipeline
    flight = in_flight(p, p.micro_batches(job.sequences) // job.passes)
    ends = sum(work.parts[name].kept * n for name, n in work.count.items() if name in ("head", "mtp"))
    ends = ends / (p.context * p.tensor) if p.pipeline == 1 else 0.0
    again = 0.0 if p.recompute != "full" else max(work.parts[n].kept for n in work.layers) / (p.context * p.tensor)
    return layers * per_layer * flight + again + ends


def kept_per_layer(work: Work, name: str, p: Parallel) -> float:
    """Bytes that one layer keeps for one micro-batch on one rank."""
    ranks = p.context * p.tensor
    if p.recompute == "full":
        return work.batch.tokens * work.shape.hidden * work.shape.streams * 2.0 / ranks
    if p.recompute == "selective":
        return min(_products_inputs(work, name), work.parts[name].kept) / ranks
    return work.parts[name].kept / ranks


@lru_cache(maxsize=4096)
def _products_inputs(work: Work, name: str) -> float:
    """What is left when norms, mixing and the experts' gate and up products are computed again."""
    kept = [call for call in work.parts[name].calls if call.op in ("linear", "attention", "dense_attention", "hc_pre",
                                                                   "experts", "mlp", "grouped_linear")]
    return kept_bytes(kept) - sum(2.0 * call.arguments[1].numel() * call.arguments[3][0].shape[1]
                                  for call in kept if call.op == "experts")


def in_flight(p: Parallel, micros: int) -> float:
    """Micro-batches (of a whole rank's layers) that the first pipeline rank holds at once."""
    if p.schedule == "interleaved":
        return min(p.pipeline * (1 + (p.pipeline - 1) / (p.pipeline * p.virtual)), micros)
    return min(p.pipeline + (1 if p.schedule == "dualpipe" else 0), micros)


def logits_bytes(work: Work, p: Parallel) -> float:
    """The head's logits are made in chunks of at most 256 MB, their gradient in place."""
    return min(work.batch.tokens / p.context * work.shape.vocab / p.tensor * 4.0, 256e6) * 2
