"""Rows moved by index: taken, summed, and added where they belong (embedding, experts' rows there and back).

A program takes one row at a time, for then every access is a run of neighbours: no lane is gathered, no masked lane
reads memory. Shape suffixes: R rows, V rows of a table, C columns, T tokens, K rows a token.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .example import Launch, example
from .grid import TILE, Args, power_of_2, programs
from .launch import Launcher

# ------------------------------------------------------------------------------------------------ examples


def _table(seed: int, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _take_inputs(seed: int) -> Launch:
    """Repeated rows, the first and the last one, and two that do not exist: they are clamped to the ends."""
    index = torch.tensor([4, 0, 30, 30, 7, -3, 31], dtype=torch.int32)
    out = torch.zeros(7, 300, dtype=torch.bfloat16)
    return Launch({"table": _table(seed, (31, 300), torch.bfloat16), "index": index, "out": out, "rows": 7,
                   "num_rows": 31, "columns": 300}, (3,), {"BLOCK": 128}, ("out",))


def _take_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    return {"out": a["table"][a["index"].long().clamp(0, a["num_rows"] - 1)]}


def _sum_inputs(seed: int) -> Launch:
    """Three rows a token, of very different sizes."""
    table = _table(seed, (15, 200), torch.bfloat16) * torch.logspace(-6, 6, 15).bfloat16()[:, None]
    index = torch.randperm(15, generator=torch.Generator().manual_seed(seed)).int().view(5, 3)
    out = torch.zeros(5, 200, dtype=torch.bfloat16)
    return Launch({"table": table.bfloat16(), "index": index, "out": out, "tokens": 5, "num_rows": 15, "topk": 3,
                   "columns": 200}, (2,), {"BLOCK": 128}, ("out",))


def _sum_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    return {"out": a["table"][a["index"].long()].sum(1)}


def _add_inputs(seed: int) -> Launch:
    """One row is hit by four others, from different programs; most rows by none."""
    index = torch.tensor([2, 8, 2, 2, 0, 2, 8], dtype=torch.int32)
    return Launch({"table": torch.ones(9, 150), "index": index, "x": _table(seed, (7, 150), torch.bfloat16), "rows": 7,
                   "num_rows": 9, "columns": 150}, (4,), {"BLOCK": 64}, ("table",))


def _add_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    return {"table": a["table"].index_add(0, a["index"].long(), a["x"])}


def _collect_inputs(seed: int) -> Launch:
    """A row with four gifts, one with none, and gifts that nobody takes (at the end of the order)."""
    order = torch.tensor([3, 6, 0, 1, 5, 2, 4], dtype=torch.int32)
    offset = torch.tensor([0, 1, 1, 5], dtype=torch.int32)
    given = _table(seed, (7, 150), torch.float32) * torch.logspace(-3, 3, 7)[:, None]
    return Launch({"given": given, "order": order, "offset": offset, "table": torch.ones(3, 150), "rows": 3,
                   "columns": 150}, (2,), {"BLOCK": 64}, ("table",))


def _collect_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    spans = zip(a["offset"][:-1].tolist(), a["offset"][1:].tolist(), strict=True)
    sums = [a["given"][a["order"][first:end].long()].sum(0) for first, end in spans]
    return {"table": a["table"] + torch.stack(sums)}


# ------------------------------------------------------------------------------------------------- kernels


@example(_take_inputs, _take_reference)
@triton.jit
def rows_take(table, index, out, rows, num_rows, columns, BLOCK: tl.constexpr):
    """out[r] = table[index[r]]; an index outside 0..V-1 is clamped to it."""
    c = tl.arange(0, BLOCK)
    for r in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        row = tl.minimum(tl.maximum(tl.load(index + r), 0), num_rows - 1).to(tl.int64)
        for first in range(0, columns, BLOCK):
            x = tl.load(table + row * columns + first + c, mask=c < columns - first, other=0.0)
            tl.store(out + r * columns + first + c, x, mask=c < columns - first)


@example(_sum_inputs, _sum_reference)
@triton.jit
def rows_sum(table, index, out, tokens, num_rows, topk, columns, BLOCK: tl.constexpr):
    """out[t] = the sum of table[index[t, k]] over k, in this order and in fp32."""
    c = tl.arange(0, BLOCK)
    for t in range(tl.program_id(0).to(tl.int64), tokens, tl.num_programs(0)):
        for first in range(0, columns, BLOCK):
            total = tl.zeros((BLOCK,), tl.float32)
            for k in range(topk):
                row = tl.minimum(tl.maximum(tl.load(index + t * topk + k), 0), num_rows - 1).to(tl.int64)
                at = table + row * columns + first + c
                total += tl.load(at, mask=c < columns - first, other=0.0).to(tl.float32)
            at = out + t * columns + first + c
            tl.store(at, total.to(out.dtype.element_ty), mask=c < columns - first)


@example(_add_inputs, _add_reference)
@triton.jit
def rows_add(table, index, x, rows, num_rows, columns, BLOCK: tl.constexpr):
    """table[index[r]] += x[r] in fp32, atomically: rows that are hit more than once add up in any order."""
    c = tl.arange(0, BLOCK)
    for r in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        row = tl.minimum(tl.maximum(tl.load(index + r), 0), num_rows - 1).to(tl.int64)
        for first in range(0, columns, BLOCK):
            at = x + r * columns + first + c
            value = tl.load(at, mask=c < columns - first, other=0.0).to(tl.float32)
            tl.atomic_add(table + row * columns + first + c, value, mask=c < columns - first)


@example(_collect_inputs, _collect_reference)
@triton.jit
def rows_collect(given, order, offset, table, rows, columns, BLOCK: tl.constexpr):
    """table[r] += the sum of given[order[j]] over offset[r] <= j < offset[r + 1], in this order, all fp32."""
    c = tl.arange(0, BLOCK)
    for r in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        begin = tl.load(offset + r)
        end = tl.load(offset + r + 1)
        for first in range(0, columns, BLOCK):
            total = tl.zeros((BLOCK,), tl.float32)
            for j in range(begin, end):
                row = tl.load(order + j).to(tl.int64)
                total += tl.load(given + row * columns + first + c, mask=c < columns - first, other=0.0)
            at = table + r * columns + first + c
            tl.store(at, total + tl.load(at, mask=c < columns - first, other=0.0), mask=c < columns - first)


# ---------------------------------------------------------------------------------------------------- host


def take(launch: Launcher, table_VC: Tensor, index_R: Tensor) -> Tensor:
    """Return table[index] [R, C]; an index outside the table is clamped to it."""
    rows, columns = index_R.numel(), table_VC.shape[1]
    out = table_VC.new_empty(rows, columns)
    args: Args = {"table": table_VC.contiguous(), "index": index_R.int().contiguous(), "out": out, "rows": rows,
                  "num_rows": table_VC.shape[0], "columns": columns}
    launch(rows_take, programs(launch, rows), args, {"BLOCK": _block(columns)})
    return out


def total(launch: Launcher, table_RC: Tensor, index_TK: Tensor) -> Tensor:
    """Return the sum of each token's rows [T, C], in fp32, rounded once."""
    (tokens, topk), columns = index_TK.shape, table_RC.shape[1]
    out = table_RC.new_empty(tokens, columns)
    args: Args = {"table": table_RC.contiguous(), "index": index_TK.int().contiguous(), "out": out, "tokens": tokens,
                  "num_rows": table_RC.shape[0], "topk": topk, "columns": columns}
    launch(rows_sum, programs(launch, tokens), args, {"BLOCK": _block(columns)})
    return out


