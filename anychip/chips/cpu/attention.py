"""Attention and the indexer on the CPU: fused kernels that read keys as they lie; memory linear in the tokens."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ...errors import NotSupported
from ...ops import Keys, Ops, Ranges
from .bind import bind, refuse, wants_grad
from .kernels import load_library

_F32 = torch.float32


@cache
def _kernels() -> SimpleNamespace:
    shared = "lll" + "p" * 8 + "lp"
    return bind(load_library(), {
        "attention": shared + "pp", "attention_back": shared + "ppp" + "ll" + "pppp", "index_topk": "lllpppppllp",
    })  # fmt: skip


def attention(query_THC: Tensor, keys: Keys, sink_H: Tensor | None, *, scale: float | None = None,
              value_width: int | None = None) -> Tensor:
    """`ops.attention.attention`, fused. Raises NotSupported for other formats than fp32 or C not a multiple of 8."""
    if sink_H is None or scale is not None or value_width is not None:
        return Ops.attention(query_THC, keys, sink_H, scale=scale, value_width=value_width)
    window, chosen = keys.window_NC, keys.compressed_MC
    if not (query_THC.dtype is window.dtype is sink_H.dtype is _F32) or not (chosen is None or chosen.dtype is _F32):
        refuse("attention", query_THC, window, chosen, sink_H)
    if query_THC.shape[2] % 8:
        raise NotSupported(f"the cpu chip's attention takes a head_dim that is a multiple of 8, not "
                           f"{query_THC.shape[2]}; open cpu:reference")
    if keys.selected is None or (chosen is not None and not chosen.shape[0]):
        chosen = None
    if wants_grad(query_THC, window, chosen, sink_H):
        out: Tensor = _Attention.apply(query_THC, window, chosen, sink_H, keys)
        return out
    return _forward(query_THC.contiguous(), window.contiguous(), chosen, sink_H.contiguous(), (keys, 0))[0]


def _arguments(query: Tensor, window: Tensor, chosen: Tensor | None, sink: Tensor, keys: Keys) -> tuple[Any, ...]:
    """What both kernels begin with. Tensors must be contiguous and outlive the call."""
    ranges, selected = keys.window, keys.selected
    _check_rows(ranges)
    pointers: tuple[int, ...] = (0, 0, 0, 0, 0)
    if chosen is not None and isinstance(selected, Ranges):
        _check_rows(selected)
        pointers = chosen.data_ptr(), selected.start.data_ptr(), selected.count.data_ptr(), 0, 0
    elif chosen is not None and selected is not None:
        _check_rows(selected)
        pointers = chosen.data_ptr(), 0, 0, selected.data_ptr(), selected.shape[1]  # type: ignore[union-attr]
    return (*query.shape, query.data_ptr(), window.data_ptr(), ranges.start.data_ptr(), ranges.count.data_ptr(),
            *pointers, sink.data_ptr())


def _check_rows(rows: Ranges | Tensor) -> None:
    """Row numbers go to the kernels as addresses: refuse what they would read wrongly."""
    for tensor in (rows.start, rows.count) if isinstance(rows, Ranges) else (rows,):
        if tensor.dtype is not torch.int32 or not tensor.is_contiguous():
            raise TypeError(f"row numbers must be contiguous int32, not {tensor.dtype} with strides {tensor.stride()}")


def _forward(query: Tensor, window: Tensor, chosen: Tensor | None, sink: Tensor,
             more: tuple[Keys, int]) -> tuple[Tensor, Tensor | None]:
    keys, want_lse = more
    chosen = None if chosen is None else chosen.contiguous()
    out = torch.empty_like(query)
    lse = query.new_empty(query.shape[:2]) if want_lse else None
    kept = 0 if lse is None else lse.data_ptr()
    _kernels().attention(*_arguments(query, window, chosen, sink, keys), out.data_ptr(), kept)
    return out, lse


class _Attention(torch.autograd.Function):
    """Keeps the output and each query's log-sum-exp; backward computes the scores again."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, window: Tensor, chosen: Tensor | None, sink: Tensor, keys: Keys) -> Tensor:
        query, window, sink = query.contiguous(), window.contiguous(), sink.contiguous()
        chosen = None if chosen is None else chosen.contiguous()
        out, lse = _forward(query, window, chosen, sink, (keys, 1))
        ctx.save_for_backward(query, window, chosen, sink, out, lse)
        ctx.keys = keys
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, window, chosen, sink, out, lse = ctx.saved_tensors
        grad = grad.contiguous()
        grads = [None if t is None else torch.empty_like(t) for t in (query, window, chosen, sink)]
        _kernels().attention_back(
            *_arguments(query, window, chosen, sink, ctx.keys), out.data_ptr(), lse.data_ptr(), grad.data_ptr(),
            window.shape[0], 0 if chosen is None else chosen.shape[0],
            *(0 if g is None else g.data_ptr() for g in grads))
        return (*grads, None)


def index_topk(query_THI: Tensor, weight_TH: Tensor, key_MI: Tensor, visible: Ranges, topk: int) -> Tensor:
    """`ops.index.index_topk`, fused. A NaN score counts as the lowest. Raises NotSupported for other formats than
    fp32 or I not a multiple of 8."""
    if not (query_THI.dtype is weight_TH.dtype is key_MI.dtype is _F32):
        refuse("index_topk", query_THI, weight_TH, key_MI)
    if query_THI.shape[2] % 8:
        raise NotSupported(f"the cpu chip's indexer takes an index_head_dim that is a multiple of 8, not "
                           f"{query_THI.shape[2]}; open cpu:reference")
    query, weight, key = query_THI.detach().contiguous(), weight_TH.detach().contiguous(), key_MI.detach().contiguous()
    _check_rows(visible)
    out = torch.empty(query.shape[0], topk, dtype=torch.int32)
    _kernels().index_topk(*query.shape, query.data_ptr(), weight.data_ptr(), key.data_ptr(), visible.start.data_ptr(),
                          visible.count.data_ptr(), visible.max_count, topk, out.data_ptr())
    return out
