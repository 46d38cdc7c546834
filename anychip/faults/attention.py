"""Faults of attention, its compressor, its indexer and its rotary embedding, planted in the ops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..ops import Keys, Ops, Ranges
from ..ops.attention import range_rows, selected_rows
from .fault import op_fault

Op = Callable[..., Any]


@op_fault("attention", "the sink takes no part in the softmax")
def sink_dropped(ops: Ops) -> Op:
    return lambda query, keys, sink: ops.attention(query, keys, torch.full_like(sink, -1e30))


@op_fault("attention", "the sink's slot has a value (the first window row's) instead of none")
def sink_added_as_value(ops: Ops) -> Op:
    def attention(query: Tensor, keys: Keys, sink: Tensor) -> Tensor:
        out: Tensor = ops.attention(query, keys, sink)
        everything: Tensor = ops.attention(query, keys, torch.full_like(sink, -1e30))
        of_sink = 1 - (out * everything).sum(-1, keepdim=True) / everything.square().sum(-1, keepdim=True)
        return out + of_sink * keys.window_NC[keys.window.start.long()][:, None]

    return attention


@op_fault("attention", "the scale is that of the rotated channels, not of the head")
def attention_scale_wrong(ops: Ops) -> Op:
    return lambda query, keys, sink: ops.attention(query * 2**0.5, keys, sink)


@op_fault("attention", "the last entry of every run of compressed entries is not read")
def last_compressed_entry_missed(ops: Ops) -> Op:
    def attention(query: Tensor, keys: Keys, sink: Tensor) -> Tensor:
        chosen = keys.selected
        if isinstance(chosen, Ranges):
            chosen = replace(chosen, count=(chosen.count - 1).clamp_min(0))
        elif chosen is not None:
            last = (chosen >= 0).sum(-1, keepdim=True) - 1
            step = torch.arange(chosen.shape[1], device=chosen.device)
            chosen = torch.where(step == last, -1, chosen)
        return ops.attention(query, replace(keys, selected=chosen), sink)

    return attention


@op_fault("attention", "absent entries (-1) are read as row 0 and take part in the softmax",
          "triton-lang/triton-ascend#2332: masked gathers still read memory")
def absent_entries_read(ops: Ops) -> Op:
    def attention(query: Tensor, keys: Keys, sink: Tensor) -> Tensor:
        if isinstance(keys.selected, Tensor):
            keys = replace(keys, selected=keys.selected.clamp_min(0))
        return ops.attention(query, keys, sink)

    return attention


@op_fault("attention", "probabilities are rounded to bf16 before they meet the values, and sums run in bf16")
def attention_accumulates_in_bf16(ops: Ops) -> Op:
    return lambda query, keys, sink: ops.attention(query, keys, sink).bfloat16().to(query.dtype)


@op_fault("attention", "the sink gets no gradient")
def sink_gradient_dropped(ops: Ops) -> Op:
    return lambda query, keys, sink: ops.attention(query, keys, sink.detach())


@op_fault("norm_rope", "queries and entries are rotated twice", "NVIDIA-NeMo/Megatron-Bridge#4271")
def rope_twice(ops: Ops) -> Op:
    return lambda x, weight, eps, cos, sin: ops.rope(ops.norm_rope(x, weight, eps, cos, sin), cos, sin)


@op_fault("norm_rope", "the first channels are rotated instead of the last", "MindSpeed-LLM's repository history")
def rope_wrong_slice(ops: Ops) -> Op:
    def norm_rope(x: Tensor, weight: Tensor | None, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
        turned = 2 * cos.shape[-1]
        normed: Tensor = ops.rms_norm(x, weight, eps)
        rolled: Tensor = ops.rope(normed.roll(-turned, -1).contiguous(), cos, sin)
        return rolled.roll(turned, -1).contiguous()

    return norm_rope


@op_fault("norm_rope", "halves are paired (0 with R/2) instead of neighbours (0 with 1)")
def rope_halves_not_interleaved(ops: Ops) -> Op:
    def norm_rope(x: Tensor, weight: Tensor | None, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
        half = cos.shape[-1]
        normed: Tensor = ops.rms_norm(x, weight, eps)
        kept, turned = normed[..., : -2 * half], normed[..., -2 * half :]
        paired = torch.stack((turned[..., :half], turned[..., half:]), -1).flatten(-2)
        rotated = ops.rope(torch.cat((kept, paired), -1).contiguous(), cos, sin)[..., -2 * half :]
        return torch.cat((kept, rotated[..., 0::2], rotated[..., 1::2]), -1)

    return norm_rope


@op_fault("norm_rope", "the norm before the rotation has no weight")
def kv_norm_weight_missing(ops: Ops) -> Op:
    return lambda x, weight, eps, cos, sin: ops.norm_rope(x, None, eps, cos, sin)


@op_fault("rope", "the attention output is not rotated back")
def inverse_rope_missing(ops: Ops) -> Op:
    def rope(x: Tensor, cos: Tensor, sin: Tensor, *, inverse: bool = False) -> Tensor:
        return x if inverse else ops.rope(x, cos, sin)

    return rope


@op_fault("rope", "the attention output is rotated forward again instead of back")
def inverse_rope_wrong_sign(ops: Ops) -> Op:
    return lambda x, cos, sin, inverse=False: ops.rope(x, cos, sin)


@op_fault("compress", "the two halves of an overlapping window are swapped")
def overlap_halves_swapped(ops: Ops) -> Op:
    def compress(value: Tensor, gate: Tensor, ape: Tensor, first: Tensor, previous: Tensor | None) -> Tensor:
        if previous is not None:
            half = ape.shape[1] // 2
            value, gate, ape = (t.roll(half, -1).contiguous() for t in (value, gate, ape))
        return ops.compress(value, gate, ape, first, previous)

    return compress


@op_fault("compress", "a window's entry is pooled without the window before")
def overlap_missing(ops: Ops) -> Op:
    def compress(value: Tensor, gate: Tensor, ape: Tensor, first: Tensor, previous: Tensor | None) -> Tensor:
        return ops.compress(value, gate, ape, first, None if previous is None else torch.full_like(previous, -1))

    return compress


@op_fault("compress", "the position bias of the gate is left out")
def compressor_bias_missing(ops: Ops) -> Op:
    return lambda value, gate, ape, first, previous: ops.compress(value, gate, torch.zeros_like(ape), first, previous)


@op_fault("compress", "the softmax runs over channels instead of over a window's tokens")
def compressor_softmax_wrong_axis(ops: Ops) -> Op:
    def compress(value: Tensor, gate: Tensor, ape: Tensor, first: Tensor, previous: Tensor | None) -> Tensor:
        step = torch.arange(ape.shape[0], device=value.device)
        rows, width = first.long()[:, None] + step, value.shape[1] // (1 if previous is None else 2)
        share = (gate[rows][..., -width:].float() + ape[:, -width:].float()).softmax(-1)
        return (value[rows][..., -width:].float() * share).sum(1).to(value.dtype)

    return compress


@op_fault("index_topk", "one entry too few is kept")
def topk_one_short(ops: Ops) -> Op:
    def index_topk(query: Tensor, weight: Tensor, key: Tensor, visible: Ranges, topk: int) -> Tensor:
        kept: Tensor = ops.index_topk(query, weight, key, visible, topk - 1)
        return torch.nn.functional.pad(kept, (0, 1), value=-1)

    return index_topk


@op_fault("index_topk", "entries that close after the token can be chosen",
          "huggingface/transformers#45820 and #45758: the indexer's causal mask")
def indexer_without_causal_mask(ops: Ops) -> Op:
    def index_topk(query: Tensor, weight: Tensor, key: Tensor, visible: Ranges, topk: int) -> Tensor:
        leak = replace(visible, count=torch.full_like(visible.count, visible.max_count),
                       num_pairs=visible.max_count * len(visible.count))
        return ops.index_topk(query, weight, key, leak, topk)

    return index_topk


@op_fault("index_topk", "scores are summed over the heads without the ReLU")
def indexer_relu_missing(ops: Ops) -> Op:
    def index_topk(query: Tensor, weight: Tensor, key: Tensor, visible: Ranges, topk: int) -> Tensor:
        rows, seen = range_rows(visible, slice(None))
        score = torch.einsum("thi,tmi,th->tm", query.float(), key[rows].float(), weight.float())
        order = score.masked_fill(~seen, float("-inf")).topk(min(topk, rows.shape[1]), -1).indices
        kept = torch.where(seen.gather(1, order), rows.gather(1, order), torch.iinfo(torch.int32).max).sort(-1).values
        kept = torch.where(kept == torch.iinfo(torch.int32).max, -1, kept).int()
        return torch.nn.functional.pad(kept, (0, topk - kept.shape[1]), value=-1)

    return index_topk


@op_fault("index_topk", "each head weighs the same: the heads' weights are left out")
def indexer_head_weights_missing(ops: Ops) -> Op:
    return lambda query, weight, key, visible, topk: ops.index_topk(
        query, torch.ones_like(weight), key, visible, topk)


@op_fault("attention", "the most recent window row (the token itself) is masked out where others are seen")
def own_token_masked(ops: Ops) -> Op:
    def attention(query: Tensor, keys: Keys, sink: Tensor) -> Tensor:
        window = replace(keys.window, count=(keys.window.count - 1).clamp_min(1))
        return ops.attention(query, replace(keys, window=window), sink)

    return attention


@op_fault("attention", "selected entries serve as keys, but the values come from their neighbours")
def values_of_the_wrong_rows(ops: Ops) -> Op:
    def attention(query: Tensor, keys: Keys, sink: Tensor) -> Tensor:
        if keys.compressed_MC is None or keys.selected is None or not keys.compressed_MC.shape[0]:
            return ops.attention(query, keys, sink)
        rows, seen = range_rows(keys.window, slice(None))
        more, also = selected_rows(keys.selected, slice(None))
        window, compressed = keys.window_NC[rows].float(), keys.compressed_MC[more].float()
        key, mask = torch.cat((window, compressed), 1), torch.cat((seen, also), 1)
        value = torch.cat((window, compressed.roll(1, 1)), 1)
        logit = (query.float() @ key.transpose(1, 2) * query.shape[-1] ** -0.5).masked_fill(~mask[:, None], -torch.inf)
        prob = torch.cat((logit, sink.float()[None, :, None].expand(len(query), -1, 1)), -1).softmax(-1)[..., :-1]
        return (prob @ value).to(query.dtype)

    return attention
