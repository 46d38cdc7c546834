"""Pooling of the tokens of a window into one compressed entry (CSA with overlap, HCA without).

Shape suffixes: N token rows, E entries, m tokens a window, C channels of an entry, W projected channels
(C for HCA, 2C for CSA: [:C] goes to the next window's entry, [C:] to the own one).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..record import Cost
from .linear import nbytes


def compress(value_NW: Tensor, gate_NW: Tensor, ape_mW: Tensor, first_E: Tensor, previous_E: Tensor | None) -> Tensor:
    """Return entries [E, C]: per channel, the softmax of `gate + ape` over a window's slots weighs `value`.

    `first_E` is the row of each window's first token. `previous_E` (CSA; None for HCA) is the row of the first
    token of the window before, -1 where there is none (a sample's first window). fp32 inside.
    """
    step = torch.arange(ape_mW.shape[0], device=value_NW.device)
    rows_Em = first_E.long()[:, None] + step
    value, gate = value_NW[rows_Em].float(), gate_NW[rows_Em].float() + ape_mW.float()
    if previous_E is not None:
        channels = value_NW.shape[1] // 2
        absent = (previous_E < 0)[:, None, None]
        rows_Em = previous_E.long().clamp_min(0)[:, None] + step
        before = value_NW[rows_Em][..., :channels].float()
        before_gate = gate_NW[rows_Em][..., :channels].float() + ape_mW[:, :channels].float()
        value = torch.cat((before.masked_fill(absent, 0.0), value[..., channels:]), 1)
        gate = torch.cat((before_gate.masked_fill(absent, float("-inf")), gate[..., channels:]), 1)
    return (value * gate.softmax(1)).sum(1).to(value_NW.dtype)


def compress_cost(
    value_NW: Tensor, gate_NW: Tensor, ape_mW: Tensor, first_E: Tensor, previous_E: Tensor | None
) -> Cost:
    """About six FLOPs a slot and channel; every projected row moves once."""
    width = value_NW.shape[1] // (1 if previous_E is None else 2)
    entries, rows = first_E.shape[0], first_E.shape[0] * ape_mW.shape[0]
    moved = 2 * rows * value_NW.shape[1] * value_NW.element_size()
    return Cost(6.0 * rows * value_NW.shape[1], moved + nbytes(ape_mW) + entries * width * value_NW.element_size())
