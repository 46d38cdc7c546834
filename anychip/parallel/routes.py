"""Which experts a step's tokens visit, decided in a pass of its own and taken by another (anticipatory routing).

Only the choice is taken over: a token's weights for its experts are the scores of the pass that runs, with their
gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..ops import Ops
from ..ops.wrapped import WrappedOps

Routes = dict[str, Tensor]
"""Expert ids, int16 [T, K], by "LAYER/MICRO-BATCH/BLOCK": the same names and rows however a step lies on ranks."""

Chosen = dict[str, Tensor]
"""Expert ids, int16 [T, K], of one micro-batch on one rank, by layer."""


class RoutedOps(WrappedOps):
    """`inner`'s ops, but score routers take the experts in `chosen`. A layer that is not in it chooses by its own
    scores, and what it chose is put there."""

    def __init__(self, inner: Ops, chosen: Chosen, layer: str = "") -> None:
        super().__init__(inner)
        self._chosen, self._layer = chosen, layer

    def at(self, layer: str) -> Ops:
        return RoutedOps(self._inner.at(layer), self._chosen, layer)

    def route(self, x_Td: Tensor, weight_Ed: Tensor, topk: int, *,  # type: ignore[override]
              ids_TK: Tensor | None = None, **rest: Any) -> tuple[Tensor, Tensor]:
        """As the seam's; a table by token id (`ids_TK`) stays what it is."""
        if ids_TK is not None:
            return self._inner.route(x_Td, weight_Ed, topk, ids_TK=ids_TK, **rest)
        if self._layer in self._chosen:
            return self._inner.route(x_Td, weight_Ed, topk, ids_TK=self._chosen[self._layer].long(), **rest)
        found = self._inner.route(x_Td, weight_Ed, topk, **rest)
        self._chosen[self._layer] = found[0].detach().to(torch.int16)
        return found


@contextmanager
def routed(model: Any, chosen: Chosen | None) -> Iterator[None]:
    """Let a model's passes take, or note, the experts of `chosen`; None leaves it as it is."""
    if chosen is None:
        yield
        return
    inner = model.ops
    model.ops = RoutedOps(inner, chosen)
    try:
        yield
    finally:
        model.ops = inner


def named(chosen: Mapping[str, Tensor], micro_batch: int, blocks: range = range(1)) -> Routes:
    """Return the routes of a micro-batch's blocks, whose rows lie block by block."""
    return {f"{layer}/{micro_batch}/{block}": part.clone() for layer, ids in chosen.items()
            for block, part in zip(blocks, ids.chunk(len(blocks)), strict=True)}


def of_part(routes: Routes | None, micro_batch: int, blocks: range = range(1)) -> Chosen | None:
    """Return what `named` was given; None where there are no routes."""
    if routes is None:
        return None
    layers = {layer for layer, number, _ in map(place, routes) if number == micro_batch}
    return {layer: torch.cat([routes[f"{layer}/{micro_batch}/{block}"] for block in blocks]) for layer in layers}


def place(name: str) -> tuple[str, int, int]:
    """Return layer, micro-batch and block of a route's name."""
    layer, micro_batch, block = name.split("/")
    return layer, int(micro_batch), int(block)
