"""Serving: seconds of a decode step and of a prefill pass, tokens a second, and pools that meet a latency.

Attention is data-parallel (or tensor-parallel in small groups), experts are spread over all devices, tokens travel to
them and back in every layer. A decode step of a speculative model verifies `drafts` tokens a sequence and drafts as
many with the MTP block; `accepted` of them stay on average.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..errors import InputError, NotSupported
from .cluster import Cluster
from .collectives import Group, all_gather_s, all_to_all_s
from .constants import Constants, constants
from .cut import CLASSES, Share, cut, uneven
from .fit import Serving, experts_over, fit_serving
from .formats import FORMATS, find_format
from .imbalance import load_distribution
from .kernels import PUBLISHED, find_kernels
from .layer_times import fast_network
from .models import Model
from .times import EXPERTS, Rates, forward_s, rates
from .work import Batch, Part, Work

CACHE_WIDTHS = {"fp8": 584 / 512, "int8": 1.0, "bf16": 2.0}


@dataclass(frozen=True)
class Traffic:
    """What is asked of a decode pool: sequences in flight on all devices, tokens before them, drafts of each step.

    `balanced` experts get equal loads; `online` requests come and go (scheduling, uneven lengths).
    """

    sequences: float
    context: int
    drafts: int = 0
    accepted: float = 0.0
    balanced: bool = False
    online: bool = False

    def __post_init__(self) -> None:
        wrong = []
        if self.sequences <= 0:
            wrong.append(f"sequences={self.sequences} must be above 0")
        if self.context < 1:
            wrong.append(f"context={self.context} must be at least 1")
        if not 0 <= self.accepted <= self.drafts:
            wrong.append(f"accepted={self.accepted} must be from 0 to drafts={self.drafts}")
        if wrong:
            raise InputError("no traffic is like that: " + "; ".join(wrong))


@dataclass(frozen=True)
class ServePlan:
    """A planned pass, seconds simulated. `tokens_per_s` is of the whole pool; `parts_s` adds up to `step_s`."""

    model: str
    cluster: Cluster
    serving: Serving
    task: str
    step_s: float
    tokens_per_s: float
    parts_s: dict[str, float]
    load: float
    bound: str
    token_s: float  # between two tokens of one user; prefill: to the first token
    work: Work = field(repr=False)

    @property
    def tokens_per_s_device(self) -> float:
        """Tokens a second of one device."""
        return self.tokens_per_s / self.cluster.count


def plan_decode(model: Model, cluster: Cluster, serving: Serving, traffic: Traffic, *, c: Constants | None = None
                ) -> ServePlan:
    """Plan one decode step of all sequences. Raises NotSupported for formats that cannot be computed."""
    c = c or constants()
    groups = cluster.count / serving.tensor
    each = max(traffic.sequences / groups, 0.0)
    whole = max(round(each), 1)
    longest = model.work(Batch(1, 1)).shape.max_context - 1 - traffic.drafts
    work = model.work(Batch(whole, 1 + traffic.drafts, min(traffic.context, longest)))
    r = serve_rates(cluster, serving, c)
    load = _load(work, cluster, c, traffic.balanced, whole * groups * (1 + traffic.drafts))
    parts = _pass_parts(work, cluster, serving, (r, c), load)
    if traffic.drafts and "mtp" in work.parts:
        parts["drafts"] *= traffic.drafts
    else:
        parts["drafts"] = 0.0
    parts["scheduling"] = c[f"serve.step_{_vendor(cluster)}"]
    if traffic.online:
        parts["coming and going"] = sum(parts.values()) * (c["serve.online"] - 1)
    step = sum(parts.values())
    tokens = traffic.sequences * (1 + traffic.accepted)
    return ServePlan(model.name, cluster, serving, "decode", step, tokens / step, parts, load,
                     max(parts, key=lambda name: parts[name]), step / (1 + traffic.accepted), work)


def plan_prefill(model: Model, cluster: Cluster, serving: Serving, length: int, tokens_per_device: int, *,
                 balanced: bool = False, hit: float = 0.0, online: bool = False, c: Constants | None = None
                 ) -> ServePlan:
    """Plan prefill passes of `tokens_per_device` new tokens in prompts of `length`, of which `hit` is cached.

    Raises InputError for a hit rate that leaves nothing to compute.
    """
    c = c or constants()
    if not 0 <= hit < 1:
        raise InputError(f"a prefix hit rate of {hit} leaves nothing to compute; it must be from 0 to below 1")
    fresh = max(round(length * (1 - hit)), 1)
    sequences = max(round(tokens_per_device * serving.tensor / fresh), 1)
    work = model.work(Batch(sequences, fresh, length - fresh))
    r = serve_rates(cluster, serving, c)
    tokens = sequences * fresh * cluster.count / serving.tensor
    load = _load(work, cluster, c, balanced, tokens)
    parts = _pass_parts(work, cluster, serving, (r, c), load)
    parts["drafts"] = 0.0
    parts["scheduling"] = c[f"serve.step_{_vendor(cluster)}"]
    if online:
        parts["coming and going"] = sum(parts.values()) * (c["serve.online"] - 1)
    step = sum(parts.values())
    return ServePlan(model.name, cluster, serving, "prefill", step, tokens / step, parts, load,
                     max(parts, key=lambda name: parts[name]), step, work)


def serve_rates(cluster: Cluster, serving: Serving, c: Constants) -> Rates:
    """Return the chip's rates with this model's formats: experts and linear layers may differ.

    Raises NotSupported where the chip takes neither the weights' format nor a wider one they can be expanded to.
    """
    fmt, facts = find_format(serving.weights), cluster.facts
    linear = "int8" if fmt.compute == "int8" else "bf16" if fmt.compute == "bf16" else "fp8"
    expert = fmt.compute
    formats = set(facts.formats)
    linear = linear if linear in formats else "int8" if "int8" in formats and linear != "bf16" else "bf16"
    if expert not in formats or serving.weights == "fp4" and facts.vendor == "Huawei":
        expert = linear  # FP4 weights are expanded: the products take the activations' format
    if linear not in formats:
        raise NotSupported(f"{facts.name} computes in {', '.join(facts.formats)}; none fits {fmt.name} weights. "
                           f"Weight formats: {', '.join(FORMATS)}")
    base, of_experts = rates(facts, linear, c, group="serve"), rates(facts, expert, c, group="serve")
    low = base.low.copy()
    low[EXPERTS] = of_experts.low[EXPERTS]
    return replace(base, low=low, weight_width=fmt.linear, expert_width=fmt.expert,
                   cache_width=CACHE_WIDTHS[serving.cache], kernels=find_kernels(facts, serving.op_times))


def bound_seconds(work: Work, cluster: Cluster, serving: Serving) -> float:
    """Return the roofline bound of a pass: peaks and bandwidth of the chip's facts, nothing fitted, nothing sent."""
    ideal = {f"serve.{name}": 1.0 for name in (
        "product_bf16", "product_int8", "product_fp8", "product_fp4", "experts", "attention_cuda", "attention_ascend",
        "memory", "passes_cuda", "passes_ascend")}
    nothing = {f"serve.{name}": 0.0 for name in (
        "power", "launch_cuda", "launch_ascend", "quantise_fp8", "quantise_fp4", "quantise_int8")}
    serving = replace(serving, op_times=PUBLISHED)
    facts, r = cluster.facts, serve_rates(cluster, serving, constants().with_values({**ideal, **nothing}))
    best = facts.facts["efficiency.matmul"].si
    r = replace(r, low=r.low / best, wide=r.wide / best, bytes_per_s=facts.memory_bytes_per_s)
    expert = experts_over(work, cluster.count)
    total = 0.0
    for name, times in work.count.items():
        if name != "mtp":
            part = work.parts[name]
            cuts = cut(part, Share(serving.tensor, 1, expert if part.moe else 1))
            total += times * float(forward_s(cuts, r).sum())
    return total


