"""The routed experts: rows sorted by expert, grouped products of variable height, and the way there and back.

A (token, expert) pair is a row. Rows are sorted by expert and cut into blocks of at most BLOCK_M rows of one expert;
the table of blocks is made on the chip, of a size that is known without a copy to the host. No atomics: sums run in
a fixed order. Shape suffixes: T tokens, K experts a token, R = T*K rows, E experts, d hidden, F expert width,
P = 2F, N and D columns and depth of a product, J blocks.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .example import Launch, example
from .grid import Args
from .launch import Family, Launcher
from .matmul import load_operand, load_tile, whole_depth
from .rows import take, total
from .rows_by_expert import Rows, block_height, cut, sort_rows
from .swiglu import swiglu

# ------------------------------------------------------------------------------------------------ examples


def _banks(seed: int, form: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """37 rows of 72 columns; 5 experts' products to 136 columns; the first row of each of them, and 37 last.

    The first and the last expert get no row, one gets one row, one more than a block.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(37, 72, generator=generator).to(dtype)
    bank = torch.randn(5, *((136, 72) if form == "nt" else (72, 136)), generator=generator).to(dtype)
    return x, bank, torch.tensor([0, 0, 18, 19, 37, 37])


def _grouped_launch(seed: int, form: str, dtype: torch.dtype, tile: tuple[int, int, int]) -> Launch:
    x, bank, offset = _banks(seed, form, dtype)
    if form == "nt":
        x, bank, tile = _whole(x, bank, tile)
    args, constants = plan_grouped(x, bank, (x.new_full((37, 136), 7.0), cut(offset, tile[0], 37)), form, tile)
    return Launch(args, (3,), constants, ("out",))


def _forward_inputs(seed: int) -> Launch:
    return _grouped_launch(seed, "nt", torch.bfloat16, (16, 128, 64))


def _input_grad_inputs(seed: int) -> Launch:
    return _grouped_launch(seed, "nn", torch.float32, (32, 64, 64))


def _grouped_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    bank = a["bank"].transpose(1, 2) if a["TURNED"] else a["bank"]
    out = torch.zeros_like(a["out"])
    for expert, first, end in a["blocks"].tolist():
        out[first:end] = a["x"][first:end] @ bank[expert]
    return {"out": out}


def _weight_grad_inputs(seed: int) -> Launch:
    x, _, offset = _banks(seed, "nt", torch.bfloat16)
    grad = torch.randn(37, 40, generator=torch.Generator().manual_seed(seed + 1)).bfloat16()
    out = torch.zeros(5, 40, 72, dtype=torch.bfloat16)
    args, constants = plan_weight_grad(with_slack(grad, 16), x, (out, offset.int()), "ascend", (64, 64, 16))
    return Launch(args, (4,), constants, ("out",))


def _weight_grad_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    spans = zip(a["offset"][:-1].tolist(), a["offset"][1:].tolist(), strict=True)
    return {"out": torch.stack([a["grad"][first:end].T @ a["x"][first:end] for first, end in spans])}


# ------------------------------------------------------------------------------------------------- kernels


