"""`ops.attention` on the kernels of attention.py and attention_grad.py, differentiable.

Shape suffixes as there: T query tokens, H heads, C head channels, N window rows, M entries, S slots.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops import Keys
from .attention import ABSENT, LIST, attention_forward, plan_attention, sinks
from .attention_delta import delta
from .attention_grad import attention_keys_grad, attention_query_grad
from .attention_tiles import KEYS, by_block, head_block, key_blocks, slots, whole_heads, with_slack
from .grid import Args
from .launch import Launcher
from .rows import collect

_GIVEN_BYTES = 2**28  # what tokens give to keys is held for so many tokens at a time


def attention(launch: Launcher, query_THC: Tensor, keys: Keys, sink_H: Tensor | None, *, scale: float | None = None,
              value_width: int | None = None) -> Tensor:
    """`ops.attention` by the kernels: [T, H, V], differentiable in the query, both kinds of rows and the sink.

    Raises NotSupported for values that are no power of two from 16 channels on, and tails of keys neither.
    """
    entries = keys.compressed_MC if keys.compressed_MC is not None else keys.window_NC
    out: Tensor = _Attention.apply(launch, query_THC, keys.window_NC, entries, sink_H, (keys, scale, value_width))
    return out


class _Attention(torch.autograd.Function):
    """The tensors of `keys` are passed beside it too, for autograd to see them."""

    @staticmethod
    def forward(ctx: Any, launch: Launcher, query: Tensor, window: Tensor, entries: Tensor, sink: Tensor | None,
                form: tuple[Keys, float | None, int | None]) -> Tensor:
        query = query.contiguous()
        args, constants = plan_attention(query, *form)
        (tokens, heads, _), channels = query.shape, constants["CHANNELS"]
        out, lse = query.new_empty(tokens, heads, channels), query.new_empty(tokens, heads, dtype=torch.float32)
        args |= {"query": query, "sink": sinks(sink, query), "out": out, "lse": lse}
        block = head_block(launch.family, query)
        launch(attention_forward, (tokens, -(-heads // block)), args | {"query": whole_heads(query, block)},
               constants | {"BLOCK_H": block, "BLOCK_N": KEYS},
               warps=8 if channels > 128 else 4, stages=1)  # two overflow an SM at 512 channels
        ctx.launch, ctx.plan, ctx.num_rows = launch, (args, constants), (window.shape[0], entries.shape[0])
        ctx.save_for_backward(sink)
        ctx.has_entries = constants["FORM"] != ABSENT.value
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (sink,), launch, (args, constants) = ctx.saved_tensors, ctx.launch, ctx.plan
        grad, out = grads[0].contiguous(), _tensor(args, "out")
        args = args | {"grad": grad, "delta": delta(launch, out, grad)}
        query_grad = _query_grad(launch, args, constants) if ctx.needs_input_grad[1] else None
        window_grad, entries_grad = _keys_grad(launch, args, constants)
        sink_grad = None
        if sink is not None:
            sink_grad = -(torch.exp(sink.float() - args["lse"]) * args["delta"]).sum(0).to(sink.dtype)
        window_grad, entries_grad = window_grad[: ctx.num_rows[0]], entries_grad[: ctx.num_rows[1]]  # no padding
        return None, query_grad, window_grad, entries_grad if ctx.has_entries else None, sink_grad, None


def _query_grad(launch: Launcher, args: Args, constants: dict[str, Any]) -> Tensor:
    query = _tensor(args, "query")
    tokens, heads, _ = query.shape
    query_grad, block = torch.empty_like(query), head_block(launch.family, query)
    _start(launch, attention_query_grad, (tokens, -(-heads // block)),
           args | by_block(args, block) | {"query_grad": query_grad},
           constants | {"BLOCK_H": block, "BLOCK_N": KEYS})
    return query_grad


def _keys_grad(launch: Launcher, args: Args, constants: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The gradients of the window's rows and of the entries, in their dtypes: tokens give, rows collect."""
    query, window, entries = (_tensor(args, name) for name in ("query", "window", "entries"))
    tokens, _, width = query.shape
    grads = [torch.zeros(t.shape, dtype=torch.float32, device=t.device) for t in (window, entries)]
    size = slots(args, constants)
    owners_TS = _owners(args, constants, size)
    step = max(1, _GIVEN_BYTES // (4 * width * max(size["num_slots"], 1)))
    blocks = key_blocks(constants["CHANNELS"])
    args = args | by_block(args, blocks["BLOCK_H"]) | with_slack(args, blocks["BLOCK_N"])
    for at in range(0, tokens, step):
        part = {n: v[at : at + step] if n in _BY_TOKEN and isinstance(v, Tensor) else v for n, v in args.items()}
        given = query.new_empty(min(step, tokens - at), size["num_slots"], width, dtype=torch.float32)
        _start(launch, attention_keys_grad, (given.shape[0],), part | size | {"given": given},
               constants | blocks)
        for grad, offset in zip(grads, (0, window.shape[0]), strict=True):
            owner = owners_TS[at : at + step] - offset
            owner = torch.where((owner < 0) | (owner >= grad.shape[0]), -1, owner)
            if not offset or constants["FORM"] != ABSENT.value:
                collect(launch, given.view(-1, width), owner.reshape(-1), grad)
    return grads[0].to(window.dtype), grads[1].to(entries.dtype)


_BY_TOKEN = ("query", "grad", "lse", "delta", "window_start", "window_count", "entry_start", "entry_count", "chosen")


def _owners(args: Args, constants: dict[str, Any], size: dict[str, int]) -> Tensor:
    """The row (window rows, then entries) that each token's slot belongs to, int64 [T, S]; -1 where none."""
    step = torch.arange(size["num_slots"], device=_tensor(args, "window_start").device)
    start, count = (_tensor(args, f"window_{name}").long()[:, None] for name in ("start", "count"))
    owner = torch.where(step < count, start + step, -1)
    if constants["FORM"] == ABSENT.value:
        return owner
    first, offset = size["window_slots"], _tensor(args, "window").shape[0]
    start, count = (_tensor(args, f"entry_{name}").long()[:, None] for name in ("start", "count"))
    entry = start + (step - first)
    if constants["FORM"] == LIST.value:
        chosen = _tensor(args, "chosen").long()
        entry = chosen.gather(1, (step - first).clamp(0, chosen.shape[1] - 1).expand(chosen.shape[0], -1))
    real = (step >= first) & (step < first + count) & (entry >= 0)
    return torch.where(real, entry + offset, owner)


def _start(launch: Launcher, fn: Any, grid: tuple[int, ...], args: Args, constants: dict[str, Any]) -> None:
    """Launch with those of the args that the kernel takes."""
    wanted = fn.arg_names
    wide = constants["CHANNELS"] > 128
    launch(fn, grid, {name: args[name] for name in wanted if name in args}, constants, warps=8 if wide else 4, stages=1)


def _tensor(args: Args, name: str) -> Tensor:
    value = args[name]
    assert isinstance(value, Tensor)
    return value

