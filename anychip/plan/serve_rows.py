"""Published serving rows as planned passes: batch, context, formats, drafts and latency read from the row."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ..config.specs import GroupedAttention
from ..errors import AnychipError, InputError
from .cluster import Cluster, usual_cluster
from .constants import Constants
from .fit import Serving
from .models import Model
from .rows import Row, Unusable, first_number, row_cluster, row_model
from .serve import ServePlan, Traffic, largest_batch, plan_decode, plan_prefill

_ONLINE = ("online", "deepseek blog", "slow-down", "production", "sglang on ascend", "omniinfer", "vllm-ascend 2p1d",
           "vllm-ascend 1p1d")


@dataclass(frozen=True)
class ServeCase:
    """A row as the planner's question. `traffic` None: prefill of `length` tokens a prompt, `tokens` a device.

    `token_s` is a stated latency a token; with it and no stated batch the largest batch that meets it is planned.
    """

    row: Row
    model: Model
    cluster: Cluster
    serving: Serving
    traffic: Traffic | None
    published: float
    per_chip: int
    token_s: float | None
    length: int
    tokens: int
    hit: float = 0.0
    prompt: int = 0  # averaged over prefill devices too: tokens in and out of a request
    answer: int = 0

    def predict(self, c: Constants) -> float:
        """Return the figure in the row's unit: tokens/s of one published chip."""
        if self.limited:
            return self._at_latency(c) * self.per_chip
        plan = self.plan(c)
        return plan.tokens_per_s_device * self.per_chip * self._decode_share(plan, c)

    @property
    def limited(self) -> bool:
        """Tell whether the batch is what a latency allows, not stated."""
        return self.traffic is not None and not self.row["batch_tokens"]

    def plan(self, c: Constants) -> ServePlan:
        """Return the plan that the row asks for."""
        if self.traffic is None:
            return plan_prefill(self.model, self.cluster, self.serving, self.length, self.tokens,
                                balanced=_balanced(self.row), hit=self.hit,
                                online=_online(self.row), c=c)
        if not self.limited:
            return plan_decode(self.model, self.cluster, self.serving, self.traffic, c=c)
        try:
            return largest_batch(self.model, self.cluster, self.serving, self.traffic, self._token_s, c=c)
        except InputError as error:
            raise Unusable(f"no batch meets the stated latency: {error}") from error

    @property
    def _token_s(self) -> float:
        return self.token_s or 0.1

    def _at_latency(self, c: Constants) -> float:
        """Tokens/s of one device at the stated latency, between the largest whole batch that meets it and the next:
        ranks' batches differ, and on average need not be whole."""
        plan, traffic = self.plan(c), self.traffic
        assert traffic is not None
        groups = self.cluster.count // self.serving.tensor
        more = plan_decode(self.model, self.cluster, self.serving,
                           replace(traffic, sequences=(plan.work.batch.sequences + 1) * groups), c=c)
        rate, next_rate = (p.tokens_per_s_device * self._decode_share(p, c) for p in (plan, more))
        part = (self._token_s - plan.token_s) / max(more.token_s - plan.token_s, 1e-12)
        return rate + min(part, 1.0) * (next_rate - rate)

    def _decode_share(self, plan: ServePlan, c: Constants) -> float:
        """The share of all devices' time that decodes, where devices that prefill are counted too."""
        if not self.answer:
            return 1.0
        decode = self.answer / plan.tokens_per_s_device
        prefill = plan_prefill(self.model, self.cluster, self.serving, self.prompt, 8192, c=c)
        return decode / (decode + self.prompt / prefill.tokens_per_s_device)


def serve_case(row: Row) -> ServeCase:
    """Return a serving row as a case. Raises Unusable with the reason."""
    model = row_model(row)
    cluster, per_chip = _cluster(row)
    published = _published(row, per_chip)
    _refuse(row)
    serving = _serving(row, cluster, model)
    length = int(first_number(row["seq_len"]) or 4096)
    if row["task"] == "prefill":
        tokens = first_number(row["batch_tokens"]) or 16384 * per_chip
        share = tokens / cluster.count if tokens > 65536 else tokens / per_chip
        hit = re.search(r"([\d.]+)% cache hits", row.words)
        fresh = 1 - float(hit[1]) / 100 if hit else 1.0
        return ServeCase(row, model, cluster, serving, None, published * fresh, per_chip, None, length,
                         max(int(share), 256))
    drafts, accepted = _drafts(row)
    prompt, answer = _request(row)
    context = prompt + answer // 2 if answer else length
    traffic = Traffic(_sequences(row, cluster), max(context, 1), drafts, accepted, _balanced(row), _online(row))
    averaged = any(word in row.words for word in ("averaged over all", "colocated", "pd hybrid"))
    return ServeCase(row, model, cluster, serving, traffic, published, per_chip, _latency(row), length, 0,
                     prompt=prompt if averaged else 0, answer=answer if averaged else 0)


