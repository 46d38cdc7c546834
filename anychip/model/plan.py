"""What every layer of one kind needs to know of a batch, worked out once a forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..config import ModelConfig
from ..ops import Ranges
from .layout import Layout, visible_ranges, window_ranges
from .rotary import angles, inverse_frequencies
from .state import State


@dataclass(frozen=True)
class Pooling:
    """The windows that close in this pass: row of the first token, of the window before (-1: none), angles."""

    first_E: Tensor
    previous_E: Tensor | None
    cos_ER: Tensor
    sin_ER: Tensor


@dataclass(frozen=True)
class LayerPlan:
    """The batch as the layers of one compress ratio see it."""

    cos_TR: Tensor
    sin_TR: Tensor
    window: Ranges
    pooling: Pooling | None
    visible: Ranges | None


class Plan:
    """The batch as the model sees it; `plan.layer(ratio)` serves each kind of layer, made once."""

    def __init__(self, config: ModelConfig, layout: Layout, state: State | None, device: torch.device) -> None:
        self.config, self.layout, self.state, self.device = config, layout, state, device
        self._layers: dict[int, LayerPlan] = {}

    def layer(self, ratio: int) -> LayerPlan:
        """Return the plan of layers with this compress ratio (0, 4 or 128)."""
        if ratio not in self._layers:
            with torch.inference_mode(torch.is_inference_mode_enabled() and self.state is not None):
                self._layers[ratio] = self._make(ratio)  # a kept plan may serve training later: ordinary tensors
        return self._layers[ratio]

    @cached_property
    def positions_T(self) -> Tensor:
        return self.layout.positions()

    def _make(self, ratio: int) -> LayerPlan:
        frequency = inverse_frequencies(self.config, ratio)
        cos, sin = angles(self.positions_T, frequency)
        rows = self.layout.offsets() if self.state is None else self.state.row_of_zero("window")
        window = window_ranges(self.layout, self.positions_T, rows, self.config.sliding_window)
        pooling = self._pooling(ratio, frequency) if ratio else None
        visible = self._visible(ratio) if ratio else None
        return LayerPlan(cos.to(self.device), sin.to(self.device), self._put(window), pooling,
                         None if visible is None else self._put(visible))

    def _visible(self, ratio: int) -> Ranges:
        if self.state is None:
            rows = torch.tensor([0] + [length // ratio for length in self.layout.lengths[:-1]]).cumsum(0)
        else:
            rows = self.state.row_of_zero(f"entries{ratio}")
        return visible_ranges(self.layout, self.positions_T, rows, ratio)

    def _pooling(self, ratio: int, frequency: Tensor) -> Pooling:
        rows = self.layout.offsets() if self.state is None else self.state.row_of_zero(f"tokens{ratio}")
        opened, closed, spans = [], [], list(zip(self.layout.starts, self.layout.ends, strict=True))
        for (start, end), row in zip(spans, rows.tolist(), strict=True):
            window = torch.arange(start // ratio, end // ratio)
            opened.append(window * ratio)
            closed.append(window * ratio + row)
        position_E, first_E = torch.cat(opened), torch.cat(closed)
        previous_E = torch.where(position_E > 0, first_E - ratio, -1) if ratio == 4 else None
        cos, sin = angles(position_E, frequency)
        put = [None if t is None else t.to(self.device) for t in (first_E.int(), previous_E, cos, sin)]
        return Pooling(put[0], None if put[1] is None else put[1].int(), put[2], put[3])  # type: ignore[arg-type]

    def _put(self, ranges: Ranges) -> Ranges:
        return Ranges(ranges.start.to(self.device), ranges.count.to(self.device), ranges.num_pairs, ranges.max_count)
