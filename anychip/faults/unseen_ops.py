"""Faults of ops that were written without knowing how the gap localises: how blind it is to what nobody tuned it for.

docs/faults.md gives the rate at the first run, before anything was mended, and the rate now.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import HyperRule, HyperWeights, Keys, Ops, Ranges
from .fault import op_fault

Op = Callable[..., Any]
Banks = tuple[Tensor, Tensor]


@op_fault("attention", "the kernel's softmax is in base 2, and the sink is not converted")
def sink_in_base_two(ops: Ops) -> Op:
    return lambda query, keys, sink: ops.attention(query, keys, sink * math.log(2))


@op_fault("attention", "YaRN's mscale multiplies the softmax's scale in layers with compression", "AMD-AGI/Primus#928")
def mscale_in_the_softmax(ops: Ops) -> Op:
    def attention(query: Tensor, keys: Keys, sink: Tensor) -> Tensor:
        scale = 1.0 if keys.compressed_MC is None else (0.1 * math.log(16) + 1) ** 2
        return ops.attention(query * scale, keys, sink)

    return attention


@op_fault("attention", "keys are read in tiles of 16, and a window's last, partial tile is left out")
def last_tile_of_keys_missed(ops: Ops) -> Op:
    def attention(query: Tensor, keys: Keys, sink: Tensor) -> Tensor:
        whole = keys.window.count - keys.window.count % 16
        window = replace(keys.window, count=torch.where(whole > 0, whole, keys.window.count))
        return ops.attention(query, replace(keys, window=window), sink)

    return attention


@op_fault("index_topk", "in a batch, the rows chosen are each sample's own, not the batch's")
def topk_rows_of_the_sample(ops: Ops) -> Op:
    def index_topk(query: Tensor, weight: Tensor, key: Tensor, visible: Ranges, topk: int) -> Tensor:
        rows: Tensor = ops.index_topk(query, weight, key, visible, topk)
        return torch.where(rows >= 0, rows - visible.start[:, None], rows)

    return index_topk


@op_fault("route", "the router's product runs in bf16", "huggingface/transformers in bf16")
def router_product_in_bf16(ops: Ops) -> Op:
    return lambda x, weight, topk, bias_E=None, ids_TK=None: ops.route(
        x.bfloat16().to(x.dtype), weight.bfloat16().to(weight.dtype), topk, bias_E=bias_E, ids_TK=ids_TK)


@op_fault("route", "the router gets no gradient: weights are taken after a detach")
def router_gradient_dropped(ops: Ops) -> Op:
    def route(x: Tensor, weight: Tensor, topk: int, *, bias_E: Tensor | None = None,
              ids_TK: Tensor | None = None) -> tuple[Tensor, Tensor]:
        ids, shares = ops.route(x, weight, topk, bias_E=bias_E, ids_TK=ids_TK)
        return ids, shares.detach() + 0 * shares

    return route


@op_fault("experts", "experts are counted from 1 on one side: every token goes to the next expert")
def expert_ids_off_by_one(ops: Ops) -> Op:
    return lambda x, ids, weight, banks, limit: ops.experts(x, (ids + 1) % banks[0].shape[0], weight, banks, limit)


@op_fault("experts", "the gate half is clamped on both sides, as the up half is")
def gate_clamped_on_both_sides(ops: Ops) -> Op:
    def experts(x: Tensor, ids: Tensor, weight: Tensor, banks: Banks, limit: float) -> Tensor:
        out = torch.zeros_like(x)
        for expert in range(banks[0].shape[0]):
            token, slot = (ids == expert).nonzero(as_tuple=True)
            gate, up = F.linear(x[token], banks[0][expert]).chunk(2, -1)
            hidden = F.silu(gate.clamp(-limit, limit)) * up.clamp(-limit, limit) * weight[token, slot, None].to(x.dtype)
            out = out.index_add(0, token, F.linear(hidden, banks[1][expert]))
        return out

    return experts


@op_fault("experts", "an expert's tokens are worked on in tiles of 4, and the last, partial tile is left out")
def last_tile_of_tokens_missed(ops: Ops) -> Op:
    def experts(x: Tensor, ids: Tensor, weight: Tensor, banks: Banks, limit: float) -> Tensor:
        hits = torch.stack([ids.flatten() == e for e in range(banks[0].shape[0])], -1).int()
        whole = hits.sum(0) - hits.sum(0) % 4
        place = hits.cumsum(0).gather(1, ids.reshape(-1, 1)).view_as(ids)
        return ops.experts(x, ids, torch.where((place <= whole[ids]) | (whole[ids] == 0), weight, 0.0), banks, limit)

    return experts


@op_fault("hc_post", "post and comb are rounded to bf16 before they are used", "huggingface/transformers in bf16")
def mixing_in_bf16(ops: Ops) -> Op:
    return lambda y, streams, post, comb: ops.hc_post(
        y, streams, post.bfloat16().to(post.dtype), comb.bfloat16().to(comb.dtype))


@op_fault("hc_pre", "Sinkhorn ends with the rows instead of the columns")
def sinkhorn_ends_with_rows(ops: Ops) -> Op:
    def hc_pre(streams: Tensor, weights: HyperWeights, rule: HyperRule) -> tuple[Tensor, Tensor, Tensor]:
        x, post, comb = ops.hc_pre(streams, weights, rule)
        return x, post, comb / (comb.sum(-1, keepdim=True) + rule.eps)

    return hc_pre


@op_fault("embed", "token 0 is taken for padding and embedded as zeros")
def padding_token_embedded_as_zero(ops: Ops) -> Op:
    return lambda ids, weight: ops.embed(ids, weight) * (ids != 0)[:, None].to(weight.dtype)
