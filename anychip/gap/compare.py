"""Two bundles side by side: every difference with its unit, kind and interval. Refuses what cannot be compared."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from ..errors import BundleError
from ..record import Kind, Quantity
from . import statistics
from .bundle import Bundle
from .compare_speed import Step, costliest, memory_rows, speed_rows, timed_steps
from .localise import Place
from .noise import KINDS
from .numerics import difference
from .proof import EXPLAINED, judged_cases, places
from .quality import Quality, judge_quality
from .row import Row
from .train_level import Training, judge_training, training_rows


@dataclass(frozen=True)
class Comparison:
    """What the report shows. `about_a` and `about_b` are the bundles' own descriptions.

    `ops` and `layers` gaps are relative rms differences. `departs_op` and `departs_layer` name the first one
    whose difference is larger than the coarser chip's number format explains: `explained` for one op on equal
    inputs; `explained_layers`, sqrt(op calls) times that, for a whole run (each call's error independent).
    `levels` are those that both have (see `record.LEVELS`); what belongs to another is empty or None. `kind` is the
    weaker kind of both chips' numerics. `noise` are each chip's own changes (see `noise.KINDS`), mean KL by kind.
    `hard_cases` are b's ops on hard inputs against the float64 golden, with what is allowed; `places` are where b is
    faulty, likeliest first (see `localise`), and empty where it is not.
    `steps` are b's timed steps with the causes of their shortfall.
    `kl_positions` are the places of `kl_by_position` in the text. `costliest` are the training step's ops,
    `costliest_decode` those of a decode step at the longest context; `limits` say whose limits times them.
    """

    about_a: dict[str, Any]
    about_b: dict[str, Any]
    levels: list[str]
    kind: Kind
    explained: float
    explained_layers: float
    ops: list[Row]
    layers: list[Row]
    departs_op: str | None
    departs_layer: str | None
    model: list[Row]
    kl_by_position: list[float]
    generation: list[dict[str, Any]]
    training: list[Row]
    speed: list[Row]
    costliest: tuple[list[dict[str, Any]], list[dict[str, Any]]]
    memory: list[Row]
    kl_positions: list[int]
    costliest_decode: tuple[list[dict[str, Any]], list[dict[str, Any]]]
    limits: tuple[dict[str, Any] | None, dict[str, Any] | None]
    steps: list[Step]
    train: Training | None
    quality: Quality | None
    noise: list[Row]
    hard_cases: list[dict[str, Any]]
    places: list[Place]


def compare(a: Bundle, b: Bundle) -> Comparison:
    """Compare two runs of the same weights, tokens and settings; `a` is the reference.

    Raises BundleError with every reason why they cannot be compared.
    """
    _check(a, b)
    levels = [level for level in a.about["levels"] if level in b.about["levels"]]
    explained = max(EXPLAINED[bundle.about["precision"]] for bundle in (a, b))
    kind = _coarser(a, b, "numerics")
    ops, departs_op = _ops(a, b, explained, kind) if "op" in levels else ([], None)
    explained_layers = explained * a.tables.get("num_calls", 1) ** 0.5
    layers, departs_layer = _layers(a, b, explained_layers, kind) if "layer" in levels else ([], None)
    model, kl = _model(a, b, kind) if "model" in levels else ([], [])
    train = judge_training(a, b, kind) if "train" in levels else None
    speed = "speed" in levels
    return Comparison(
        about_a=a.about, about_b=b.about, levels=levels, kind=kind, explained=explained,
        explained_layers=explained_layers, ops=ops, layers=layers, departs_op=departs_op, departs_layer=departs_layer,
        model=model, kl_by_position=kl, generation=_generation(a, b) if "model" in levels else [],
        training=[] if train is None else training_rows(a, b, train), train=train,
        quality=judge_quality(a, b) if "quality" in levels else None,
        speed=speed_rows(a, b) if speed else [], memory=memory_rows(a, b) if speed else [],
        costliest=(costliest(a), costliest(b)) if speed else ([], []),
        costliest_decode=(costliest(a, decode=True), costliest(b, decode=True)) if speed else ([], []),
        kl_positions=a.tensors["model/positions"].tolist() if "model" in levels else [],
        steps=timed_steps(a, b) if speed else [],
        limits=(a.tables["speed"]["facts"], b.tables["speed"]["facts"]) if speed else (None, None),
        noise=_noise(a, b) if "model" in levels else [],
        hard_cases=judged_cases(a, b) if "op" in levels else [], places=places(a, b, levels),
    )


def _check(a: Bundle, b: Bundle) -> None:
    problems = []
    if not set(a.about["levels"]) & set(b.about["levels"]):
        problems.append(f"they have no level in common ({', '.join(a.about['levels'])} and "
                        f"{', '.join(b.about['levels'])})")
    for name, what in (("weights", "weights"), ("tokens", "tokens"), ("settings", "settings or prompts")):
        left, right = (bundle.about["digests"][name] for bundle in (a, b))
        if left != right:
            problems.append(f"they ran different {what} (sha256 {left[:12]} and {right[:12]})")
    if problems:
        raise BundleError(f"the runs on {a.about['chip']!r} and {b.about['chip']!r} cannot be compared: "
                          + "; ".join(problems) + ". Record both with the same model, text and options")


def _coarser(a: Bundle, b: Bundle, what: str) -> Kind:
    """The weaker of two kinds: a difference of measured and emulated is emulated."""
    order = [Kind.MEASURED, Kind.EMULATED, Kind.SIMULATED, Kind.PUBLISHED]
    return max((Kind(bundle.about[what]) for bundle in (a, b)), key=order.index)


def _ops(a: Bundle, b: Bundle, explained: float, kind: Kind) -> tuple[list[Row], str | None]:
    """One row an op: the largest difference over its calls, and the first call that departs."""
    worst: dict[str, tuple[float, str, int]] = {}
    errors: dict[str, list[tuple[float, float]]] = defaultdict(list)
    departs = None
    for i, (row, other) in enumerate(zip(a.tables["ops"], b.tables["ops"], strict=True)):
        gap = difference(row["op"], b.tensors[f"ops/{i}"], a.tensors[f"ops/{i}"])
        errors[row["op"]].append((row["error"], other["error"]))
        if row["op"] not in worst or gap > worst[row["op"]][0]:
            worst[row["op"]] = gap, row["layer"], i
        if departs is None and not gap <= explained and row["op"] != "index_topk":
            departs = f"{row['op']} in {row['layer']}"
    rows = []
    for op, (gap, layer, _) in sorted(worst.items(), key=lambda item: -item[1][0]):
        sides = [Quantity(max(pair[i] for pair in errors[op]), "", Kind(bundle.about["numerics"]))
                 for i, bundle in enumerate((a, b))]
        note = f"{len(errors[op])} calls, largest in {layer}"
        rows.append(Row(op, sides[0], sides[1], Quantity(gap, "", kind), note))
    return rows, departs


def _layers(a: Bundle, b: Bundle, explained: float, kind: Kind) -> tuple[list[Row], str | None]:
    rows, departs = [], None
    for name in a.tables["layers"]:
        gap = difference("", b.tensors[f"layers/{name}"], a.tensors[f"layers/{name}"])
        rows.append(Row(name, None, None, Quantity(gap, "", kind)))
        if departs is None and not gap <= explained:
            departs = name
    return rows, departs


def _model(a: Bundle, b: Bundle, kind: Kind) -> tuple[list[Row], list[float]]:
    p, q = a.tensors["model/logprobs"].double(), b.tensors["model/logprobs"].double()
    kl = (p.exp() * (p - q)).sum(-1)
    nll_a, nll_b = a.tensors["model/nll"].double(), b.tensors["model/nll"].double()
    same = (a.tensors["model/top1"] == b.tensors["model/top1"])
    agree = stats.binomtest(int(same.sum()), len(same)).proportion_ci(method="wilson")
    share = Quantity(100 * float(same.double().mean()), "%", kind, 100 * agree.low, 100 * agree.high)
    kinds = [Kind(bundle.about["numerics"]) for bundle in (a, b)]
    tokens = f"{len(same)} tokens of real text"
    return [
        Row("KL divergence", None, None, mean_interval(kl, "nats/token", kind),
            f"{len(kl)} positions, full vocabulary"),
        Row("top-1 agreement", None, None, share, tokens),
        Row("largest log-probability difference", None, None, Quantity(float((p - q).abs().max()), "nats", kind),
            f"{len(kl)} positions"),
        Row("loss (teacher-forced)", mean_interval(nll_a, "nats/token", kinds[0]),
            mean_interval(nll_b, "nats/token", kinds[1]), mean_interval(nll_b - nll_a, "nats/token", kind),
            f"{tokens}; the gap is paired by token"),
    ], kl.tolist()


def _noise(a: Bundle, b: Bundle) -> list[Row]:
    """One row a kind of change: how far each chip's output moves from its own plain run."""
    def side(bundle: Bundle, name: str) -> Quantity:
        kind = Kind.EMULATED if name == "format" else Kind(bundle.about["numerics"])
        return mean_interval(bundle.tensors[f"noise/{name}"].double(), "nats/token", kind)

    return [Row(words, side(a, name), side(b, name)) for name, words in KINDS.items()]


def mean_interval(values: Tensor, unit: str, kind: Kind) -> Quantity:
    """Return the mean of independent values with its 95 % interval (`statistics.mean`, or that of positive values)."""
    if len(values) < 2 or not bool(torch.isfinite(values).all()):
        return Quantity(float(values.mean()), unit, kind)
    numbers = values.double().numpy()
    found = statistics.mean_of_positive(numbers) if numbers.min() >= 0 else statistics.mean(numbers)
    return Quantity(found.value, unit, kind, found.low, found.high)


def _generation(a: Bundle, b: Bundle) -> list[dict[str, Any]]:
    rows = []
    for left, right in zip(a.tables["generation"], b.tables["generation"], strict=True):
        pairs = zip(left["ids"], right["ids"], strict=False)
        split = next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(left["ids"]), len(right["ids"])))
        rows.append({"prompt": left["prompt"], "a": left["text"], "b": right["text"], "tokens": len(left["ids"]),
                     "same_tokens": split, "identical": left["ids"] == right["ids"]})
    return rows
