"""Pooling of token windows into compressed entries on the CPU, without gathered copies."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .bind import bind, refuse, wants_grad
from .kernels import load_library

_F32 = torch.float32


@cache
def _kernels() -> SimpleNamespace:
    return bind(load_library(), {"compress": "llll" + "p" * 7, "compress_back": "llll" + "p" * 11})


def compress(value_NW: Tensor, gate_NW: Tensor, ape_mW: Tensor, first_E: Tensor, previous_E: Tensor | None) -> Tensor:
    """`ops.compress.compress`. Raises NotSupported for other formats than fp32."""
    if not (value_NW.dtype is gate_NW.dtype is ape_mW.dtype is _F32):
        refuse("compress", value_NW, gate_NW, ape_mW)
    first = first_E.int().contiguous()
    previous = None if previous_E is None else previous_E.int().contiguous()
    if wants_grad(value_NW, gate_NW, ape_mW):
        out: Tensor = _Compress.apply(value_NW, gate_NW, ape_mW, first, previous)
        return out
    return _compress((value_NW.contiguous(), gate_NW.contiguous(), ape_mW.contiguous()), first, previous, 0)


def _compress(rows: tuple[Tensor, Tensor, Tensor], first: Tensor, previous: Tensor | None, kept: int) -> Tensor:
    value, gate, ape = rows
    out = torch.empty(first.shape[0], _channels(value, previous))
    if not out.numel():
        return out
    _kernels().compress(
        out.shape[0], ape.shape[0], out.shape[1], value.shape[1], value.data_ptr(), gate.data_ptr(), ape.data_ptr(),
        first.data_ptr(), 0 if previous is None else previous.data_ptr(), out.data_ptr(), kept,
    )  # fmt: skip
    return out


def _channels(value: Tensor, previous: Tensor | None) -> int:
    return value.shape[1] if previous is None else value.shape[1] // 2


class _Compress(torch.autograd.Function):
    """compress with its gradients; keeps each channel's softmax normaliser."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gate: Tensor, ape: Tensor, first: Tensor, previous: Tensor | None) -> Tensor:
        rows = value.contiguous(), gate.contiguous(), ape.contiguous()
        kept = torch.empty(2, first.shape[0], _channels(value, previous))
        out = _compress(rows, first, previous, kept.data_ptr())
        ctx.save_for_backward(*rows, first, out, kept, *(() if previous is None else (previous,)))
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:  # type: ignore[override]
        value, gate, ape, first, out, kept, *rest = ctx.saved_tensors
        made = torch.zeros_like(value), torch.zeros_like(gate), torch.zeros_like(ape)
        if out.numel():
            previous = rest[0].data_ptr() if rest else 0
            tensors = (out, kept, dout.contiguous(), *made)
            _kernels().compress_back(
                out.shape[0], ape.shape[0], out.shape[1], value.shape[1], value.data_ptr(), gate.data_ptr(),
                ape.data_ptr(), first.data_ptr(), previous, *(t.data_ptr() for t in tensors),
            )  # fmt: skip
        return (*made, None, None)
