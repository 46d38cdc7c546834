"""Faults of the model around its ops: which rows a token sees, angles, states and what is passed on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..config import DeepseekV4Config, only
from ..model import Layout, State, Transformer
from ..model.block import Block
from ..model.compressed import Compressed
from ..model.moe import MoE
from ..model.plan import LayerPlan, Plan
from ..model.rotary import turns
from ..ops import Ops, Ranges
from .fault import model_fault


def blocks_of(model: Transformer) -> list[Block]:
    """Return the model's blocks, the MTP block not among them."""
    return [block for block in model.layers if isinstance(block, Block)]


def attentions_of(model: Transformer) -> list[Compressed]:
    """Return their attention sub-layers."""
    return [block.attn for block in blocks_of(model) if isinstance(block.attn, Compressed)]


def mixtures_of(model: Transformer) -> list[MoE]:
    """Return their mixtures of experts."""
    return [block.ffn for block in blocks_of(model) if isinstance(block.ffn, MoE)]


def v4(model: Transformer) -> DeepseekV4Config:
    """Return the configuration of a model that these faults can be planted in."""
    return only(model.config, DeepseekV4Config, "this planted fault")


def _change_plan(model: Transformer, change: Callable[[int, LayerPlan, Plan], LayerPlan]) -> None:
    """Pass every layer plan that the model makes through `change(ratio, layer plan, plan)`."""
    make = model._plan

    def changed(layout: Layout, state: State | None) -> Plan:
        model._last_plan = None  # a kept plan would be changed twice
        plan = make(layout, state)
        serve = plan.layer
        plan.layer = lambda ratio: change(ratio, serve(ratio), plan)  # type: ignore[method-assign]
        return plan

    model._plan = changed  # type: ignore[method-assign]


def _wrap(module: torch.nn.Module, around: Callable[..., Any]) -> None:
    """Replace a module's forward by `around(forward, *arguments)`."""
    forward = module.forward
    module.forward = lambda *arguments: around(forward, *arguments)  # type: ignore[assignment]


@model_fault("window", "a token sees one row too few of its sliding window")
def window_off_by_one(model: Transformer) -> None:
    def change(ratio: int, layer: LayerPlan, plan: Plan) -> LayerPlan:
        full = (layer.window.count == v4(model).sliding_window).int()
        window = replace(layer.window, start=layer.window.start + full, count=layer.window.count - full)
        return replace(layer, window=window)

    _change_plan(model, change)


@model_fault("window", "windows reach over the border of a packed sample")
def window_crosses_samples(model: Transformer) -> None:
    def change(ratio: int, layer: LayerPlan, plan: Plan) -> LayerPlan:
        if plan.state is not None:
            return layer
        last = layer.window.start + layer.window.count
        count = last.clamp_max(v4(model).sliding_window)
        return replace(layer, window=replace(layer.window, start=last - count, count=count,
                                             max_count=int(count.max())))

    _change_plan(model, change)


