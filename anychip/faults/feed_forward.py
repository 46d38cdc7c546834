"""Faults of the router, the experts, mHC, norms, products and the loss, planted in the ops."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import HyperRule, HyperWeights, Ops
from .fault import op_fault

Op = Callable[..., Any]
Banks = tuple[Tensor, Tensor]


@op_fault("experts", "the routed experts' SwiGLU is not clamped", "xLLM-AI/xllm#1390, sgl-project/sglang#33030")
def clamp_missing_routed(ops: Ops) -> Op:
    return lambda x, ids, weight, banks, limit: ops.experts(x, ids, weight, banks, math.inf)


@op_fault("mlp", "the shared expert's SwiGLU is not clamped", "ByteDance-Seed/VeOmni#972 and #868")
def clamp_missing_shared(ops: Ops) -> Op:
    return lambda x, w1, w3, w2, limit: ops.mlp(x, w1, w3, w2, math.inf)


@op_fault("mlp", "the clamp holds above only: the up half may fall below -limit")
def clamp_one_sided(ops: Ops) -> Op:
    def mlp(x: Tensor, w1: Tensor, w3: Tensor, w2: Tensor, limit: float) -> Tensor:
        gate, up = F.linear(x, w1).clamp_max(limit), F.linear(x, w3).clamp_max(limit)
        return F.linear(F.silu(gate) * up, w2)

    return mlp


@op_fault("mlp", "the gate half is clamped after the SiLU instead of before")
def clamp_after_silu(ops: Ops) -> Op:
    def mlp(x: Tensor, w1: Tensor, w3: Tensor, w2: Tensor, limit: float) -> Tensor:
        return F.linear(F.silu(F.linear(x, w1)).clamp(-1, 1) * F.linear(x, w3).clamp(-limit, limit), w2)

    return mlp


@op_fault("mlp", "GELU stands where SiLU belongs")
def gelu_for_silu(ops: Ops) -> Op:
    def mlp(x: Tensor, w1: Tensor, w3: Tensor, w2: Tensor, limit: float) -> Tensor:
        return F.linear(F.gelu(F.linear(x, w1).clamp_max(limit)) * F.linear(x, w3).clamp(-limit, limit), w2)

    return mlp


@op_fault("experts", "the gate and up halves of the experts' first product are swapped")
def gate_and_up_swapped(ops: Ops) -> Op:
    def experts(x: Tensor, ids: Tensor, weight: Tensor, banks: Banks, limit: float) -> Tensor:
        w13 = banks[0].roll(banks[0].shape[1] // 2, 1).contiguous()
        return ops.experts(x, ids, weight, (w13, banks[1]), limit)

    return experts


@op_fault("experts", "one expert's weights get no gradient")
def expert_gradient_dropped(ops: Ops) -> Op:
    def experts(x: Tensor, ids: Tensor, weight: Tensor, banks: Banks, limit: float) -> Tensor:
        w13, w2 = (torch.cat((bank[:1].detach(), bank[1:])) for bank in banks)
        return ops.experts(x, ids, weight, (w13, w2), limit)

    return experts


@op_fault("experts", "tokens over an expert's capacity (its even share times 1.25) are dropped")
def tokens_over_capacity_dropped(ops: Ops) -> Op:
    def experts(x: Tensor, ids: Tensor, weight: Tensor, banks: Banks, limit: float) -> Tensor:
        most = math.ceil(1.25 * ids.numel() / banks[0].shape[0])
        place = torch.stack([(ids.flatten() == e).cumsum(0) for e in range(banks[0].shape[0])], -1)
        place = place.gather(1, ids.reshape(-1, 1)).view_as(ids)
        return ops.experts(x, ids, torch.where(place <= most, weight, 0.0), banks, limit)

    return experts


@op_fault("experts", "each token's routing weights are given to its experts in the wrong order")
def routing_weights_misordered(ops: Ops) -> Op:
    return lambda x, ids, weight, banks, limit: ops.experts(x, ids, weight.flip(-1).contiguous(), banks, limit)


@op_fault("route", "the selection bias takes part in the weights")
def gate_bias_in_weights(ops: Ops) -> Op:
    def route(x: Tensor, weight: Tensor, topk: int, *, bias_E: Tensor | None = None,
              ids_TK: Tensor | None = None) -> tuple[Tensor, Tensor]:
        ids, _ = ops.route(x, weight, topk, bias_E=bias_E, ids_TK=ids_TK)
        score = F.softplus(F.linear(x.float(), weight.float())).sqrt() + (0.0 if bias_E is None else bias_E.float())
        picked = score.gather(1, ids)
        return ids, picked / picked.sum(-1, keepdim=True)

    return route


@op_fault("route", "the weights of a token's experts are not normalised to sum to 1")
def routing_not_normalised(ops: Ops) -> Op:
    def route(x: Tensor, weight: Tensor, topk: int, *, bias_E: Tensor | None = None,
              ids_TK: Tensor | None = None) -> tuple[Tensor, Tensor]:
        ids, _ = ops.route(x, weight, topk, bias_E=bias_E, ids_TK=ids_TK)
        return ids, F.softplus(F.linear(x.float(), weight.float())).sqrt().gather(1, ids)

    return route


@op_fault("route", "scores are softplus without the square root")
def softplus_without_root(ops: Ops) -> Op:
    def route(x: Tensor, weight: Tensor, topk: int, *, bias_E: Tensor | None = None,
              ids_TK: Tensor | None = None) -> tuple[Tensor, Tensor]:
        ids, shares = ops.route(x, weight, topk, bias_E=bias_E, ids_TK=ids_TK)
        squared = F.softplus(F.linear(x.float(), weight.float())).gather(1, ids)
        return ids, squared / squared.sum(-1, keepdim=True)

    return route


@op_fault("route", "the selection bias is ignored")
def gate_bias_ignored(ops: Ops) -> Op:
    return lambda x, weight, topk, bias_E=None, ids_TK=None: ops.route(x, weight, topk, ids_TK=ids_TK)


@op_fault("hc_pre", "Sinkhorn stops one iteration early", "AI-Hypercomputer/maxtext#4337")
def sinkhorn_19_iterations(ops: Ops) -> Op:
    return lambda streams, weights, rule: ops.hc_pre(
        streams, weights, rule._replace(sinkhorn_iters=rule.sinkhorn_iters - 1))


@op_fault("hc_pre", "Sinkhorn starts from a softmax over the columns instead of the rows")
def sinkhorn_softmax_wrong_axis(ops: Ops) -> Op:
    def hc_pre(streams: Tensor, weights: HyperWeights, rule: HyperRule) -> tuple[Tensor, Tensor, Tensor]:
        n = streams.shape[1]
        order = torch.cat((torch.arange(2 * n), 2 * n + torch.arange(n * n).view(n, n).T.flatten()))
        turned = HyperWeights(weights.fn[order], weights.base[order], weights.scale)
        x, post, comb = ops.hc_pre(streams, turned, rule)
        return x, post, comb.transpose(1, 2).contiguous()

    return hc_pre


@op_fault("hc_pre", "post is sigmoid without its factor 2")
def post_without_factor_two(ops: Ops) -> Op:
    def hc_pre(streams: Tensor, weights: HyperWeights, rule: HyperRule) -> tuple[Tensor, Tensor, Tensor]:
        x, post, comb = ops.hc_pre(streams, weights, rule)
        return x, post / 2, comb

    return hc_pre


@op_fault("hc_pre", "the streams are not normalised before they are mixed")
def mixing_without_norm(ops: Ops) -> Op:
    def hc_pre(streams: Tensor, weights: HyperWeights, rule: HyperRule) -> tuple[Tensor, Tensor, Tensor]:
        size = streams.flatten(1).float().square().mean(-1).sqrt().mean()
        return ops.hc_pre(streams, weights._replace(fn=weights.fn * size), rule)

    return hc_pre


@op_fault("hc_pre", "the mixing matrix gets no gradient")
def comb_gradient_dropped(ops: Ops) -> Op:
    def hc_pre(streams: Tensor, weights: HyperWeights, rule: HyperRule) -> tuple[Tensor, Tensor, Tensor]:
        x, post, comb = ops.hc_pre(streams, weights, rule)
        return x, post, comb.detach()

    return hc_pre


@op_fault("hc_post", "the mixing matrix is not transposed", "NVIDIA/Megatron-LM#4957, NVIDIA-NeMo/Automodel#2159")
def comb_not_transposed(ops: Ops) -> Op:
    return lambda y, streams, post, comb: ops.hc_post(y, streams, post, comb.transpose(1, 2).contiguous())


@op_fault("hc_head", "the head collapses the streams by a softmax instead of sigmoids", "AI-Hypercomputer/maxtext#4337")
def head_softmax_for_sigmoid(ops: Ops) -> Op:
    def hc_head(streams: Tensor, weights: HyperWeights, rule: HyperRule) -> Tensor:
        flat = streams.flatten(1).float()
        logit = F.linear(flat, weights.fn.float()) * torch.rsqrt(flat.square().mean(-1, keepdim=True) + rule.norm_eps)
        share = (logit * weights.scale.float() + weights.base.float()).softmax(-1)
        return (share[..., None] * streams.float()).sum(1).to(streams.dtype)

    return hc_head


@op_fault("rms_norm", "the norm has no epsilon")
def norm_epsilon_missing(ops: Ops) -> Op:
    return lambda x, weight, eps: ops.rms_norm(x, weight, 0.0)


@op_fault("rms_norm", "the weight is read as an offset from 1, as in other model families")
def norm_weight_plus_one(ops: Ops) -> Op:
    return lambda x, weight, eps: ops.rms_norm(x, None if weight is None else weight + 1, eps)


@op_fault("rms_norm", "the statistics are taken in bf16")
def norm_statistics_in_bf16(ops: Ops) -> Op:
    def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        root = torch.rsqrt(x.bfloat16().square().mean(-1, keepdim=True) + eps)
        y = x * root.to(x.dtype)
        return y if weight is None else y * weight

    return rms_norm


@op_fault("rms_norm", "the backward pass treats the root mean square as a constant")
def norm_backward_without_mean(ops: Ops) -> Op:
    def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        y = x * torch.rsqrt(x.detach().float().square().mean(-1, keepdim=True) + eps).to(x.dtype)
        return y if weight is None else y * weight

    return rms_norm


@op_fault("linear", "products accumulate in bf16")
def bf16_accumulation(ops: Ops) -> Op:
    def linear(x: Tensor, weight: Tensor) -> Tensor:
        total = torch.zeros(*x.shape[:-1], weight.shape[0], dtype=torch.bfloat16, device=x.device)
        for part, rows in zip(x.split(32, -1), weight.split(32, -1), strict=True):
            total = (total.float() + F.linear(part.float(), rows.float())).bfloat16()
        return total.to(x.dtype)

    return linear


@op_fault("grouped_linear", "every group uses the first group's block of the output projection")
def output_groups_share_a_block(ops: Ops) -> Op:
    def grouped_linear(x: Tensor, weight: Tensor) -> Tensor:
        blocks = weight if weight.dim() == 3 else weight.unflatten(0, (x.shape[1], -1))
        return ops.grouped_linear(x, blocks[:1].expand_as(blocks).reshape(weight.shape))

    return grouped_linear


@op_fault("embed", "embeddings are multiplied by the root of the width, as in other model families")
def embedding_scaled(ops: Ops) -> Op:
    return lambda ids, weight: ops.embed(ids, weight) * weight.shape[1] ** 0.5


@op_fault("cross_entropy", "tokens without a target count as token 0")
def padding_counted(ops: Ops) -> Op:
    return lambda hidden, head, target: ops.cross_entropy(hidden, head, target.clamp_min(0))
