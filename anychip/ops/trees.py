"""The tensors inside an op's arguments and results, which may be nested in tuples, Keys and Ranges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from .attention import Keys, Ranges


def map_tensors(values: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return `values` with every tensor replaced by `change(tensor)`; other leaves stay."""
    if isinstance(values, Tensor):
        return change(values)
    if isinstance(values, Ranges):
        return replace(values, start=change(values.start), count=change(values.count))
    if isinstance(values, Keys):
        return Keys(*(map_tensors(part, change) for part in
                      (values.window_NC, values.window, values.compressed_MC, values.selected)))
    if isinstance(values, dict):
        return {name: map_tensors(value, change) for name, value in values.items()}
    if isinstance(values, tuple):
        mapped = [map_tensors(value, change) for value in values]
        return type(values)(*mapped) if hasattr(values, "_fields") else tuple(mapped)
    return values


def flat_tensors(values: Any) -> list[Tensor]:
    """Return the tensors in order; of Ranges none, since they are bookkeeping and not data."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, Keys):
        return flat_tensors((values.window_NC, values.compressed_MC, values.selected))
    if isinstance(values, dict):
        return flat_tensors(tuple(values.values()))
    if isinstance(values, (tuple, list)):
        return [tensor for value in values for tensor in flat_tensors(value)]
    return []
