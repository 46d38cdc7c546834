"""Routing of tokens to experts, and the experts' clamped SwiGLU.

Shape suffixes: T tokens, d hidden, E experts, K experts a token, F expert width (2F: gate rows, then up rows).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..record import Cost
from .linear import nbytes


def route(
    x_Td: Tensor, weight_Ed: Tensor, topk: int, *, bias_E: Tensor | None = None, ids_TK: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return expert ids int64 [T, K] and weights fp32 [T, K] that sum to 1 for each token.

    Scores are sqrt(softplus(x W^T)) in fp32. Ids are the K largest of score + bias (ties to the lowest id), or
    `ids_TK` in hash-routed layers; the bias takes no part in the weights.
    """
    score_TE = router_scores(x_Td, weight_Ed)
    if ids_TK is None:
        choice = score_TE.detach() if bias_E is None else score_TE.detach() + bias_E.float()
        ids_TK = choice.sort(dim=-1, descending=True, stable=True).indices[:, :topk]
    weight_TK = score_TE.gather(1, ids_TK.long())
    return ids_TK.long(), weight_TK / weight_TK.sum(-1, keepdim=True)


def router_scores(x_Td: Tensor, weight_Ed: Tensor) -> Tensor:
    """Return every expert's score for every token, sqrt(softplus(x W^T)), fp32 [T, E]."""
    return F.softplus(F.linear(x_Td.float(), weight_Ed.float())).sqrt()


def route_cost(
    x_Td: Tensor, weight_Ed: Tensor, topk: int, *, bias_E: Tensor | None = None, ids_TK: Tensor | None = None
) -> Cost:
    """The gate's product and about eight FLOPs a score."""
    scores = x_Td.shape[0] * weight_Ed.shape[0]
    return Cost(scores * (2.0 * x_Td.shape[1] + 8), nbytes(x_Td, weight_Ed) + 12.0 * x_Td.shape[0] * topk)


def swiglu(gate_up: Tensor, limit: float) -> Tensor:
    """Return silu(min(gate, limit)) * clamp(up, -limit, limit) of [..., 2F] (gate first), fp32 inside."""
    gate, up = gate_up.float().chunk(2, -1)
    return (F.silu(gate.clamp(max=limit)) * up.clamp(-limit, limit)).to(gate_up.dtype)


def mlp(x_Td: Tensor, w1_Fd: Tensor, w3_Fd: Tensor, w2_dF: Tensor, limit: float) -> Tensor:
    """The shared expert: w2(silu(min(w1 x, limit)) * clamp(w3 x)); returns [T, d]."""
    gate_up = torch.cat((F.linear(x_Td, w1_Fd), F.linear(x_Td, w3_Fd)), -1)
    return F.linear(swiglu(gate_up, limit), w2_dF)


def mlp_cost(x_Td: Tensor, w1_Fd: Tensor, w3_Fd: Tensor, w2_dF: Tensor, limit: float) -> Cost:
    """6TdF FLOPs; weights, input and output move once."""
    return Cost(2.0 * x_Td.shape[0] * 3 * w1_Fd.numel(), 2 * nbytes(x_Td) + nbytes(w1_Fd, w3_Fd, w2_dF))


def experts(
    x_Td: Tensor, ids_TK: Tensor, weight_TK: Tensor, banks: tuple[Tensor, Tensor], limit: float
) -> Tensor:
    """Return sum_k weight_k * expert_{id_k}(x) [T, d]; `banks` = (w13 [E, 2F, d], w2 [E, d, F]).

    The routing weight multiplies the activation before w2, as the publisher's code does; the sum is in fp32.
    """
    w13_EPd, w2_EdF = banks
    out = torch.zeros_like(x_Td, dtype=torch.float32)
    for expert in range(w13_EPd.shape[0]):
        token, slot = (ids_TK == expert).nonzero(as_tuple=True)
        if token.numel():
            hidden = swiglu(F.linear(x_Td[token], w13_EPd[expert]), limit)
            hidden = (hidden.float() * weight_TK[token, slot, None]).to(x_Td.dtype)
            out = out.index_add(0, token, F.linear(hidden, w2_EdF[expert]).float())
    return out.to(x_Td.dtype)


def experts_cost(
    x_Td: Tensor, ids_TK: Tensor, weight_TK: Tensor, banks: tuple[Tensor, Tensor], limit: float
) -> Cost:
    """6TKdF FLOPs; each expert that can be hit is read once, each routed row moves in and out once."""
    w13_EPd, w2_EdF = banks
    pairs, num_experts = ids_TK.numel(), w13_EPd.shape[0]
    per_expert = w13_EPd[0].numel() + w2_EdF[0].numel()
    weights = min(pairs, num_experts) * per_expert * w13_EPd.element_size()
    return Cost(2.0 * pairs * per_expert, weights + 2.0 * pairs * x_Td.shape[1] * x_Td.element_size())