def _vendor(cluster: Cluster) -> str:
    return "ascend" if cluster.facts.vendor == "Huawei" else "cuda"


def _load(work: Work, cluster: Cluster, c: Constants, balanced: bool, tokens: float) -> float:
    """The fullest expert rank over the mean. Every rank has room for as many experts: what is left holds copies."""
    experts, ranks = work.shape.experts, cluster.count
    if balanced or not experts:
        return 1.0
    copies = ranks * -(-experts // ranks) - experts
    return load_distribution(experts, ranks, int(tokens * work.shape.topk), c["serve.popularity"], copies).mean


def _pass_parts(work: Work, cluster: Cluster, serving: Serving, rated: tuple[Rates, Constants], load: float
                ) -> dict[str, float]:
    """Seconds of one pass by what takes them; `drafts` is one MTP pass."""
    r, _ = rated
    expert = experts_over(work, cluster.count)
    parts = dict.fromkeys((*CLASSES, "exchange", "drafts"), 0.0)
    for name, times in work.count.items():
        part = work.parts[name]
        cuts = cut(part, Share(serving.tensor, 1, expert if part.moe else 1))
        seconds = forward_s(uneven(cuts, load), r)
        by_class = {label: float(seconds[cuts.kind == kind].sum()) for kind, label in enumerate(CLASSES)}
        exchange = _exchange_s(work, part, cluster, (serving, load), rated[1], sum(by_class.values()))
        if name == "mtp":  # it drafts one token a sequence, not the batch's tokens
            parts["drafts"] = sum(by_class.values()) + exchange
            continue
        for label, value in by_class.items():
            parts[label] += value * times
        parts["exchange"] += exchange * times
    return parts


def _exchange_s(work: Work, part: Part, cluster: Cluster, asked: tuple[Serving, float], c: Constants, busy: float
                ) -> float:
    """Dispatch and combine of a layer's tokens beyond what its `busy` seconds hide, and the sums of tensor parallelism.
    """
    (serving, load), seconds, tokens = asked, 0.0, work.batch.tokens
    expert = experts_over(work, cluster.count)
    vendor = _vendor(cluster)
    if part.moe and expert > 1 and serving.tensor < cluster.count:  # within one group every rank has every token
        width = work.shape.expert_width or work.shape.hidden
        rows = tokens / serving.tensor * work.shape.topk
        sent = all_to_all_s(cluster, Group(expert), rows * width * (1.0 + 2.0), copies=work.shape.topk)
        sent *= load / c["serve.link"]
        far = expert > fast_network(cluster)
        seconds += max(sent * c["serve.exposed_far" if far else "serve.exposed_near"], sent - busy)
        seconds += 2 * c[f"serve.exchange_{vendor}"]
    if serving.tensor > 1 and part.name not in ("embed", "head"):
        once = all_gather_s(cluster, Group(serving.tensor), tokens * work.shape.hidden * 2.0) / c["serve.link"]
        seconds += 2 * (2 * once + c[f"serve.exchange_{vendor}"] / 4)
    return seconds


def largest_batch(model: Model, cluster: Cluster, serving: Serving, traffic: Traffic, token_s: float, *,
                  c: Constants | None = None) -> ServePlan:
    """Return the decode plan with the most sequences whose tokens come within `token_s` and whose caches fit.

    Raises InputError where not even one sequence a group is fast enough or fits.
    """
    groups = cluster.count // serving.tensor
    room = room_for(model, cluster, serving, traffic.context + 1) // groups
    plan = plan_decode(model, cluster, serving, replace(traffic, sequences=groups), c=c)
    if room < 1 or plan.token_s > token_s:
        raise InputError(f"{model.name} on {cluster.describe()}: one sequence a device group needs "
                         f"{plan.token_s * 1e3:.1f} ms a token and there is room for {room} of them; asked were "
                         f"{token_s * 1e3:.1f} ms: take more devices, a longer latency or smaller weights")
    low, high = 1, min(room, 4096)
    while low < high:
        middle = (low + high + 1) // 2
        tried = plan_decode(model, cluster, serving, replace(traffic, sequences=middle * groups), c=c)
        if tried.token_s <= token_s:
            low, plan = middle, tried
        else:
            high = middle - 1
    return plan if low > 1 else plan_decode(model, cluster, serving, replace(traffic, sequences=groups), c=c)


def room_for(model: Model, cluster: Cluster, serving: Serving, context: int) -> int:
    """Return how many sequences of this context the devices hold together."""
    fitted = fit_serving(model, cluster, serving)
    each = model.cache(serving.cache)
    return cluster.count // serving.tensor * max(int(fitted.free // (each.per_token * context + each.per_sequence)), 0)