def collect(launch: Launcher, given_SC: Tensor, owner_S: Tensor, table_RC: Tensor) -> None:
    """Add each row of `given` (fp32) to the row of `table` (fp32) that owns it, in order; -1: nobody's."""
    rows = table_RC.shape[0]
    order = torch.where(owner_S < 0, rows, owner_S).argsort(stable=True)
    counts = torch.bincount(torch.where(owner_S < 0, rows, owner_S), minlength=rows + 1)[:rows]
    offset = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    args: Args = {"given": given_SC, "order": order.int(), "offset": offset.int(), "table": table_RC, "rows": rows,
                  "columns": table_RC.shape[1]}
    launch(rows_collect, programs(launch, rows), args, {"BLOCK": _block(table_RC.shape[1])})


def embed(launch: Launcher, ids_T: Tensor, weight_Vd: Tensor) -> Tensor:
    """`ops.embed` by the kernel: [T, d], differentiable in the weight. Raises IndexError for an id outside 0..V-1."""
    if ids_T.numel() and not 0 <= int(ids_T.min()) <= int(ids_T.max()) < weight_Vd.shape[0]:
        raise IndexError(f"token ids {int(ids_T.min())}..{int(ids_T.max())} are not within 0..{weight_Vd.shape[0] - 1}")
    out: Tensor = _Embed.apply(launch, ids_T, weight_Vd)
    return out


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, launch: Launcher, ids: Tensor, weight: Tensor) -> Tensor:
        ctx.launch, ctx.like = launch, (weight.shape, weight.dtype)
        ctx.save_for_backward(ids)
        return take(launch, weight, ids)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor]:
        (ids,), (shape, dtype) = ctx.saved_tensors, ctx.like
        table = grads[0].new_zeros(shape, dtype=torch.float32)
        args: Args = {"table": table, "index": ids.int().contiguous(), "x": grads[0].contiguous(), "rows": ids.numel(),
                      "num_rows": shape[0], "columns": shape[1]}
        ctx.launch(rows_add, programs(ctx.launch, ids.numel()), args, {"BLOCK": _block(shape[1])})
        return None, None, table.to(dtype)


def _block(columns: int) -> int:
    return max(16, min(TILE, power_of_2(columns)))