@model_fault("visible", "a compressed entry is visible one token before its window closes")
def entry_visible_early(model: Transformer) -> None:
    def change(ratio: int, layer: LayerPlan, plan: Plan) -> LayerPlan:
        if layer.visible is None or layer.pooling is None:
            return layer
        ends = plan.layout.spread(torch.tensor(plan.layout.ends))
        count = torch.minimum((plan.positions_T + 2) // ratio, ends // ratio).int()
        return replace(layer, visible=replace(layer.visible, count=count))

    _change_plan(model, change)


@model_fault("visible", "the newest compressed entry stays invisible")
def entry_visible_late(model: Transformer) -> None:
    def change(ratio: int, layer: LayerPlan, plan: Plan) -> LayerPlan:
        if layer.visible is None:
            return layer
        return replace(layer, visible=replace(layer.visible, count=(layer.visible.count - 1).clamp_min(0)))

    _change_plan(model, change)


def _scaled_angles(layer: LayerPlan, cos: Tensor, sin: Tensor) -> LayerPlan:
    return replace(layer, cos_TR=cos, sin_TR=sin)


@model_fault("angles", "layers with compression use the window layers' theta")
def rope_theta_wrong(model: Transformer) -> None:
    def change(ratio: int, layer: LayerPlan, plan: Plan) -> LayerPlan:
        if not ratio:
            return layer
        rope = replace(model.config.kinds[ratio].rope, theta=model.config.rope_theta, yarn=None)
        cos, sin = turns(plan.positions_T, rope)
        return _scaled_angles(layer, cos.to(plan.device), sin.to(plan.device))

    _change_plan(model, change)


@model_fault("angles", "cos and sin carry YaRN's mscale, which this model does not have")
def yarn_mscale(model: Transformer) -> None:
    import math

    scaling = model.config.rope_scaling
    factor = 1.0 if scaling is None else 0.1 * math.log(scaling.factor) + 1.0

    def change(ratio: int, layer: LayerPlan, plan: Plan) -> LayerPlan:
        return _scaled_angles(layer, layer.cos_TR * factor, layer.sin_TR * factor) if ratio else layer

    _change_plan(model, change)


@model_fault("angles", "cos and sin are rounded to bf16", "huggingface/transformers in bf16")
def rope_tables_in_bf16(model: Transformer) -> None:
    def change(ratio: int, layer: LayerPlan, plan: Plan) -> LayerPlan:
        return _scaled_angles(layer, layer.cos_TR.bfloat16().float(), layer.sin_TR.bfloat16().float())

    _change_plan(model, change)


@model_fault("angles", "in decode, positions count from 1 instead of 0")
def decode_position_off_by_one(model: Transformer) -> None:
    def change(ratio: int, layer: LayerPlan, plan: Plan) -> LayerPlan:
        if plan.state is None or max(plan.layout.lengths) > 1:
            return layer
        later = Layout(tuple(start + 1 for start in plan.layout.starts), plan.layout.lengths)
        moved = Plan(model.config, later, None, plan.device).layer(ratio)
        return _scaled_angles(layer, moved.cos_TR, moved.sin_TR)

    _change_plan(model, change)


@model_fault("entry_angles", "a compressed entry is rotated at its last token's position, not its first's")
def entry_rotated_at_last_token(model: Transformer) -> None:
    def change(ratio: int, layer: LayerPlan, plan: Plan) -> LayerPlan:
        if layer.pooling is None:
            return layer
        spans = zip(plan.layout.starts, plan.layout.ends, strict=True)
        closed = torch.cat([torch.arange(a // ratio, b // ratio) * ratio + ratio - 1 for a, b in spans])
        cos, sin = turns(closed, model.config.kinds[ratio].rope)
        return replace(layer, pooling=replace(layer.pooling, cos_ER=cos, sin_ER=sin))

    _change_plan(model, change)


@model_fault("overlap", "the first window of a packed sample overlaps the sample before")
def overlap_crosses_samples(model: Transformer) -> None:
    def change(ratio: int, layer: LayerPlan, plan: Plan) -> LayerPlan:
        pooling = layer.pooling
        if pooling is None or pooling.previous_E is None:
            return layer
        before = torch.where(pooling.first_E >= ratio, pooling.first_E - ratio, -1).int()
        return replace(layer, pooling=replace(pooling, previous_E=before))

    _change_plan(model, change)


@model_fault("overlap", "in a chunk, the first window has no window before it: the overlap is not carried over",
             "GDzhu01/vllm-ascend-deepseekv4#76, vllm-project/vllm-ascend#9111")
def overlap_lost_between_chunks(model: Transformer) -> None:
    def change(ratio: int, layer: LayerPlan, plan: Plan) -> LayerPlan:
        pooling = layer.pooling
        if plan.state is None or pooling is None or pooling.previous_E is None or not len(pooling.previous_E):
            return layer
        previous = pooling.previous_E.clone()
        spans = zip(plan.layout.starts, plan.layout.ends, strict=True)
        sizes = torch.tensor([b // ratio - a // ratio for a, b in spans])
        heads = sizes.cumsum(0) - sizes
        previous[heads[sizes > 0]] = -1
        return replace(layer, pooling=replace(pooling, previous_E=previous))

    _change_plan(model, change)


@model_fault("compressor_state", "a compressor's open tokens are lost between chunks: zeros stand in their place",
             "GDzhu01/vllm-ascend-deepseekv4#131")
def compressor_state_lost(model: Transformer) -> None:
    for attn in attentions_of(model):
        if attn.compressor is not None:
            _wrap(attn.compressor, _forgetful)


def _forgetful(forward: Callable[..., Tensor], x: Tensor, layer: LayerPlan, cache: Any, ops: Ops) -> Tensor:
    if cache.state is not None:
        for name, tensor in cache.state.buffers(cache.layer).items():
            if name in ("compressor.value", "compressor.gate"):
                tensor.zero_()
    return forward(x, layer, cache, ops)


@model_fault("window", "after the window's buffer wraps, a row of an older token is read: stale keys",
             "vllm-project/vllm-ascend#9111")
def stale_window_rows(model: Transformer) -> None:
    def change(ratio: int, layer: LayerPlan, plan: Plan) -> LayerPlan:
        if plan.state is None or not any(plan.layout.starts):
            return layer
        window = layer.window
        return replace(layer, window=Ranges((window.start - 1).clamp_min(0), window.count, window.num_pairs,
                                            window.max_count))

    _change_plan(model, change)


@model_fault("hash_table", "hash routing looks up the token before")
def hash_table_shifted(model: Transformer) -> None:
    for ffn in mixtures_of(model):
        if ffn.gate.tid2eid is not None:
            _wrap(ffn, lambda forward, x, ids, ops: forward(x, ids.roll(1), ops))


@model_fault("routing_scale", "routing weights are multiplied by the scaling factor twice")
def routing_scaled_twice(model: Transformer) -> None:
    for ffn in mixtures_of(model):
        ffn.scale = ffn.scale**2


@model_fault("routing_scale", "routing weights are not multiplied by the scaling factor")
def routing_scale_missing(model: Transformer) -> None:
    for ffn in mixtures_of(model):
        ffn.scale = 1.0


@model_fault("shared_expert", "the shared expert's output is not added")
def shared_expert_missing(model: Transformer) -> None:
    for ffn in mixtures_of(model):
        _wrap(ffn, lambda forward, x, ids, ops: forward(x, ids, _without_mlp(ops)))


def _without_mlp(ops: Ops) -> Ops:
    from .fault import PatchedOps

    return PatchedOps(ops, {"mlp": lambda *arguments: 0 * ops.mlp(*arguments)})


@model_fault("swiglu_limit", "the config's clamp is read as twice its value")
def clamp_limit_wrong(model: Transformer) -> None:
    for ffn in mixtures_of(model):
        ffn.limit *= 2
        if ffn.shared_experts is not None:
            ffn.shared_experts.limit = ffn.limit


@model_fault("indexer", "every visible entry is attended to: the indexer's choice is ignored")
def indexer_ignored(model: Transformer) -> None:
    for attn in attentions_of(model):
        if attn.indexer is not None:
            _wrap(attn.indexer, lambda forward, x, latent, layer, cache, ops:
                  (forward(x, latent, layer, cache, ops), layer.visible)[1])


@model_fault("mtp_input", "the MTP block gets the normalised output instead of the streams before the HC head")
def mtp_on_the_wrong_hidden(model: Transformer) -> None:
    run = model._run

    def wrong(ids: Tensor, plan: Plan) -> Any:
        hidden = run(ids, plan)
        return hidden._replace(streams_Tnd=hidden.hidden_Td[:, None].expand_as(hidden.streams_Tnd).contiguous())

    model._run = wrong  # type: ignore[method-assign,assignment]


@model_fault("mtp_token", "the MTP block embeds the current token instead of the next")
def mtp_on_the_wrong_token(model: Transformer) -> None:
    predict = model.predict_next
    model.predict_next = lambda streams, ids, layout: predict(  # type: ignore[method-assign,assignment]
        streams, ids.roll(1), layout)


@model_fault("gradient", "the residual path through the attention sub-layers gets no gradient")
def attention_gradient_dropped(model: Transformer) -> None:
    for attn in attentions_of(model):
        _wrap(attn, lambda forward, *arguments: forward(*arguments).detach())
