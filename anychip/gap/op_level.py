"""The op level: every op on hard inputs, forward and backward, against its own definition in float64.

Each chip's error is taken against the float64 golden, so a comparison of two chips is three-way: golden, reference
chip, tested chip. A choice (which entries, which experts) is wrong only where it is worse than the golden's choice by
more than the format's rounding: near ties may go either way.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..chips import Chip
from ..config import ModelConfig
from ..ops import Ops
from ..ops.attention import range_rows
from ..ops.experts import V4_RULE, choice_scores, router_scores
from ..ops.index import index_scores
from ..ops.trees import map_tensors
from .cases import Case
from .golden import InDouble, golden, to_double
from .more_cases import hard_cases, op_cases

CHOICES = frozenset({"index_topk", "route"})
# Unit roundoff of the format that a chip of this precision stores activations in: half a unit in the last place.
ROUNDOFF = {"fp32": 2.0**-24, "tf32": 2.0**-12, "hf32": 2.0**-13, "fp16": 2.0**-12, "bf16": 2.0**-9, "fp8": 2.0**-5,
            "fp4": 2.0**-3}
_DRAWS = 3  # random movements of the inputs, for a case's floor
# Where a value lies at the clamp, its gradient comes or goes with the last bit: few draws would miss that it can.
_CLAMPED, _CLAMPED_DRAWS = frozenset({"mlp", "experts"}), 24
_TIE = 1e-5  # scores that differ by less, against the largest, are a tie in fp32: either choice is right
_NO_GRADIENT = frozenset({"cos_TR", "sin_TR", "bias_E"})  # tables and what only steers a choice


def record_op_level(chip: Chip, seed: int, ops: Collection[str] | None = None, *, backward: bool = True,
                    config: ModelConfig | None = None) -> list[dict[str, Any]]:
    """Return one row a case and direction: op, case, direction, the output or gradient that is worst, its relative rms
    error, and `floor`: what rounding the case's inputs to the chip's storage format does to that very figure.

    The floor is the case's condition, measured in float64 on inputs moved by half a unit in the last place at random:
    the largest of a few draws. `ops`: those to judge; None: all. `config`: the model whose cases are run; None: all.
    """
    rows, judge = [], _Judge(chip.ops(), chip.device, ROUNDOFF[chip.precision])
    for case in op_cases(seed) if config is None else hard_cases(seed, config):
        if ops is not None and case.op not in ops:
            continue
        rows.append(judge.forward(case))
        if backward and case.op != "index_topk":
            rows.append(judge.backward(case))
    return rows


def _moved(case: Case, unit: float, draw: int) -> Case:
    """The case with every floating-point input moved by at most `unit` of itself, in float64."""
    generator = torch.Generator().manual_seed(draw)

    def move(t: Tensor) -> Tensor:
        step = 2 * torch.rand(t.shape, generator=generator, dtype=torch.float64) - 1
        return t.double() * (1 + unit * step) if t.is_floating_point() else t

    return replace(case, arguments=map_tensors(case.arguments, move), named=map_tensors(case.named, move))


@dataclass(frozen=True)
class _Judge:
    """A chip's ops against the golden. `unit` is the unit roundoff of its storage format."""

    ops: Ops
    device: torch.device
    unit: float

    def forward(self, case: Case) -> dict[str, Any]:
        place = lambda value: map_tensors(value, lambda t: t.to(self.device))  # noqa: E731
        with torch.no_grad():
            result = getattr(self.ops, case.op)(*place(case.arguments), **place(case.named))
            got = map_tensors(result, lambda t: t.cpu())
            moved = [golden(near.op, near.arguments, near.named) for near in self._moved(case)]
            if case.op in CHOICES:
                wrong = _rows_error if case.op == "index_topk" else _route_errors
                tie = max(_TIE, 4 * self.unit)
                return _row(case, "forward", wrong(case, got, tie), [wrong(case, m, tie) for m in moved])
            wanted = _outputs(golden(case.op, case.arguments, case.named))
        return _row(case, "forward", _errors(_outputs(got), wanted), [_errors(_outputs(m), wanted) for m in moved])

    def backward(self, case: Case) -> dict[str, Any]:
        """Gradients of every differentiable argument for one random direction of the outputs."""
        call = lambda arguments, named: getattr(self.ops, case.op)(*arguments, **named)  # noqa: E731
        got = _gradients(case, call, self.device)
        if case.op == "route":  # the golden takes the chip's choice: near ties may go either way
            placed = map_tensors((case.arguments, case.named), lambda t: t.to(self.device))
            case = replace(case, named=case.named | {"ids_TK": call(*placed)[0].cpu()})
        exact = lambda arguments, named: golden(case.op, arguments, named)  # noqa: E731
        here = torch.device("cpu")
        wanted = _gradients(case, exact, here)
        moved = [_errors(_gradients(near, exact, here), wanted) for near in self._moved(case)]
        return _row(case, "backward", _errors(got, wanted), moved)

    def _moved(self, case: Case) -> list[Case]:
        clamped = case.op in _CLAMPED and bool(case.arguments[-1] < math.inf)
        return [_moved(case, self.unit, draw) for draw in range(_CLAMPED_DRAWS if clamped else _DRAWS)]


