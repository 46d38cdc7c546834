"""Routing on the CPU: scores, the choice of experts and their weights in one pass over the tokens."""

from __future__ import annotations

import ctypes
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ...ops.experts import V4_RULE, RouteRule
from .bind import bind, refuse, wants_grad
from .kernels import load_library
from .linear import linear

_F32 = torch.float32
SCORES = ("sqrtsoftplus", "sigmoid", "softmax")  # as in route.h
_FEW = 8  # up to this many tokens one kernel does the gate's product too


@cache
def _kernels() -> SimpleNamespace:
    return bind(load_library(), {
        "route": "lll" + "p" * 6, "route_few": "llll" + "p" * 7, "route_back": "lll" + "p" * 6,
    })  # fmt: skip


def route(
    x_Td: Tensor, weight_Ed: Tensor, topk: int, *, bias_E: Tensor | None = None, ids_TK: Tensor | None = None,
    rule: RouteRule = V4_RULE
) -> tuple[Tensor, Tensor]:
    """`ops.experts.route`, fused. Raises NotSupported for other formats than fp32, IndexError for a foreign id."""
    if not (x_Td.dtype is weight_Ed.dtype is _F32) or (bias_E is not None and bias_E.dtype is not _F32):
        refuse("route", x_Td, weight_Ed, bias_E)
    num_experts = weight_Ed.shape[0]
    given = None if ids_TK is None else _checked(ids_TK, num_experts)
    bias_E = None if bias_E is None else bias_E.contiguous()
    bias = 0 if bias_E is None else bias_E.data_ptr()
    if wants_grad(x_Td, weight_Ed):
        logits = linear(x_Td, weight_Ed)
        result: tuple[Tensor, Tensor] = _Route.apply(logits, topk, rule, bias, given)
        return result
    tokens, d = x_Td.shape
    if tokens > _FEW:
        return _route(linear(x_Td, weight_Ed), topk, rule, bias, given)
    count = topk if given is None else given.shape[1]
    x, gate = x_Td.contiguous(), weight_Ed.contiguous()
    ids, weights = torch.empty(tokens, count, dtype=torch.int64), torch.empty(tokens, count)
    _kernels().route_few(
        tokens, num_experts, count, d, packed_rule(rule), x.data_ptr(), gate.data_ptr(), bias,
        0 if given is None else given.data_ptr(), ids.data_ptr(), weights.data_ptr(),
    )  # fmt: skip
    return ids, weights


def packed_rule(rule: RouteRule) -> int:
    """Return the address of the rule as route.h has it. It stays good."""
    return ctypes.addressof(_packed(rule))


@cache
def _packed(rule: RouteRule) -> Any:
    return (ctypes.c_int64 * 4)(SCORES.index(rule.score), rule.groups, rule.kept_groups, int(rule.normalize))


def _checked(ids: Tensor, num_experts: int) -> Tensor:
    ids = ids.long().contiguous()
    if ids.numel():
        low, high = ids.aminmax()
        if int(low) < 0 or int(high) >= num_experts:
            raise IndexError(f"expert ids lie in {int(low)}..{int(high)}; there are experts 0..{num_experts - 1}")
    return ids


def _route(logits: Tensor, topk: int, rule: RouteRule, bias: int, given: Tensor | None) -> tuple[Tensor, Tensor]:
    tokens, num_experts = logits.shape
    count = topk if given is None else given.shape[1]
    ids, weights = torch.empty(tokens, count, dtype=torch.int64), torch.empty(tokens, count)
    _kernels().route(
        tokens, num_experts, count, packed_rule(rule), logits.data_ptr(), bias,
        0 if given is None else given.data_ptr(), ids.data_ptr(), weights.data_ptr(),
    )  # fmt: skip
    return ids, weights


class _Route(torch.autograd.Function):
    """The choice and the weights from the logits; the weights have a gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, topk: int, rule: RouteRule, bias: int,
                given: Tensor | None) -> tuple[Tensor, Tensor]:
        ids, weights = _route(logits, topk, rule, bias, given)
        ctx.rule = rule
        ctx.save_for_backward(logits, ids, weights)
        ctx.mark_non_differentiable(ids)
        return ids, weights

    @staticmethod
    def backward(ctx: Any, _: Any, dweights: Tensor) -> Any:  # type: ignore[override]
        logits, ids, weights = ctx.saved_tensors
        dlogits = torch.empty_like(logits)
        tensors = (logits, ids, weights, dweights.contiguous(), dlogits)
        _kernels().route_back(*logits.shape, ids.shape[1], packed_rule(ctx.rule), *(t.data_ptr() for t in tensors))
        return dlogits, None, None, None, None
