"""Routing of tokens to experts, and the experts' SwiGLU, clamped (V4) or not (`limit` is infinite).

Shape suffixes: T tokens, d hidden, E experts, K experts a token, F expert width (2F: gate rows, then up rows).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..record import Cost
from .linear import nbytes


class RouteRule(NamedTuple):
    """How a router scores and chooses.

    `score`: sqrtsoftplus (V4), sigmoid (V3, GLM-5) or softmax over all experts (Qwen3). Of `groups` equal runs of
    experts only the `kept_groups` best take part, by the sum of a group's two best biased scores (V3). `normalize`:
    the weights of a token's experts sum to 1; else they are the scores.
    """

    score: str = "sqrtsoftplus"
    groups: int = 1
    kept_groups: int = 1
    normalize: bool = True


V4_RULE = RouteRule()
_SCORES = {
    "sqrtsoftplus": lambda logit_TE: F.softplus(logit_TE).sqrt(),
    "sigmoid": torch.sigmoid,
    "softmax": lambda logit_TE: logit_TE.softmax(-1),
}


def route(
    x_Td: Tensor, weight_Ed: Tensor, topk: int, *, bias_E: Tensor | None = None, ids_TK: Tensor | None = None,
    rule: RouteRule = V4_RULE
) -> tuple[Tensor, Tensor]:
    """Return expert ids int64 [T, K] and weights fp32 [T, K].

    Scores are the rule's of x W^T in fp32. Ids are the K largest of score + bias (ties to the lowest id) within the
    kept groups, or `ids_TK` in hash-routed layers; the bias takes no part in the weights.
    """
    score_TE = router_scores(x_Td, weight_Ed, rule)
    if ids_TK is None:
        ids_TK = _best(choice_scores(score_TE.detach(), bias_E, rule), topk)
    weight_TK = score_TE.gather(1, ids_TK.long())
    return ids_TK.long(), weight_TK / weight_TK.sum(-1, keepdim=True) if rule.normalize else weight_TK


def router_scores(x_Td: Tensor, weight_Ed: Tensor, rule: RouteRule = V4_RULE) -> Tensor:
    """Return every expert's score for every token, the rule's of x W^T, fp32 [T, E]."""
    scores: Tensor = _SCORES[rule.score](F.linear(x_Td.float(), weight_Ed.float()))
    return scores


def choice_scores(score_TE: Tensor, bias_E: Tensor | None, rule: RouteRule) -> Tensor:
    """Return what experts are chosen by: score + bias, -inf outside the best groups (as the publisher's V3 code)."""
    choice_TE = score_TE if bias_E is None else score_TE + bias_E.float()
    if rule.kept_groups == rule.groups:
        return choice_TE
    choice_TGe = choice_TE.unflatten(1, (rule.groups, -1))
    kept_TG = _best(choice_TGe.topk(2, dim=-1).values.sum(-1), rule.kept_groups)
    out_TG = torch.ones_like(choice_TGe[..., 0], dtype=torch.bool).scatter(1, kept_TG, False)
    return choice_TGe.masked_fill(out_TG[..., None], float("-inf")).flatten(1)


def _best(score: Tensor, count: int) -> Tensor:
    return score.sort(dim=-1, descending=True, stable=True).indices[:, :count]


def route_cost(
    x_Td: Tensor, weight_Ed: Tensor, topk: int, *, bias_E: Tensor | None = None, ids_TK: Tensor | None = None,
    rule: RouteRule = V4_RULE
) -> Cost:
    """The gate's product and about eight FLOPs a score."""
    scores = x_Td.shape[0] * weight_Ed.shape[0]
    return Cost(scores * (2.0 * x_Td.shape[1] + 8), nbytes(x_Td, weight_Ed) + 12.0 * x_Td.shape[0] * topk)


def swiglu(gate_up: Tensor, limit: float) -> Tensor:
    """Return silu(min(gate, limit)) * clamp(up, -limit, limit) of [..., 2F] (gate first), fp32 inside."""
    gate, up = gate_up.float().chunk(2, -1)
    return (F.silu(gate.clamp(max=limit)) * up.clamp(-limit, limit)).to(gate_up.dtype)


def mlp(x_Td: Tensor, w1_Fd: Tensor, w3_Fd: Tensor, w2_dF: Tensor, limit: float) -> Tensor:
    """A dense feed-forward layer or the shared expert: w2(silu(min(w1 x, limit)) * clamp(w3 x)); returns [T, d]."""
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