@example(_input_grad_inputs, _grouped_reference)
@example(_forward_inputs, _grouped_reference)
@triton.jit
def grouped_matmul(x, bank, out, blocks, num_blocks, columns, depth, TURNED: tl.constexpr, MASKED: tl.constexpr,
                   BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """out[r] = x[r] @ op(bank[expert of r]): bank [E, N, D] where TURNED, else [E, D, N]; fp32 inside. MASKED: BLOCK_K
    does not divide the depth."""
    tiles_n = tl.cdiv(columns, BLOCK_N)
    m = tl.arange(0, BLOCK_M)[:, None]
    n = tl.arange(0, BLOCK_N)
    for tile in range(tl.program_id(0), num_blocks * tiles_n, tl.num_programs(0)):
        block = blocks + tile // tiles_n * 3
        expert = tl.load(block).to(tl.int64)
        first = tl.load(block + 1)
        height = tl.load(block + 2) - first
        column = tile % tiles_n * BLOCK_N
        sum_mn = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        # an unused block has no rows: it must not read a whole expert for nothing
        for start in range(0, tl.where(height > 0, depth, 0), BLOCK_K):
            left = load_operand(x, first, start, first + height, depth, depth, MASKED, False, BLOCK_M, BLOCK_K)
            if TURNED:
                right = tl.trans(load_operand(bank + expert * columns * depth, column, start, columns, depth, depth,
                                              MASKED, False, BLOCK_N, BLOCK_K))
            else:
                right = load_operand(bank + expert * columns * depth, start, column, depth, columns, columns,
                                     MASKED, True, BLOCK_K, BLOCK_N)
            sum_mn = tl.dot(left, right, sum_mn, input_precision="ieee")
        at = out + first.to(tl.int64) * columns + column + m * columns + n[None, :]
        tl.store(at, sum_mn.to(out.dtype.element_ty), mask=(m < height) & (n[None, :] < columns - column))


@example(_weight_grad_inputs, _weight_grad_reference)
@triton.jit
def grouped_weight_grad(grad, x, out, offset, num_experts, num_rows, columns, depth, APART: tl.constexpr,
                        BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr):
    """out[e] [N, D] = grad[rows of e]^T @ x[rows of e]; an expert without rows keeps what `out` holds.

    (After a loop of no steps Huawei's compiler leaves the accumulator as the tile before left it, tl.zeros or not.)
    Beyond an expert's rows x is zero; `grad`, which is turned, is not, because 950's compiler loses those zeros: it
    goes on with the next rows, up to `num_rows`. APART: turn and multiply in blocks of code of their own, or 950's
    compiler fuses the two and loses the zeros of x as well.
    """
    tiles_n = tl.cdiv(columns, BLOCK_N)
    tiles_d = tl.cdiv(depth, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    for tile in range(tl.program_id(0).to(tl.int64), num_experts * tiles_n * tiles_d, tl.num_programs(0)):
        expert = tile // (tiles_n * tiles_d)
        column = tile // tiles_d % tiles_n * BLOCK_N
        other = tile % tiles_d * BLOCK_D
        first = tl.load(offset + expert)
        end = tl.load(offset + expert + 1)
        sum_nd = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        for start in range(first, end, BLOCK_R):
            left = tl.trans(load_tile(grad, start, column, num_rows, columns, columns, BLOCK_R, BLOCK_N))
            right = load_tile(x, start, other, end, depth, depth, BLOCK_R, BLOCK_D)
            if APART:
                if start < end:
                    sum_nd = tl.dot(left, right, sum_nd, input_precision="ieee")
            else:
                sum_nd = tl.dot(left, right, sum_nd, input_precision="ieee")
        at = out + (expert * columns + column) * depth + other + n[:, None] * depth + d[None, :]
        inside = (n[:, None] < tl.where(end > first, columns - column, 0)) & (d[None, :] < depth - other)
        tl.store(at, sum_nd.to(out.dtype.element_ty), mask=inside)


# ---------------------------------------------------------------------------------------------------- host


def plan_grouped(x: Tensor, bank: Tensor, into: tuple[Tensor, Tensor], form: str,
                 tile: tuple[int, int, int]) -> tuple[Args, dict[str, Any]]:
    """Return args and constants of `grouped_matmul`; `into` = (out [R, N], blocks [J, 3] of at most tile[0] rows)."""
    out, blocks = into
    args: Args = {"x": x, "bank": bank, "out": out, "blocks": blocks, "num_blocks": blocks.shape[0],
                  "columns": out.shape[1], "depth": x.shape[1]}
    return args, {"TURNED": form == "nt", "MASKED": x.shape[1] % tile[2] != 0, "BLOCK_M": tile[0],
                  "BLOCK_N": tile[1], "BLOCK_K": tile[2]}


def with_slack(grad: Tensor, rows: int) -> Tensor:
    """Return it with so many zero rows after its own: what the last tile of `grouped_weight_grad` reads on a chip whose
    compiler loses a turned tile's zeros."""
    return torch.nn.functional.pad(grad, (0, 0, 0, rows))


def plan_weight_grad(grad: Tensor, x: Tensor, into: tuple[Tensor, Tensor], family: Family,
                     tile: tuple[int, int, int]) -> tuple[Args, dict[str, Any]]:
    """Return args and constants of `grouped_weight_grad`; `into` = (out [E, N, D], offset [E + 1])."""
    out, offset = into
    args: Args = {"grad": grad, "x": x, "out": out, "offset": offset, "num_experts": out.shape[0],
                  "num_rows": grad.shape[0], "columns": out.shape[1], "depth": out.shape[2]}
    return args, {"APART": family == "ascend", "BLOCK_N": tile[0], "BLOCK_D": tile[1], "BLOCK_R": tile[2]}


def _tile(family: Family, height: int, bytes_each: int) -> tuple[int, int, int]:
    width, depth = (256, 256) if family == "ascend" else (128, 64)
    return height, width, depth * 2 // bytes_each


def experts(launch: Launcher, x_Td: Tensor, ids_TK: Tensor, weight_TK: Tensor, banks: tuple[Tensor, Tensor],
            limit: float) -> Tensor:
    """`ops.experts` by the kernels: [T, d], differentiable in x, the weights and both banks."""
    w13_EPd, w2_EdF = banks
    if not ids_TK.numel():
        return torch.zeros_like(x_Td)
    num_experts = w13_EPd.shape[0]
    rows = sort_rows(ids_TK.long(), num_experts, block_height(ids_TK.numel(), num_experts))
    sorted_x = _Spread.apply(launch, x_Td, rows)
    gate_up = _Grouped.apply(launch, sorted_x, w13_EPd, rows)
    hidden = swiglu(launch, gate_up, limit, weight_TK.float().reshape(-1)[rows.order_R])
    out: Tensor = _Collect.apply(launch, _Grouped.apply(launch, hidden, w2_EdF, rows), rows)
    return out


class _Spread(torch.autograd.Function):
    """x [T, d] -> its row for each pair, sorted by expert [R, d]."""

    @staticmethod
    def forward(ctx: Any, launch: Launcher, x: Tensor, rows: Rows) -> Tensor:
        ctx.launch, ctx.rows = launch, rows
        return take(launch, x, rows.token_R)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        return None, total(ctx.launch, grads[0], ctx.rows.slot_TK), None


class _Collect(torch.autograd.Function):
    """Sorted rows [R, d] -> the sum of each token's rows [T, d]."""

    @staticmethod
    def forward(ctx: Any, launch: Launcher, y: Tensor, rows: Rows) -> Tensor:
        ctx.launch, ctx.rows = launch, rows
        return total(launch, y, rows.slot_TK)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        return None, take(ctx.launch, grads[0], ctx.rows.token_R), None


class _Grouped(torch.autograd.Function):
    """x [R, D] and bank [E, N, D] -> x[r] @ bank[expert of r]^T [R, N]."""

    @staticmethod
    def forward(ctx: Any, launch: Launcher, x: Tensor, bank: Tensor, rows: Rows) -> Tensor:
        ctx.launch, ctx.rows = launch, rows
        x, bank = x.contiguous(), bank.contiguous()
        ctx.save_for_backward(x, bank)
        return _grouped(launch, x, bank, rows, "nt")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, bank), grad = ctx.saved_tensors, grads[0].contiguous()
        _, into_x, into_bank, _ = ctx.needs_input_grad
        x_grad = _grouped(ctx.launch, grad, bank, ctx.rows, "nn") if into_x else None
        return None, x_grad, _bank_grad(ctx.launch, grad, x, bank, ctx.rows) if into_bank else None, None


def _grouped(launch: Launcher, x: Tensor, bank: Tensor, rows: Rows, form: str) -> Tensor:
    out = x.new_empty(x.shape[0], bank.shape[1 if form == "nt" else 2])
    height = block_height(x.shape[0], bank.shape[0])
    tile = _tile(launch.family, height, x.element_size())
    if launch.family == "ascend" and form == "nt":
        x, bank, tile = _whole(x, bank, tile)
    args, constants = plan_grouped(x, bank, (out, rows.blocks_J3), form, tile)
    tiles = rows.blocks_J3.shape[0] * -(-out.shape[1] // tile[1])
    launch(grouped_matmul, (min(tiles, launch.num_cube),), args, constants, warps=8 if height > 64 else 4, stages=3)
    return out


def _whole(x: Tensor, bank: Tensor, tile: tuple[int, int, int]) -> tuple[Tensor, Tensor, tuple[int, int, int]]:
    """The operands and the tile where the bank is turned: see `whole_depth`."""
    x, bank, depth = whole_depth(x[None], bank, "nt", tile[2])
    return x[0], bank, (tile[0], tile[1], depth)


def _bank_grad(launch: Launcher, grad: Tensor, x: Tensor, bank: Tensor, rows: Rows) -> Tensor:
    out = torch.zeros_like(bank)
    tile = (128, 256, 128 // bank.element_size()) if launch.family == "ascend" else (128, 128, 32)
    if not launch.keeps_zeros:
        grad = with_slack(grad, tile[2])
    args, constants = plan_weight_grad(grad, x, (out, rows.offset_E1), launch.family, tile)
    tiles = bank.shape[0] * -(-bank.shape[1] // tile[0]) * -(-bank.shape[2] // tile[1])
    launch(grouped_weight_grad, (min(tiles, launch.num_cube),), args, constants, warps=8, stages=3)
    return out
