"""Float64 results from the ops' own definitions: every float32 that a definition asks for becomes a float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..ops import Ops
from ..ops.grouped import kept_attention
from ..ops.loss import token_losses
from ..ops.trees import map_tensors

# Definitions that work things out again in backward, which happens outside of the mode, and what they then stand for.
_KEEPING: dict[str, Callable[..., Any]] = {"cross_entropy": token_losses, "grouped_attention": kept_attention}


class InDouble(TorchFunctionMode):
    """Within this mode `x.float()` and `dtype=torch.float32` mean float64, so that a definition runs in float64."""

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        named = {name: torch.float64 if value is torch.float32 else value for name, value in (kwargs or {}).items()}
        if function is Tensor.float:
            function = Tensor.double
        args = tuple(torch.float64 if value is torch.float32 else value for value in args)
        return function(*args, **named)


def to_double(values: Any) -> Any:
    """Return `values` with every floating-point tensor in it cast to float64."""
    return map_tensors(values, lambda t: t.double() if t.is_floating_point() else t)


def golden(op: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Return what the definition of `op` gives in float64 on these arguments (they may require gradients)."""
    definition = _KEEPING.get(op) or getattr(Ops, op)
    with InDouble():
        return definition(*to_double(arguments), **to_double(named))
