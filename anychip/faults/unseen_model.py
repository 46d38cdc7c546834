"""Faults of the model around its ops that were written without knowing how the gap localises (see unseen_ops)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..model import Layout, Transformer
from ..model.plan import LayerPlan, Plan
from ..model.rotary import angles
from ..ops import Ops
from .fault import PatchedOps, model_fault
from .model import _change_plan, _wrap, attentions_of, mixtures_of, v4


def _with_ops(module: torch.nn.Module, patch: Callable[[Ops], dict[str, Callable[..., Any]]]) -> None:
    """Give a module, whose last argument is its ops, ops of which some are replaced."""
    _wrap(module, lambda forward, *arguments: forward(
        *arguments[:-1], PatchedOps(arguments[-1], patch(arguments[-1]))))


@model_fault("hash_table", "one hash layer too few: the last of them routes by score")
def hash_layer_routed_by_score(model: Transformer) -> None:
    last = [ffn for ffn in mixtures_of(model) if ffn.gate.tid2eid is not None][-1]
    last.gate.tid2eid = None


@model_fault("weights", "the MTP block's projections of embedding and hidden are loaded the wrong way round")
def mtp_projections_swapped(model: Transformer) -> None:
    block: Any = model.mtp[0]
    block.e_proj, block.h_proj = block.h_proj, block.e_proj


@model_fault("weights", "the query latent's norm is loaded as ones: its name occurs at two levels")
def query_norm_not_loaded(model: Transformer) -> None:
    with torch.no_grad():
        attentions_of(model)[2].q_norm.weight.fill_(1.0)


@model_fault("data flow", "heads are grouped by stride instead of neighbours before the output projection")
def heads_grouped_by_stride(model: Transformer) -> None:
    def patch(ops: Ops) -> dict[str, Callable[..., Any]]:
        def grouped_linear(x: Tensor, weight: Tensor) -> Tensor:
            channels, heads = v4(model).head_dim, model.config.num_attention_heads
            by_head = x.reshape(x.shape[0], heads // x.shape[1], x.shape[1], channels).transpose(1, 2)
            return ops.grouped_linear(by_head.reshape(x.shape).contiguous(), weight)

        return {"grouped_linear": grouped_linear}

    for attn in attentions_of(model):
        _with_ops(attn, patch)


@model_fault("window", "in a batch, a sequence reads the window of the sequence before it", "vllm-project/vllm#43385")
def window_of_the_neighbour(model: Transformer) -> None:
    def change(ratio: int, layer: LayerPlan, plan: Plan) -> LayerPlan:
        if plan.state is None or len(plan.layout.lengths) == 1:
            return layer
        rows = plan.state.row_of_zero("window")
        moved = layer.window.start + plan.layout.spread(rows.roll(1) - rows).int()
        return replace(layer, window=replace(layer.window, start=moved.clamp_min(0)))

    _change_plan(model, change)


@model_fault("angles", "YaRN divides every frequency by its factor: the ramp between fast and slow turns is missing")
def yarn_without_ramp(model: Transformer) -> None:
    config = model.config

    def change(ratio: int, layer: LayerPlan, plan: Plan) -> LayerPlan:
        rope = config.kinds[ratio].rope
        if rope.yarn is None:
            return layer
        step = torch.arange(0, rope.channels, 2, dtype=torch.float32) / rope.channels
        cos, sin = angles(plan.positions_T, 1 / rope.theta**step / rope.yarn.factor)
        return replace(layer, cos_TR=cos, sin_TR=sin)

    _change_plan(model, change)


@model_fault("angles", "a captured graph replays its first decode step's angles at every later step",
             "vllm-project/vllm#52644: graph mode only")
def graph_replays_old_angles(model: Transformer) -> None:
    kept: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def change(ratio: int, layer: LayerPlan, plan: Plan) -> LayerPlan:
        if plan.state is None or max(plan.layout.lengths) > 1:
            return layer
        cos, sin = kept.setdefault((ratio, len(plan.layout.lengths)), (layer.cos_TR, layer.sin_TR))
        return replace(layer, cos_TR=cos, sin_TR=sin)

    _change_plan(model, change)


@model_fault("compressor_windows", "in packed samples windows to pool are counted from the batch's first token",
             "huggingface/transformers: no reset of windows by sample")
def windows_counted_over_samples(model: Transformer) -> None:
    def change(ratio: int, layer: LayerPlan, plan: Plan) -> LayerPlan:
        pooling = layer.pooling
        if plan.state is not None or pooling is None:
            return layer
        return replace(layer, pooling=replace(pooling, first_E=pooling.first_E // ratio * ratio))

    _change_plan(model, change)


@model_fault("shared_expert", "the routed experts' scaling factor multiplies the shared expert too")
def shared_expert_scaled_too(model: Transformer) -> None:
    for ffn in mixtures_of(model):
        scale = ffn.scale
        _with_ops(ffn, lambda ops, scale=scale: {  # type: ignore[misc]
            "mlp": lambda *arguments: ops.mlp(*arguments) * scale})


@model_fault("gradient", "compressed entries get no gradient: they are read from a cache")
def compressor_gradient_dropped(model: Transformer) -> None:
    for attn in attentions_of(model):
        if attn.compressor is not None:
            _wrap(attn.compressor, lambda forward, *arguments: forward(*arguments).detach())


@model_fault("indexer", "the indexer's queries are not rotated")
def indexer_query_not_rotated(model: Transformer) -> None:
    for attn in attentions_of(model):
        if attn.indexer is not None:
            _with_ops(attn.indexer, lambda ops: {"rope": lambda x, *rest: x})


@model_fault("mtp_token", "at the border of packed samples the MTP block embeds the next sample's first token")
def mtp_token_crosses_samples(model: Transformer) -> None:
    predict = model.predict_next

    def wrong(streams: Tensor, ids: Tensor, layout: Layout) -> Tensor:
        if len(layout.lengths) == 1:
            return predict(streams, ids, layout)
        rows = layout.last_rows()[:-1]
        moved = ids.clone()
        moved[rows] = ids[rows + 1]
        return predict(streams, moved, layout)

    model.predict_next = wrong  # type: ignore[method-assign,assignment]