def _cluster(row: Row) -> tuple[Cluster, int]:
    """The devices that work together: of `8/node` with `18 nodes/unit` a unit, of `EP32` thirty-two."""
    words = row["n_chips"]
    nodes = re.search(r"(\d+) nodes/unit", row["parallelism"])
    expert = re.search(r"EP ?(\d+)", row["parallelism"])
    if nodes or not first_number(words) or "nodes" in words:
        cluster, per_chip = row_cluster(Row({**row.fields, "n_chips": "8"}))
        count = int(nodes[1]) * 8 if nodes else int(expert[1]) if expert else 0
        if not count:
            raise Unusable("neither the number of chips nor of expert-parallel devices is stated")
        return _resized(cluster, count), per_chip
    cluster, per_chip = row_cluster(row)
    if expert and row["task"] == "prefill" and int(expert[1]) > cluster.count:
        cluster = _resized(cluster, int(expert[1]))
    return cluster, per_chip


def _resized(cluster: Cluster, count: int) -> Cluster:
    try:
        return usual_cluster(cluster.facts, count)
    except AnychipError as error:
        raise Unusable(str(error)) from error


def _published(row: Row, per_chip: int) -> float:
    unit, value = row["unit"].lower(), row.value
    if row["metric"] not in ("throughput", "throughput_total"):
        raise Unusable(f"{row['metric']} in {row['unit']!r} is no rate of tokens")
    if "/node" in unit:
        return value / 8
    if re.search(r"tokens/s/(chip|gpu|npu|card)", unit):
        return value
    count = first_number(row["n_chips"])
    if unit in ("tokens/s", f"tokens/s ({int(count or 0)} devices)") and count:
        return value / count
    raise Unusable(f"the figure's scope is not clear: {row['unit']!r}")


def _refuse(row: Row) -> None:
    """Rows whose conditions this planner does not model."""
    reasons = (("do not use", "nearly all of the prompt was cached"), ("offload", "experts are on the host"),
               ("disaggregated", "attention and experts run on different devices"),
               ("total (in", "input tokens are counted too"),
               ("afd", "attention and experts run on different devices"))
    for word, reason in reasons:
        if word in row.words:
            raise Unusable(reason)


def _serving(row: Row, cluster: Cluster, model: Model) -> Serving:
    """How the row serves. Where it does not say, caches are bf16 but for the models whose publisher caches FP8 (sparse
    and compressed attention); V3 and R1 run "core MLA computations in BF16" (DeepSeek's inference system overview)."""
    words = row["precision"].lower()
    weights = ("fp4" if "fp4" in words else "w4a8" if "w4a8" in words else "w8a8" if "w8a8" in words or "int8" in words
               else "fp8" if "fp8" in words else "bf16")
    cache = "bf16" if "c16" in words or weights == "bf16" else "int8" if "c8" in words else (
        "fp8" if weights in ("fp4", "fp8") and _caches_fp8(model) else "bf16")
    tensor = re.search(r"(?<![A-Z])TP ?(\d+)", row["parallelism"].split("D:")[-1])
    degree = int(tensor[1]) if tensor and "DP8" not in row["parallelism"] else 1
    return Serving(weights, cache, degree if cluster.count % degree == 0 else 1)


def _caches_fp8(model: Model) -> bool:
    kinds = model.config.kinds.values() if model.config is not None else ()
    return any(not isinstance(kind, GroupedAttention) and kind.indexer is not None for kind in kinds)


def _drafts(row: Row) -> tuple[int, float]:
    """Drafted tokens a step and how many are accepted; 0.7 of one and 1.44 of three where only MTP is named."""
    usual = " mtp1" if "cloudmatrix-infer" in row.words else " mtp3" if "sglang on ascend" in row.words else ""
    drafted = re.search(r"mtp ?(\d)", row.words + usual)
    if not drafted or "no mtp" in row.words:
        return 0, 0.0
    accepted = re.search(r"accept(?:ance)? ([\d.]+)", row.words) or re.search(r"at ([\d.]+)% acceptance", row.words)
    share = float(accepted[1]) if accepted else 0.0
    share = share / 100 if share > 4 else share
    return int(drafted[1]), share or {1: 0.7, 2: 1.2, 3: 1.44}.get(int(drafted[1]), 0.7)


def _balanced(row: Row) -> bool:
    """Tell whether the experts' load was even: forced, or a profile made so (the DeepSeek profiles, cann-recipes)."""
    return any(word in row.words for word in ("eplb", "balance", "perfect", "deepseek profile", "cann-recipes"))


def _online(row: Row) -> bool:
    """Tell whether real requests came and went, rather than full batches of equal ones."""
    return any(word in row.words for word in _ONLINE)


def _request(row: Row) -> tuple[int, int]:
    """Tokens in and out of a request, `3.5K/1.5K` or `1024 in/1024 out`."""
    pair = re.match(r"([\d.]+K?)(?: in)? ?/ ?([\d.]+K?)", row["seq_len"])
    if not pair:
        return 0, 0
    return tuple(int(first_number(text) or 0) for text in pair.groups())  # type: ignore[return-value]


def _sequences(row: Row, cluster: Cluster) -> float:
    """Sequences in flight on all devices; 1 where the row states none."""
    count = first_number(row["batch_tokens"])
    if count is None:
        return 1.0
    if "seq/" in row["batch_tokens"]:
        chips = first_number(row["n_chips"]) or cluster.count
        return count * chips
    return count


def _latency(row: Row) -> float | None:
    found = re.search(r"tpot[ =<]*([\d.]+) ?ms", row.words)
    if found:
        return float(found[1]) / 1e3
    rate = re.search(r"([\d.]+)-([\d.]+) tok/s per user", row.words)
    return 2 / (float(rate[1]) + float(rate[2])) if rate else None


