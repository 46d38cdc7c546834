"""Routing of tokens to experts: scores by any rule, the K best (or given ids), their weights, and the gradient.

A tile is TOKENS rows of all scores; ids and weights are in planes [K, T], so that both are stored in whole vectors.
Shape suffixes: T tokens, E experts, K experts a token, G groups of experts.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops import RouteRule
from .example import Launch, example
from .grid import TILE, Args, power_of_2, programs, tile_rows
from .launch import Launcher
from .matmul import linear
from .route_scores import SCORES, only_best_groups, scores, slopes

_RULE = RouteRule()  # V4's

# ------------------------------------------------------------------------------------------------ examples


def _logits(seed: int, tokens: int, experts: int) -> tuple[Tensor, Tensor]:
    """Scores from underflow to huge, each row with two equal ones, and a bias that moves the choice."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, experts, generator=g) * torch.logspace(-1, 1.3, tokens)[:, None]
    logits[:, experts // 2] = logits[:, 1]
    return logits, torch.randn(experts, generator=g)


def _constants(shape: tuple[int, int, int], tokens: int, rule: RouteRule) -> dict[str, Any]:
    _, experts, topk = shape
    return {"E": experts, "K": topk, "TOKENS": tokens, "BLOCK_E": power_of_2(experts), "BLOCK_K": power_of_2(topk),
            "SCORE": SCORES[rule.score], "NORMALIZE": rule.normalize}


def _groups(rule: RouteRule) -> dict[str, int]:
    groups = rule.groups if rule.kept_groups < rule.groups else 1
    return {"GROUPS": groups, "KEPT": rule.kept_groups, "BLOCK_G": power_of_2(groups)}


def _launch(seed: int, shape: tuple[int, int, int], rule: RouteRule, hashed: bool, biased: bool) -> Launch:
    tokens, experts, topk = shape
    logits, bias = _logits(seed, tokens, experts)
    g = torch.Generator().manual_seed(seed + 1)
    ids = torch.rand(tokens, experts, generator=g).argsort(1)[:, :topk].t().contiguous().int()
    args: Args = {"logits": logits, "bias": bias, "given": ids, "ids": torch.empty_like(ids),
                  "weight": torch.empty(topk, tokens), "total": torch.empty(tokens), "tokens": tokens}
    return Launch(args, (3,), _constants(shape, 4, rule) | _groups(rule) | {"HASHED": hashed, "BIASED": biased},
                  ("ids", "weight", "total"))


def _scored(seed: int) -> Launch:
    return _launch(seed, (13, 384, 6), _RULE, False, True)


def _hashed(seed: int) -> Launch:
    return _launch(seed, (7, 16, 2), _RULE, True, False)


def _grouped(seed: int) -> Launch:
    """V3's rule."""
    return _launch(seed, (13, 256, 8), RouteRule("sigmoid", 8, 4), False, True)


def _softmax(seed: int) -> Launch:
    """Qwen3's, with weights that do not sum to one."""
    return _launch(seed, (9, 128, 8), RouteRule("softmax", normalize=False), False, False)


def _score(logits: Tensor, score: int) -> Tensor:
    kinds = (lambda x: torch.nn.functional.softplus(x).sqrt(), torch.sigmoid, lambda x: x.softmax(-1))
    return kinds[score](logits)


def _chosen_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    score = _score(a["logits"], a["SCORE"])
    # Scores this close are one score to fp32: the choice is made as the kernel and `ops.route` make it.
    choice = (score.float() + a["bias"].float()) if a["BIASED"] else score.float()
    if a["GROUPS"] > 1:
        group_TGS = choice.unflatten(1, (a["GROUPS"], -1))
        best = group_TGS.topk(2, -1).values.sum(-1).sort(descending=True, stable=True).indices[:, a["KEPT"] :]
        choice = group_TGS.scatter(1, best[..., None].expand(-1, -1, group_TGS.shape[2]), -torch.inf).flatten(1)
    ids = a["given"].t() if a["HASHED"] else choice.sort(dim=1, descending=True, stable=True).indices[:, : a["K"]]
    chosen = score.gather(1, ids.long())
    total = chosen.sum(1)
    weight = chosen / total[:, None] if a["NORMALIZE"] else chosen
    return {"ids": ids.t().int(), "weight": weight.t(), "total": total}


def _back_launch(seed: int, rule: RouteRule) -> Launch:
    tokens, experts, topk = 13, 20, 6
    logits, _ = _logits(seed, tokens, experts)
    constants = _constants((tokens, experts, topk), 4, rule)
    plain = {"BIASED": False, "HASHED": False, **_groups(rule), **constants}
    forward = _chosen_reference({"logits": logits.double(), **plain})
    args: Args = {"logits": logits, "ids": forward["ids"].contiguous(),
                  "weight": forward["weight"].float().contiguous(), "total": forward["total"].float(),
                  "dlogits": torch.empty_like(logits), "tokens": tokens,
                  "dweight": torch.randn(topk, tokens, generator=torch.Generator().manual_seed(seed))}
    return Launch(args, (3,), constants, ("dlogits",))


def _back(seed: int) -> Launch:
    return _back_launch(seed, _RULE)


def _sigmoid_back(seed: int) -> Launch:
    return _back_launch(seed, RouteRule("sigmoid"))


def _softmax_back(seed: int) -> Launch:
    return _back_launch(seed, RouteRule("softmax", normalize=False))


def _back_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    dscore = a["dweight"]
    if a["NORMALIZE"]:
        dscore = (dscore - (dscore * a["weight"]).sum(0)) / a["total"]
    logits = a["logits"].clone().requires_grad_()
    chosen = torch.zeros_like(a["logits"]).scatter_add_(1, a["ids"].t().long(), dscore.t())
    return {"dlogits": torch.autograd.grad(_score(logits, a["SCORE"]), logits, chosen)[0]}


# ------------------------------------------------------------------------------------------------- kernels


@example(_softmax, _chosen_reference)
@example(_grouped, _chosen_reference)
@example(_hashed, _chosen_reference)
@example(_scored, _chosen_reference)
@triton.jit
def route_choose(logits, bias, given, ids, weight, total, tokens, E: tl.constexpr, K: tl.constexpr,
                 TOKENS: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr, SCORE: tl.constexpr,
                 NORMALIZE: tl.constexpr, GROUPS: tl.constexpr, KEPT: tl.constexpr, BLOCK_G: tl.constexpr,
                 HASHED: tl.constexpr, BIASED: tl.constexpr):
    """ids, weight [K, T] and total [T] (of the chosen scores) from logits [T, E]; equal choices to the lowest id.

    HASHED takes ids from `given` [K, T], clamped to the experts that there are; BIASED adds `bias` [E] to choose by.
    """
    t = tl.arange(0, TOKENS)
    c = tl.arange(0, BLOCK_E)[None, :]
    slot = tl.arange(0, BLOCK_K)[:, None]
    for tile in range(tl.program_id(0), tl.cdiv(tokens, TOKENS), tl.num_programs(0)):
        at = tile * TOKENS
        live = t < tokens - at
        x = tl.load(logits + at * E + t[:, None] * E + c, mask=live[:, None] & (c < E), other=0.0)
        score = scores(x, c < E, SCORE)
        choice = score
        if BIASED:
            choice = choice + tl.load(bias + c, mask=c < E, other=0.0)
        choice = tl.where(c < E, choice, -float("inf"))
        if GROUPS > 1:
            choice = only_best_groups(choice, c, E, TOKENS, GROUPS, KEPT, BLOCK_G)
        chosen = tl.zeros((BLOCK_K, TOKENS), tl.int32)
        picked = tl.zeros((BLOCK_K, TOKENS), tl.float32)
        for k in range(K):
            if HASHED:
                best = tl.load(given + k * tokens + at + t, mask=live, other=0)
                best = tl.minimum(tl.maximum(best, 0), E - 1)
            else:
                best = tl.min(tl.where(choice == tl.max(choice, 1)[:, None], c, E - 1), 1)
            hit = c == best[:, None]
            choice = tl.where(hit, -float("inf"), choice)
            chosen = tl.where(slot == k, best[None, :], chosen)
            picked = tl.where(slot == k, tl.sum(tl.where(hit, score, 0.0), 1)[None, :], picked)
        whole = tl.sum(picked, 0)
        tl.store(ids + at + slot * tokens + t[None, :], chosen, mask=(slot < K) & live[None, :])
        if NORMALIZE:
            picked = picked / whole[None, :]
        tl.store(weight + at + slot * tokens + t[None, :], picked, mask=(slot < K) & live[None, :])
        tl.store(total + at + t, whole, mask=live)


@example(_softmax_back, _back_reference)
@example(_sigmoid_back, _back_reference)
@example(_back, _back_reference)
@triton.jit
def route_backward(logits, ids, weight, total, dweight, dlogits, tokens, E: tl.constexpr, K: tl.constexpr,
                   TOKENS: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr, SCORE: tl.constexpr,
                   NORMALIZE: tl.constexpr):
    """dlogits [T, E]; without softmax 0 but at the chosen experts (and there too where a score underflows to 0)."""
    t = tl.arange(0, TOKENS)
    c = tl.arange(0, BLOCK_E)[None, :]
    slot = tl.arange(0, BLOCK_K)[:, None]
    for tile in range(tl.program_id(0), tl.cdiv(tokens, TOKENS), tl.num_programs(0)):
        at = tile * TOKENS
        live = t < tokens - at
        plane = at + slot * tokens + t[None, :]
        w = tl.load(weight + plane, mask=(slot < K) & live[None, :], other=0.0)
        mean = tl.sum(w * tl.load(dweight + plane, mask=(slot < K) & live[None, :], other=0.0), 0)
        whole = tl.load(total + at + t, mask=live, other=1.0)
        x = tl.load(logits + at * E + t[:, None] * E + c, mask=live[:, None] & (c < E), other=0.0)
        grad = tl.zeros((TOKENS, BLOCK_E), tl.float32)
        for k in range(K):
            chosen = tl.load(ids + k * tokens + at + t, mask=live, other=0)
            g = tl.load(dweight + k * tokens + at + t, mask=live, other=0.0)
            if NORMALIZE:
                g = (g - mean) / whole
            grad += tl.where(c == chosen[:, None], g[:, None], 0.0)
        tl.store(dlogits + at * E + t[:, None] * E + c, slopes(x, scores(x, c < E, SCORE), grad, SCORE),
                 mask=live[:, None] & (c < E))


# ---------------------------------------------------------------------------------------------------- host


def route(
    launch: Launcher, x_Td: Tensor, weight_Ed: Tensor, topk: int, *, bias_E: Tensor | None = None,
    ids_TK: Tensor | None = None, rule: RouteRule = _RULE
) -> tuple[Tensor, Tensor]:
    """`ops.route`: expert ids int64 [T, K] and weights fp32 [T, K]; differentiable in x and weight."""
    logits_TE = linear(launch, x_Td.float(), weight_Ed.float())
    given = None if ids_TK is None else ids_TK.t().int().contiguous()
    ids_KT, weight_KT = _Route.apply(launch, logits_TE, bias_E, given, topk, rule)
    ids = ids_KT.t().long().contiguous() if ids_TK is None else ids_TK.long()
    return ids, weight_KT.t().contiguous()


class _Route(torch.autograd.Function):
    """Planes of ids int32 and weights [K, T]."""

    @staticmethod
    def forward(ctx: Any, launch: Launcher, logits: Tensor, bias: Tensor | None, given: Tensor | None,
                topk: int, rule: RouteRule) -> tuple[Tensor, Tensor]:
        tokens, experts = logits.shape
        ids = torch.empty(topk, tokens, dtype=torch.int32, device=logits.device)
        weight, total = logits.new_empty(topk, tokens), logits.new_empty(tokens)
        grid, constants = _tiling(launch, (tokens, experts, topk), rule)
        args: Args = {"logits": logits, "bias": logits if bias is None else bias.float(),
                      "given": ids if given is None else given, "ids": ids, "weight": weight, "total": total,
                      "tokens": tokens}
        chosen_by = {"HASHED": given is not None, "BIASED": bias is not None and given is None}
        launch(route_choose, grid, args, constants | chosen_by | _groups(rule))
        ctx.launch, ctx.rule = launch, rule
        ctx.save_for_backward(logits, ids, weight, total)
        ctx.mark_non_differentiable(ids)
        return ids, weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None, None, None, None]:
        logits, ids, weight, total = ctx.saved_tensors
        dlogits = torch.empty_like(logits)
        grid, constants = _tiling(ctx.launch, (*logits.shape, ids.shape[0]), ctx.rule)
        args: Args = {"logits": logits, "ids": ids, "weight": weight, "total": total,
                      "dweight": grads[1].contiguous(), "dlogits": dlogits, "tokens": logits.shape[0]}
        ctx.launch(route_backward, grid, args, constants)
        return None, dlogits, None, None, None, None


def _tiling(launch: Launcher, shape: tuple[int, int, int], rule: RouteRule) -> tuple[tuple[int], dict[str, Any]]:
    tokens, experts, _ = shape
    rows = tile_rows(tokens, power_of_2(experts), TILE)
    return programs(launch, -(-tokens // rows)), _constants(shape, rows, rule)
