"""The feed-forward sub-layers: one SwiGLU, or a mixture of experts that a router or a table by token id chooses from.

Routed experts are stacked (`experts.w13`, `experts.w2`); a checkpoint has them one by one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..config.specs import Dense, Mixture
from ..ops import Ops, RouteRule
from .weight import Weight


class FeedForward(nn.Module):
    """One SwiGLU: a dense layer's, or the expert that every token visits."""

    def __init__(self, hidden: int, width: int, limit: float = math.inf) -> None:
        super().__init__()
        self.w1, self.w3, self.w2 = Weight(width, hidden), Weight(width, hidden), Weight(hidden, width)
        self.limit = limit

    def forward(self, x_Td: Tensor, ids_T: Tensor, ops: Ops) -> Tensor:
        """Return [T, d]; the token ids are not read."""
        return ops.mlp(x_Td, self.w1.weight, self.w3.weight, self.w2.weight, self.limit)


class Gate(nn.Module):
    """The router's parameters: a score weight, and a fixed table by token id or a selection bias where it has one."""

    def __init__(self, spec: Mixture, hidden: int, vocabulary: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(spec.num_experts, hidden))
        self.bias: Tensor | None
        self.tid2eid: Tensor | None
        table = torch.empty(vocabulary, spec.topk, dtype=torch.int64) if spec.hashed else None
        self.register_buffer("tid2eid", table)
        self.register_buffer("bias", torch.empty(spec.num_experts) if spec.bias else None)


class Experts(nn.Module):
    """The routed experts' weights: w13 [E, 2F, d] (gate rows, then up rows) and w2 [E, d, F]."""

    def __init__(self, spec: Mixture, hidden: int) -> None:
        super().__init__()
        self.w13 = nn.Parameter(torch.empty(spec.num_experts, 2 * spec.width, hidden))
        self.w2 = nn.Parameter(torch.empty(spec.num_experts, hidden, spec.width))


class MoE(nn.Module):
    """Routed experts weighed by the gate, scaled, plus the shared expert where there is one.

    `chosen` holds the expert ids [T, K] of the last pass that built gradients (None before the first), so that a
    trainer can balance the load by the gate's bias; with `watch`, `scores` holds that pass's scores [T, E] with their
    gradients, for a balance loss.
    """

    def __init__(self, spec: Mixture, hidden: int, vocabulary: int) -> None:
        super().__init__()
        self.gate = Gate(spec, hidden, vocabulary)
        self.experts = Experts(spec, hidden)
        self.shared_experts = FeedForward(hidden, spec.shared_width, spec.limit) if spec.shared_width else None
        self.chosen: Tensor | None = None
        self.watch, self.scores = False, None  # type: bool, Tensor | None
        self.num_experts = spec.num_experts
        self.topk, self.limit, self.scale = spec.topk, spec.limit, spec.scale
        self.rule = RouteRule(spec.score, spec.groups, spec.kept_groups, spec.normalize)

    def forward(self, x_Td: Tensor, ids_T: Tensor, ops: Ops) -> Tensor:
        """Return [T, d]. `ids_T` are the token ids, read by hash-routed layers only."""
        gate = self.gate
        fixed = None if gate.tid2eid is None else gate.tid2eid[ids_T]
        chosen, weight = ops.route(x_Td, gate.weight, self.topk, bias_E=gate.bias, ids_TK=fixed, rule=self.rule)
        if torch.is_grad_enabled():
            self.chosen = chosen.detach()
            self.scores = ops.router_scores(x_Td, gate.weight, self.rule) if self.watch else None
        routed = ops.experts(x_Td, chosen, weight * self.scale, (self.experts.w13, self.experts.w2), self.limit)
        return routed if self.shared_experts is None else routed + self.shared_experts(x_Td, ids_T, ops)


def feed_forward(spec: Mixture | Dense, hidden: int, vocabulary: int) -> FeedForward | MoE:
    """Return the sub-layer of this spec."""
    return FeedForward(hidden, spec.width) if isinstance(spec, Dense) else MoE(spec, hidden, vocabulary)
