"""`ops.grouped_attention` on the kernels of grouped.py and grouped_grad.py, differentiable.

Shape suffixes as there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops import Ranges
from .attention_delta import delta
from .attention_tiles import KEYS
from .grid import Args
from .grouped import by_group, by_token, grouped_forward, plan_grouped
from .grouped_grad import grouped_keys_grad, grouped_query_grad, plan_keys_grad
from .launch import Launcher

_PROGRAMS_PER_SM = 4


def grouped_attention(launch: Launcher, query_THC: Tensor, key_NGC: Tensor, value_NGV: Tensor, ranges: Ranges,
                      scale: float) -> Tensor:
    """`ops.grouped_attention` by the kernels: [T, H, V], differentiable in the query, the keys and the values.

    Raises NotSupported for values of other than 16, 32, 64, ... channels, and keys of neither as many nor two parts.
    """
    if not query_THC.shape[0]:
        return query_THC.new_zeros(0, query_THC.shape[1], value_NGV.shape[2])
    out: Tensor = _Grouped.apply(launch, query_THC, key_NGC, value_NGV, ranges, scale)
    return out


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, launch: Launcher, query: Tensor, key: Tensor, value: Tensor, seen: Ranges,
                scale: float) -> Tensor:
        tokens, heads, _ = query.shape
        args, constants = plan_grouped(launch.family, query, key, value, (seen, scale))
        rows, groups = args["count"].shape[0], constants["GROUPS"]  # type: ignore[union-attr]
        out = query.new_empty(groups, rows, constants["VALUE"])
        lse = query.new_empty(groups, rows, dtype=torch.float32)
        _start(launch, grouped_forward, tokens * groups, args | {"out": out, "lse": lse}, constants)
        ctx.launch, ctx.args, ctx.constants, ctx.seen, ctx.shape = launch, args, constants, seen, query.shape
        ctx.num_keys = key.shape[0]
        ctx.save_for_backward(out, lse)
        return by_token(out, heads, tokens)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (out, lse), launch, constants, (tokens, heads, width) = ctx.saved_tensors, ctx.launch, ctx.constants, ctx.shape
        groups, rows, _ = out.shape
        grad = by_group(grads[0], groups, ctx.args["slack"])
        args = ctx.args | {"grad": grad, "lse": lse, "delta": delta(launch, out, grad[:, :rows].contiguous())}
        query_grad = out.new_empty(groups, rows, width)
        _start(launch, grouped_query_grad, tokens * groups, args | {"query_grad": query_grad},
               constants | {"BLOCK_N": KEYS})
        args, constants = plan_keys_grad(args, constants, ctx.seen)
        key_grad = out.new_empty(args["num_keys"], groups, width)
        value_grad = out.new_empty(args["num_keys"], groups, constants["VALUE"])
        _start(launch, grouped_keys_grad, args["num_blocks"] * groups,
               args | {"key_grad": key_grad, "value_grad": value_grad}, constants)
        return (None, by_token(query_grad, heads, tokens), key_grad[: ctx.num_keys], value_grad[: ctx.num_keys], None,
                None)


def _start(launch: Launcher, fn: Any, jobs: int, args: Args, constants: dict[str, Any]) -> None:
    programs = min(jobs, launch.num_cube * (1 if launch.family == "ascend" else _PROGRAMS_PER_SM))
    launch(fn, (programs,), args, constants, warps=8 if constants["VALUE"] > 128 else 4, stages=1)
