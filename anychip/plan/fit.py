"""Will it fit? Exact bytes of a served model on each device, the largest context and batch, or what to change."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError
from .cluster import Cluster
from .cut import Share, cut
from .formats import FORMATS, WeightFormat, find_format, native, weight_bytes
from .kernels import PUBLISHED
from .memory import CONTEXT_BYTES, RESERVE
from .models import Model
from .parallel import divisors
from .work import Batch, Work

LINK_BUFFERS = 0.4e9  # HCCL and NCCL keep 0.2 GB for sending and 0.2 GB for receiving by default
CONTEXTS = (4096, 8192, 32768, 131072, 393216, 1048576)


@dataclass(frozen=True)
class Serving:
    """How a model is served: format of weights and cache, tensor parallelism of attention, experts over all devices.

    `chunk` is the most new tokens of one pass, `op_times` where the seconds of ops come from (`kernels.SOURCES`).
    """

    weights: str = "fp4"
    cache: str = "fp8"
    tensor: int = 1
    chunk: int = 4096
    op_times: str = PUBLISHED


@dataclass(frozen=True)
class Fit:
    """One format's answer. `parts` are bytes of one device without caches; `free` what is left for caches (may be
    negative); `sequences` the most sequences of all devices together, by context length."""

    model: str
    cluster: Cluster
    serving: Serving
    parts: dict[str, float]
    free: float
    sequences: dict[int, int]
    native: bool
    needed_devices: int
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Tell whether weights, buffers and at least one sequence of 4,096 tokens fit."""
        return bool(self.sequences) and self.sequences[min(self.sequences)] > 0


def fit_serving(model: Model, cluster: Cluster, serving: Serving) -> Fit:
    """Answer for one weight format and one tensor-parallel degree. Raises ConfigError for an impossible degree."""
    fmt = find_format(serving.weights)
    work = model.work(Batch(1, serving.chunk, training=False))
    _check(work, cluster, serving)
    expert = experts_over(work, cluster.count)
    parts = _parts(work, cluster, serving, fmt, expert)
    free = cluster.facts.memory_bytes - sum(parts.values())
    per_sequence = model.cache(serving.cache)
    groups = cluster.count // serving.tensor
    sequences = {}
    for context in (c for c in CONTEXTS if c <= work.shape.max_context):
        each = per_sequence.per_token * context + per_sequence.per_sequence
        sequences[context] = groups * max(int(free // each), 0)
    needed = _needed(work, cluster, serving, fmt)
    return Fit(model.name, cluster, serving, parts, free, sequences, native(cluster.facts, fmt), needed,
               tuple(_notes(cluster, fmt, free, (needed, parts["routed experts"]))))


def fit_formats(model: Model, cluster: Cluster, cache: str = "fp8", chunk: int = 4096) -> list[Fit]:
    """Answer for every weight format, each with the tensor-parallel degree that holds the most sequences of 32K."""
    found = []
    for name in FORMATS:
        degrees = [t for t in (1, 2, 4, 8, 16) if cluster.count % t == 0]
        tried = []
        for tensor in degrees:
            try:
                tried.append(fit_serving(model, cluster, Serving(name, cache, tensor, chunk)))
            except ConfigError:
                continue
        found.append(max(tried, key=lambda fit: (fit.fits, max(fit.sequences.values()), fit.free)))
    return found


def experts_over(work: Work, devices: int) -> int:
    """Return over how many devices the experts are spread: all; each holds as many, some of them twice."""
    return min(devices, work.shape.experts) if work.shape.experts else 1


def _check(work: Work, cluster: Cluster, serving: Serving) -> None:
    reasons = []
    if serving.tensor < 1 or cluster.count % serving.tensor:
        reasons.append(f"tensor={serving.tensor} does not divide {cluster.count} devices; use "
                       f"{divisors(cluster.count)}")
    if serving.tensor >= 1 and work.shape.heads % serving.tensor:
        reasons.append(f"tensor={serving.tensor} does not divide num_attention_heads={work.shape.heads}; use "
                       f"{divisors(work.shape.heads)}")
    if serving.chunk < 1:
        reasons.append(f"chunk={serving.chunk} must be at least 1")
    if reasons:
        raise ConfigError(f"{work.shape.name} cannot be served so: " + "; ".join(reasons))


def _parts(work: Work, cluster: Cluster, serving: Serving, fmt: WeightFormat, expert: int) -> dict[str, float]:
    share = -(-work.shape.experts // expert) / work.shape.experts if work.shape.experts else 0.0
    experts = share * sum(w.numel * fmt.expert * n for name, n in work.count.items()
                          for w in work.parts[name].weights if w.kind == "expert")
    every = experts + weight_bytes(work, fmt, serving.tensor)
    return {
        "routed experts": experts,
        "other weights": every - experts,
        "workspace": workspace_bytes(work, serving, expert),
        "communication buffers": LINK_BUFFERS if cluster.count > 1 else 0.0,
        "runtime": CONTEXT_BYTES,
        "allocator reserve": RESERVE * cluster.facts.memory_bytes,
    }


def workspace_bytes(work: Work, serving: Serving, expert: int) -> float:
    """Bytes live at once in a pass of `chunk` tokens: the largest call's tensors, the streams twice, the logits."""
    share = Share(serving.tensor, 1, expert)
    largest = max(float(cut(part, share).moved.max()) for part in work.parts.values() if part.calls)
    streams = 2 * 2.0 * work.batch.tokens * work.shape.hidden * work.shape.streams
    return largest + streams + 4.0 * work.shape.vocab * work.batch.sequences / serving.tensor


def _needed(work: Work, cluster: Cluster, serving: Serving, fmt: WeightFormat) -> int:
    """Devices from which on everything but caches fits, in steps that divide the experts; 0 where none do."""
    choices = [d for d in range(1, max(work.shape.experts, 1024) + 1)
               if not work.shape.experts or work.shape.experts % d == 0]
    for devices in choices:
        parts = _parts(work, cluster, serving, fmt, devices if work.shape.experts else 1)
        if not work.shape.experts:
            parts["other weights"] /= devices
        if sum(parts.values()) < cluster.facts.memory_bytes:
            return devices
    return 0


def _notes(cluster: Cluster, fmt: WeightFormat, free: float, needs: tuple[int, float]) -> list[str]:
    """What to know or change. `needs`: devices that hold this format, bytes of its experts on each device now."""
    (needed, experts), notes = needs, []
    if not native(cluster.facts, fmt):
        notes.append(f"{cluster.facts.name} has no {fmt.compute} matrix unit (it has "
                     f"{', '.join(cluster.facts.formats)}): kernels must expand these weights")
    if free < 0:
        lower = [f.name for f in FORMATS.values() if experts * (1 - f.expert / fmt.expert) > -free]
        notes.append(f"{-free / 1e9:.1f} GB a device too much; "
                     + (f"take {needed} devices" if needed > cluster.count else "spread attention over more devices")
                     + (f", or weights in {' or '.join(lower)}" if lower else ""))
    return notes