def _row(case: Case, direction: str, errors: dict[str, float], moved: list[dict[str, float]]) -> dict[str, Any]:
    """The output or gradient whose error is largest against its floor."""
    floors = {name: max(each[name] for each in moved) for name in errors}
    worst = max(errors, key=lambda name: errors[name] / max(floors[name], 1e-12))
    return {"op": case.op, "case": case.name, "direction": direction, "of": worst,
            "error": errors[worst], "floor": floors[worst]}


def _errors(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    return {name: relative(got[name], wanted[name]) for name in wanted}


def _outputs(result: Any) -> dict[str, Tensor]:
    parts = result if isinstance(result, tuple) else (result,)
    return {f"output {i}" if len(parts) > 1 else "output": part for i, part in enumerate(parts)}


def _rows_error(case: Case, got: Tensor, tie: float) -> dict[str, float]:
    """Share of the kept rows that are absent, invisible, repeated, or worse than the golden's worst kept row."""
    query, weight, key, visible, topk = to_double(case.arguments)
    rows, seen = range_rows(visible, slice(None))
    with InDouble():
        score = index_scores(query, weight, key, rows).masked_fill(~seen, -torch.inf)
    wanted = seen.sum(-1).clamp_max(topk)
    ordered = score.sort(-1, descending=True).values
    bar = ordered.gather(1, (wanted - 1).clamp_min(0)[:, None])
    margin = tie * score.masked_fill(~seen, 0.0).abs().amax(-1, keepdim=True)
    given = got >= 0
    place = (got.long() - visible.start[:, None]).clamp(0, rows.shape[1] - 1)
    inside = given & (got >= visible.start[:, None]) & (got < (visible.start + visible.count)[:, None])
    good = inside & (score.gather(1, place) >= bar - margin)
    good[:, 1:] &= got[:, 1:] > got[:, :-1]
    right = torch.minimum(good.sum(-1), wanted) - (given.sum(-1) - wanted).clamp_min(0)
    return {"rows": 1.0 - float(right.sum() / wanted.sum())}


def _route_errors(case: Case, got: tuple[Tensor, Tensor], tie: float) -> dict[str, float]:
    """Share of ids that are worse than the golden's in the same slot; error of the weights for the chip's own ids."""
    ids, weight = got
    named = {name: value for name, value in case.named.items() if name != "ids_TK"}
    fixed = case.named.get("ids_TK")
    rule = named.get("rule", V4_RULE)
    wanted = golden("route", case.arguments, {"ids_TK": ids, "rule": rule})[1]
    if fixed is not None:
        wrong = (ids != fixed).double().mean()
    else:
        x, router, topk = to_double(case.arguments)
        with InDouble():
            score = choice_scores(router_scores(x, router, rule), named.get("bias_E"), rule)
        best = score.sort(-1, descending=True).values[:, :topk]
        wrong = (score.gather(1, ids) < best - tie * best.abs().amax()).double().mean()
    return {"ids": float(wrong), "weights": relative(weight, wanted)}


def _gradients(case: Case, call: Any, device: torch.device) -> dict[str, Tensor]:
    leaves: dict[str, Tensor] = {}
    signature = inspect.signature(getattr(Ops, case.op)).bind(*case.arguments, **case.named).arguments

    def leaf(name: str, tensor: Tensor) -> Tensor:
        placed = tensor.detach().to(device)
        if not tensor.is_floating_point() or name in _NO_GRADIENT:
            return placed
        leaves[name if name not in leaves else f"{name}.{len(leaves)}"] = placed = placed.clone().requires_grad_()
        return placed

    bound = {name: map_tensors(value, partial(leaf, name)) for name, value in signature.items()}
    named = {name: bound.pop(name) for name in list(bound) if name in case.named}
    outputs = [v for v in _outputs(call(tuple(bound.values()), named)).values() if v.is_floating_point()]
    generator = torch.Generator().manual_seed(1)
    loss = sum((v * torch.randn(v.shape, generator=generator).to(v.device, v.dtype)).sum() for v in outputs)
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)  # type: ignore[arg-type]
    return {name: torch.zeros_like(t).cpu() if g is None else g.cpu()
            for (name, t), g in zip(leaves.items(), found, strict=True)}


def relative(got: Tensor, wanted: Tensor) -> float:
    """Return rms(got - wanted) / rms(wanted); of a zero `wanted` the largest difference. NaN counts as infinite."""
    if got.shape != wanted.shape:
        return float("inf")
    if not wanted.numel():
        return 0.0
    a, g = got.double(), wanted.double()
    scale = g.square().mean().sqrt()
    error = float((a - g).square().mean().sqrt() / scale) if scale > 0 else float((a - g).abs().max())
    return error if error == error else float("inf")
