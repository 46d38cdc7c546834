"""What every layer of one kind needs to know of a batch, worked out once a forward pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from ..config import ModelConfig
from ..config.specs import CSA, CompressedAttention, Rope
from ..ops import Ranges
from .layout import Layout, visible_ranges, window_ranges
from .rotary import turns
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
    """The batch as the layers of one ratio see it.

    `window` are the last rows of each token, `visible` all entries that closed before it (None: there are none). Where
    each token is an entry both are all tokens so far. `chosen` holds the rows that a layer's indexer picked for later
    layers.
    """

    cos_TR: Tensor
    sin_TR: Tensor
    window: Ranges
    pooling: Pooling | None
    visible: Ranges | None
    chosen: dict[int, Ranges | Tensor] = field(default_factory=dict)


class Plan:
    """The batch as the model sees it; `plan.layer(ratio)` serves each kind of layer, made once."""

    def __init__(self, config: ModelConfig, layout: Layout, state: State | None, device: torch.device) -> None:
        self.config, self.layout, self.state, self.device = config, layout, state, device
        self._layers: dict[int, LayerPlan] = {}
        self._windows: dict[int, Ranges] = {}
        self._turned: dict[Rope, tuple[Tensor, Tensor]] = {}

    def layer(self, ratio: int) -> LayerPlan:
        """Return the plan of layers with this ratio."""
        if ratio not in self._layers:
            with torch.inference_mode(torch.is_inference_mode_enabled() and self.state is not None):
                self._layers[ratio] = self._make(ratio)  # a kept plan may serve training later: ordinary tensors
        return self._layers[ratio]

    @cached_property
    def positions_T(self) -> Tensor:
        return self.layout.positions()

    def _make(self, ratio: int) -> LayerPlan:
        attention = self.config.kinds[ratio]
        cos, sin = self._angles(attention.rope)
        visible = self._put(self._visible(ratio)) if ratio else None
        if not isinstance(attention, CompressedAttention):
            assert visible is not None
            return LayerPlan(cos, sin, visible, None, visible)
        return LayerPlan(cos, sin, self._window(attention.window),
                         self._pooling(attention) if ratio else None, visible)

    def _window(self, size: int) -> Ranges:
        """The window rows of each token, the same for all layers."""
        if size not in self._windows:
            rows = self.layout.offsets() if self.state is None else self.state.row_of_zero("window")
            self._windows[size] = self._put(window_ranges(self.layout, self.positions_T, rows, size))
        return self._windows[size]

    def _angles(self, rope: Rope) -> tuple[Tensor, Tensor]:
        """Angles of the tokens; layers of equal RoPE share them."""
        if rope not in self._turned:
            cos, sin = turns(self.positions_T, rope)
            self._turned[rope] = cos.to(self.device), sin.to(self.device)
        return self._turned[rope]

    def _visible(self, ratio: int) -> Ranges:
        if self.state is None:
            rows = torch.tensor([0] + [length // ratio for length in self.layout.lengths[:-1]]).cumsum(0)
        else:
            rows = self.state.row_of_zero(f"entries{ratio}")
        return visible_ranges(self.layout, self.positions_T, rows, ratio)

    def _pooling(self, attention: CompressedAttention) -> Pooling:
        ratio, rope = attention.ratio, attention.rope
        if all(start // ratio == end // ratio for start, end in zip(self.layout.starts, self.layout.ends, strict=True)):
            return _no_pooling(ratio == CSA, rope.channels // 2, self.device)
        rows = self.layout.offsets() if self.state is None else self.state.row_of_zero(f"tokens{ratio}")
        opened, closed, spans = [], [], list(zip(self.layout.starts, self.layout.ends, strict=True))
        for (start, end), row in zip(spans, rows.tolist(), strict=True):
            window = torch.arange(start // ratio, end // ratio)
            opened.append(window * ratio)
            closed.append(window * ratio + row)
        position_E, first_E = torch.cat(opened), torch.cat(closed)
        previous_E = torch.where(position_E > 0, first_E - ratio, -1) if ratio == CSA else None
        cos, sin = turns(position_E, rope)
        put = [None if t is None else t.to(self.device) for t in (first_E.int(), previous_E, cos, sin)]
        return Pooling(put[0], None if put[1] is None else put[1].int(), put[2], put[3])  # type: ignore[arg-type]

    def _put(self, ranges: Ranges) -> Ranges:
        return Ranges(ranges.start.to(self.device), ranges.count.to(self.device), ranges.num_pairs, ranges.max_count)


@lru_cache(maxsize=16)
def _no_pooling(overlapping: bool, half: int, device: torch.device) -> Pooling:
    """No window closes: most decode steps."""
    with torch.inference_mode(False):
        none = torch.empty(0, dtype=torch.int32, device=device)
        angle = torch.empty(0, half, device=device)
    return Pooling(none, none if overlapping else None, angle, angle)
