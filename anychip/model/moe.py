"""V4's mixture of experts: hash-routed in the first layers, score-routed after, with one shared expert.

Report section 2.1. Routed experts are stacked (`experts.w13`, `experts.w2`); a checkpoint has them one by one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..ops import Ops
from .attention import Weight


class Gate(nn.Module):
    """The router's parameters: a score weight, and either a fixed table by token id or a selection bias."""

    def __init__(self, config: ModelConfig, hashed: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.bias: Tensor | None
        self.tid2eid: Tensor | None
        table = torch.empty(config.vocab_size, config.num_experts_per_tok, dtype=torch.int64) if hashed else None
        self.register_buffer("tid2eid", table)
        self.register_buffer("bias", None if hashed else torch.empty(config.n_routed_experts))


class Experts(nn.Module):
    """The routed experts' weights: w13 [E, 2F, d] (gate rows, then up rows) and w2 [E, d, F]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        shape = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
        self.w13 = nn.Parameter(torch.empty(shape[0], 2 * shape[1], shape[2]))
        self.w2 = nn.Parameter(torch.empty(shape[0], shape[2], shape[1]))


class SharedExpert(nn.Module):
    """The expert that every token visits."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, d = config.moe_intermediate_size, config.hidden_size
        self.w1, self.w3, self.w2 = Weight(width, d), Weight(width, d), Weight(d, width)


class MoE(nn.Module):
    """Routed experts weighed by the gate, scaled, plus the shared expert; both clamp their SwiGLU.

    `chosen` holds the expert ids [T, K] of the last pass that built gradients (None before the first), so that a
    trainer can balance the load by the gate's bias; with `watch`, `scores` holds that pass's scores [T, E] with their
    gradients, for a balance loss.
    """

    def __init__(self, config: ModelConfig, hashed: bool) -> None:
        super().__init__()
        self.gate = Gate(config, hashed)
        self.experts = Experts(config)
        self.shared_experts = SharedExpert(config)
        self.chosen: Tensor | None = None
        self.watch, self.scores = False, None  # type: bool, Tensor | None
        self.topk, self.limit = config.num_experts_per_tok, config.swiglu_limit
        self.scale = config.routed_scaling_factor

    def forward(self, x_Td: Tensor, ids_T: Tensor, ops: Ops) -> Tensor:
        """Return [T, d]. `ids_T` are the token ids, read by hash-routed layers only."""
        gate, shared = self.gate, self.shared_experts
        fixed = None if gate.tid2eid is None else gate.tid2eid[ids_T]
        chosen, weight = ops.route(x_Td, gate.weight, self.topk, bias_E=gate.bias, ids_TK=fixed)
        if torch.is_grad_enabled():
            self.chosen = chosen.detach()
            self.scores = ops.router_scores(x_Td, gate.weight) if self.watch else None
        routed = ops.experts(x_Td, chosen, weight * self.scale, (self.experts.w13, self.experts.w2), self.limit)
        return routed + ops.mlp(x_Td, shared.w1.weight, shared.w3.weight, shared.w2.weight, self.limit)
