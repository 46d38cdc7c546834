"""Plans as JSON: every number with its unit and kind. All times are simulated; bytes are counted."""

from __future__ import annotations

from typing import Any

from ..record import Kind
from .constants import constants
from .fit import Fit
from .kernels import SOURCES
from .memory import TrainMemory
from .pools import Pools
from .search import Found
from .serve import ServePlan
from .sources import OpTime, serve_ops
from .train import TrainPlan
from .validate import GROUPS, TARGETS, Validation


def number(value: float, unit: str, kind: Kind = Kind.SIMULATED) -> dict[str, Any]:
    """Return one number with its unit and kind."""
    return {"value": value, "unit": unit, "kind": kind.value}


def fit_json(fit: Fit) -> dict[str, Any]:
    """Return one fit answer. Bytes follow from the model's shapes and the format; reserves are stated guesses."""
    return {
        "model": fit.model, "cluster": fit.cluster.describe(), "weights": fit.serving.weights,
        "cache": fit.serving.cache, "tensor": fit.serving.tensor, "fits": fit.fits, "native": fit.native,
        "parts": {name: number(value, "bytes") for name, value in fit.parts.items()},
        "free_for_caches": number(fit.free, "bytes"), "sequences_by_context": fit.sequences,
        "devices_needed": fit.needed_devices, "notes": list(fit.notes)}


def train_json(plan: TrainPlan, memory: TrainMemory | None = None, found: Found | None = None) -> dict[str, Any]:
    """Return a training plan, its memory, and what a search left out."""
    document: dict[str, Any] = {
        "model": plan.model, "cluster": plan.cluster.describe(), "layout": vars(plan.parallel),
        "layout_text": plan.parallel.describe(), "sequences": plan.job.sequences, "length": plan.job.length,
        "precision": plan.job.precision, "step": number(plan.step_s, "s"),
        "tokens_per_s": number(plan.tokens_per_s, "tokens/s"),
        "tokens_per_s_device": number(plan.tokens_per_s_device, "tokens/s"),
        "model_flops_utilisation": number(plan.mfu, "1"), "bubble": number(plan.bubble, "1"),
        "fullest_expert_rank": number(plan.load, "1"),
        "parts": {name: number(value, "s") for name, value in plan.parts_s.items()}}
    if memory is not None:
        document["memory"] = {"parts": {name: number(value, "bytes") for name, value in memory.parts.items()},
                              "total": number(memory.total, "bytes"), "fits": memory.fits}
    if found is not None:
        document["search"] = {"examined": found.examined, "left_out": found.left_out,
                              "next_best": [{"layout": p.parallel.describe(), "step": number(p.step_s, "s")}
                                            for p in found.others]}
    return document


def serve_json(plan: ServePlan) -> dict[str, Any]:
    """Return a decode or prefill plan."""
    return {"model": plan.model, "cluster": plan.cluster.describe(), "task": plan.task, "weights": plan.serving.weights,
            "cache": plan.serving.cache, "tensor": plan.serving.tensor, "step": number(plan.step_s, "s"),
            "tokens_per_s": number(plan.tokens_per_s, "tokens/s"),
            "tokens_per_s_device": number(plan.tokens_per_s_device, "tokens/s"),
            "between_tokens": number(plan.token_s, "s"), "largest_part": plan.bound,
            "parts": {name: number(value, "s") for name, value in plan.parts_s.items()},
            "op_times": ops_json(serve_ops(plan))}


def ops_json(ops: dict[str, OpTime]) -> dict[str, Any]:
    """Return the forward seconds of every op, and the source of its time."""
    return {"sources": SOURCES, "ops": {name: {"forward": number(op.seconds, "s"), "source": op.source}
                                        for name, op in ops.items()}}


def pools_json(pools: Pools) -> dict[str, Any]:
    """Return the two pools and what users see."""
    return {"prefill": serve_json(pools.prefill), "decode": serve_json(pools.decode),
            "prefill_devices": pools.prefill_devices, "decode_devices": pools.decode_devices,
            "requests_per_s": number(pools.requests_per_s, "1/s"),
            "answer_tokens_per_s": number(pools.answer_tokens_per_s, "tokens/s"),
            "seen_at_load": pools.busy,
            "first_token": {"median": number(pools.seen.first_s[0], "s"), "p99": number(pools.seen.first_s[1], "s")},
            "between_tokens": {"median": number(pools.seen.token_s[0], "s"),
                               "p99": number(pools.seen.token_s[1], "s")}}


def validation_json(found: Validation) -> dict[str, Any]:
    """Return every row, the groups' errors with their targets, and the constants with the rows each was fitted on."""
    groups = {}
    for group in GROUPS:
        rows, median, high = found.summary(group)
        held = found.summary(group, held_out=True)
        groups[group] = {"rows": rows, "median_error": median, "p90_error": high, "target": TARGETS.get(group),
                         "held_out": {"rows": held[0], "median_error": held[1], "p90_error": held[2]}}
    rows_json = [{"id": j.row["id"], "group": j.group, "predicted": j.predicted, "published": j.published,
                  "error": j.error, "held_out_error": j.held_out, "unit": j.row["unit"], "as_planned": j.note,
                  "source": j.row["source"]} for j in found.judged]
    c = constants()
    constants_json = {name: {"value": constant.value, "meaning": constant.meaning, "low": constant.low,
                             "high": constant.high, "fitted_on": c.fitted_on(name)}
                      for name, constant in c.by_name.items()}
    return {"groups": groups, "rows": rows_json, "constants": constants_json,
            "not_modelled": [{"id": row["id"], "reason": reason} for row, reason in found.unusable]}
