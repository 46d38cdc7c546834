"""Attention and the indexer on the CPU: fused kernels that read keys as they lie; memory linear in the tokens."""

from __future__ import annotations

import ctypes
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import NotSupported
from ...ops import Keys, Ranges
from .bind import bind, refuse, wants_grad
from .kernels import load_library

_F32 = torch.float32
_CALL = ("tokens", "heads", "groups", "channels", "values", "scale", "query", "key", "value", "start", "count",
         "chosen", "chosen_start", "chosen_count", "rows", "width", "sink")  # attention.h's Call
_SCALE = _CALL.index("scale")
_Call = ctypes.c_int64 * len(_CALL)


@cache
def _kernels() -> SimpleNamespace:
    return bind(load_library(), {"attention": "ppp", "attention_back": "ppppll" + "p" * 5, "index_topk": "lllpppppllp",
                                 "index_group_bytes": "l"})


class _Problem(NamedTuple):
    """What both directions work on, contiguous. `value` None: the first `values` channels of keys."""

    query: Tensor
    window: Tensor
    value: Tensor | None
    chosen: Tensor | None
    sink: Tensor | None
    keys: Keys  # the row numbers
    scale: float
    values: int

    def call(self) -> Any:
        """Return the kernels' struct. The tensors must outlive the call."""
        ranges, selected, chosen = self.keys.window, self.keys.selected, self.chosen
        _check_rows(ranges)
        rows: tuple[int, ...] = (0, 0, 0, 0, 0)
        if chosen is not None and selected is not None:
            _check_rows(selected)
            rows = ((chosen.data_ptr(), selected.start.data_ptr(), selected.count.data_ptr(), 0, 0)
                    if isinstance(selected, Ranges) else
                    (chosen.data_ptr(), 0, 0, selected.data_ptr(), selected.shape[1]))
        tokens, heads, channels = self.query.shape
        value = self.window if self.value is None else self.value
        struct = _Call(tokens, heads, 1 if self.value is None else self.window.shape[1], channels, self.values, 0,
                       self.query.data_ptr(), self.window.data_ptr(), value.data_ptr(), ranges.start.data_ptr(),
                       ranges.count.data_ptr(), *rows, 0 if self.sink is None else self.sink.data_ptr())
        ctypes.c_double.from_buffer(struct, 8 * _SCALE).value = self.scale
        return struct


def attention(query_THC: Tensor, keys: Keys, sink_H: Tensor | None, *, scale: float | None = None,
              value_width: int | None = None) -> Tensor:
    """`ops.attention.attention`, fused. Raises NotSupported for other formats than fp32, or channels not in eights."""
    window, chosen = keys.window_NC, keys.compressed_MC
    if keys.selected is None or (chosen is not None and not chosen.shape[0]):
        chosen = None
    form = keys, scale or 0.0, query_THC.shape[2] if value_width is None else value_width
    return _run("attention", query_THC, window, None, chosen, sink_H, *form)


def grouped_attention(query_THC: Tensor, key_NGC: Tensor, value_NGV: Tensor, ranges: Ranges, scale: float) -> Tensor:
    """`ops.grouped.grouped_attention`, fused. Raises NotSupported as `attention` does."""
    if value_NGV.data_ptr() == key_NGC.data_ptr():
        value_NGV = value_NGV.clone()  # the kernels know a shared memory as attention's
    form = Keys(key_NGC, ranges), scale, value_NGV.shape[2]
    return _run("grouped_attention", query_THC, key_NGC, value_NGV, None, None, *form)


def _run(op: str, *given: Any) -> Tensor:
    tensors = [t for t in given[:5] if t is not None]
    if any(t.dtype is not _F32 for t in tensors):
        refuse(op, *tensors)
    if (given[0].shape[2] | given[-1]) % 8:
        raise NotSupported(f"the cpu chip's {op} takes channels that are multiples of 8, not {given[0].shape[2]} for "
                           f"keys and {given[-1]} for values; open cpu:reference")
    if wants_grad(*tensors):
        out: Tensor = _Attention.apply(*given)
        return out
    return _forward(_contiguous(given), False)[0]


def _contiguous(given: tuple[Any, ...]) -> _Problem:
    tensors: list[Any] = [None if t is None else t.contiguous() for t in given[:5]]
    return _Problem(*tensors, *given[5:])


def _check_rows(rows: Ranges | Tensor) -> None:
    """Row numbers go to the kernels as addresses: refuse what they would read wrongly."""
    for tensor in (rows.start, rows.count) if isinstance(rows, Ranges) else (rows,):
        if tensor.dtype is not torch.int32 or not tensor.is_contiguous():
            raise TypeError(f"row numbers must be contiguous int32, not {tensor.dtype} with strides {tensor.stride()}")


def _forward(problem: _Problem, want_lse: bool) -> tuple[Tensor, Tensor | None]:
    out = problem.query.new_empty(*problem.query.shape[:2], problem.values)
    lse = problem.query.new_empty(problem.query.shape[:2]) if want_lse else None
    call = problem.call()
    _kernels().attention(ctypes.addressof(call), out.data_ptr(), _address(lse))
    return out, lse


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


class _Attention(torch.autograd.Function):
    """Keeps the output and each query's log-sum-exp; backward computes the scores again."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        problem = _contiguous(given)
        out, lse = _forward(problem, True)
        ctx.save_for_backward(*problem[:5], out, lse)
        ctx.form = problem[5:]
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, out, lse = ctx.saved_tensors
        problem, grad = _Problem(*tensors, *ctx.form), grad.contiguous()
        query, window, value, chosen, sink = (None if t is None else torch.empty_like(t) for t in tensors)
        call = problem.call()
        _kernels().attention_back(
            ctypes.addressof(call), out.data_ptr(), lse.data_ptr(), grad.data_ptr(), problem.window.shape[0],
            0 if chosen is None else chosen.shape[0], *map(_address, (query, window, chosen, value, sink)))
        return query, window, value, chosen, sink, None, None, None


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


def index_copies(rows: int, channels: int) -> Tensor | None:
    """Return memory for the copies of the indexer's keys that are scanned first (index_rough.h), bytes [groups of 16
    keys, bytes a group], marked as unknown; None where this processor gains nothing by them."""
    size = _kernels().index_group_bytes(channels)
    return torch.full((-(-rows // 16), size), 255, dtype=torch.uint8) if size else None
