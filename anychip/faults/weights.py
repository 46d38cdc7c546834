"""Faults of loading: weights whose scales or packed values were misread."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..model import Transformer
from .fault import model_fault
from .model import attentions_of, mixtures_of


def _scale_blocks(weight: Tensor, change: Callable[[Tensor], Tensor]) -> None:
    """Pass each 128x128 block's scale (its largest value here) through `change`."""
    with torch.no_grad():
        rows, columns = -(-weight.shape[0] // 128), -(-weight.shape[1] // 128)
        scale = torch.stack([torch.stack([b.abs().amax() for b in band.split(128, 1)]) for band in weight.split(128)])
        wrong = change(scale).reshape(rows, columns) / scale.clamp_min(1e-30)
        weight.mul_(wrong.repeat_interleave(128, 0)[: weight.shape[0]].repeat_interleave(128, 1)[:, : weight.shape[1]])


@model_fault("weights", "FP8 scales of one projection are off by a factor of two", "modelscope/ms-swift#9724")
def fp8_scale_doubled(model: Transformer) -> None:
    _scale_blocks(attentions_of(model)[1].wq_a.weight, lambda scale: 2 * scale)


@model_fault("weights", "FP8 scales of one projection are read in the wrong order", "modelscope/ms-swift#9724")
def fp8_scale_misordered(model: Transformer) -> None:
    _scale_blocks(attentions_of(model)[1].wq_b.weight, lambda scale: scale.flip(0))


@model_fault("weights", "the two FP4 values of a byte are swapped in the routed experts")
def fp4_nibbles_swapped(model: Transformer) -> None:
    with torch.no_grad():
        for ffn in mixtures_of(model):
            w13 = ffn.experts.w13
            w13.copy_(w13.unflatten(-1, (-1, 2)).flip(-1).flatten(-2))
