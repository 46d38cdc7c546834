"""Matrix products on the matrix unit: the dense map, the block-diagonal map, and their gradients.

One persistent kernel serves all: each program walks over output tiles, so that a chip's cores stay busy whatever
the shape. Shape suffixes: B independent products, M, N, K rows, columns and depth of one; T tokens, I input
width, O output width, G groups, P = G*O.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .example import Launch, example
from .grid import power_of_2
from .launch import Family, Launcher

# Rows, columns and depth of a tile. Ascend: two operand tiles twice over in L1 (512 KB), one result tile in
# L0C (128 KB); a depth of 256 two-byte elements makes DMA rows of 512 bytes, below which 910B's reads slow down.
_ASCEND_TILES = ((128, 256, 256), (128, 128, 256), (64, 256, 256), (64, 128, 256), (32, 128, 256), (16, 128, 256))
_CUDA_TILES = ((128, 128, 64), (64, 128, 64), (32, 128, 64), (16, 128, 64))
_READ_BYTES_PER_CYCLE, _MACS_PER_CYCLE = 78.0, 4096.0  # 910B: GM to L1, and bf16 products of one cube core


def choose_tile(family: Family, cores: int, shape: tuple[int, int, int], bytes_each: int) -> tuple[int, int, int]:
    """Return the tile (rows, columns, depth) for `shape` = (products, rows, columns) on so many cores.

    The least of: turns that each core takes, times what a tile costs a step of depth (read or multiplied).
    """
    batch, rows, columns = shape

    def cost(tile: tuple[int, int, int]) -> float:
        turns = -(-batch * (-(-rows // tile[0])) * (-(-columns // tile[1])) // cores)
        read = (tile[0] + tile[1]) * bytes_each / _READ_BYTES_PER_CYCLE
        return turns * max(read, tile[0] * tile[1] * (bytes_each / 2) / _MACS_PER_CYCLE)

    m, n, k = min(_ASCEND_TILES if family == "ascend" else _CUDA_TILES, key=cost)
    return m, n, k * 2 // bytes_each


def whole_depth(a: Tensor, b: Tensor, form: str, block: int) -> tuple[Tensor, Tensor, int]:
    """Return the operands of a product with a turned operand, and the depth of a tile, which divides theirs.

    950's compiler loses the zeros of a masked tile that is then turned, so no tile may reach beyond the depth. A depth
    that has no power of two of a useful size in it is filled up with zeros, in a copy.
    """
    dim = 1 if form == "tn" else 2
    depth = a.shape[dim]
    divisor = min(block, depth & -depth)
    if divisor >= min(block, 64) or (divisor >= 16 and depth <= 8 * divisor):
        return a, b, divisor
    block = max(16, min(block, 64, power_of_2(depth)))
    return _filled(a, dim, block), _filled(b, dim, block), block


def _filled(x: Tensor, dim: int, block: int) -> Tensor:
    missing = -x.shape[dim] % block
    return torch.nn.functional.pad(x, (0, missing) if dim == 2 else (0, 0, 0, missing)).contiguous()


def plan_product(a: Tensor, b: Tensor, out: Tensor, form: str, tile: tuple[int, int, int]) -> tuple[
        dict[str, Tensor | int | float], dict[str, Any]]:
    """Return args and constants of `matmul` for `out[i] = op(a[i]) @ op(b[i])` on 3-d views of column stride 1.

    form: "nt" a [B, M, K], b [B, N, K]; "nn" b [B, K, N]; "tn" a [B, K, M], b [B, K, N]. `out` is [B, M, N].
    Any batch and row strides will do.
    """
    _, rows, columns = out.shape
    named = {"a": a, "b": b, "out": out}
    args: dict[str, Tensor | int | float] = {name: _whole(t) for name, t in named.items()}
    depth = a.shape[1] if form == "tn" else a.shape[2]
    args |= {"rows": rows, "columns": columns, "depth": depth}
    args |= {f"{name}_row": t.stride(1) for name, t in named.items()}
    args |= {f"{name}_batch": t.stride(0) for name, t in named.items()}
    block_m, block_n, block_k = tile
    return args, {"A_TURNED": form == "tn", "B_TURNED": form == "nt", "MASKED": depth % block_k != 0,
                  "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "GROUP": 4}


def product(launch: Launcher, a: Tensor, b: Tensor, out: Tensor, form: str) -> Tensor:
    """Fill and return `out` [B, M, N]; see `plan_product`. Accumulates in fp32, rounds to `out`'s dtype."""
    batch, rows, columns = out.shape
    if b.stride(2) != 1 and form != "tn":  # its rows lie in memory as columns
        b, form = b.transpose(1, 2), "nt" if form == "nn" else "nn"
    tile = choose_tile(launch.family, launch.num_cube, (batch, rows, columns), a.element_size())
    if launch.family == "ascend" and form != "nn":
        a, b, depth = whole_depth(a, b, form, tile[2])
        tile = (*tile[:2], depth)
    args, constants = plan_product(a, b, out, form, tile)
    tiles = triton.cdiv(rows, tile[0]) * triton.cdiv(columns, tile[1])
    programs = max(1, min(tiles, -(-launch.num_cube // max(batch, 1))))
    launch(matmul, (programs if tiles else 0, batch), args, constants, warps=8 if tile[0] >= 128 else 4, stages=3)
    return out


def linear(launch: Launcher, x_TI: Tensor, weight_OI: Tensor) -> Tensor:
    """`ops.linear` by the kernel: `x @ weight.T` [..., O], differentiable in both."""
    flat = x_TI.reshape(1, -1, x_TI.shape[-1])
    out: Tensor = _Product.apply(launch, flat, weight_OI[None])
    return out.view(*x_TI.shape[:-1], weight_OI.shape[0])


def grouped_linear(launch: Launcher, x_TGI: Tensor, weight_PI: Tensor) -> Tensor:
    """`ops.grouped_linear` by the kernel: [T, G*O], differentiable in both. The weight may be a view [G, O, I]."""
    tokens, groups, width = x_TGI.shape
    weight_GOI = weight_PI if weight_PI.dim() == 3 else weight_PI.view(groups, -1, width)
    out: Tensor = _Product.apply(launch, x_TGI.transpose(0, 1), weight_GOI)
    return out.transpose(0, 1).reshape(tokens, -1)


class _Product(torch.autograd.Function):
    """x [B, T, I] and weight [B, O, I] -> [B, T, O], laid out as x is."""

    @staticmethod
    def forward(ctx: Any, launch: Launcher, x: Tensor, weight: Tensor) -> Tensor:
        x, weight = _by_row(x), weight if weight.stride(1) == 1 else _by_row(weight)
        ctx.launch = launch
        ctx.save_for_backward(x, weight)
        return product(launch, x, weight, _like(x, weight.shape[1]), "nt")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = _by_row(grads[0])
        _, into_x, into_weight = ctx.needs_input_grad
        x_grad = product(ctx.launch, grad, weight, _like(x, x.shape[2]), "nn") if into_x else None
        weight_grad = product(ctx.launch, grad, x, weight.new_empty(weight.shape), "tn") if into_weight else None
        return None, x_grad, weight_grad


def _like(x: Tensor, columns: int) -> Tensor:
    """A new [B, T, columns] in x's dtype whose rows lie in memory in the order of x's rows."""
    batch, rows, _ = x.shape
    if x.stride(0) >= x.stride(1):
        return x.new_empty(batch, rows, columns)
    return x.new_empty(rows, batch, columns).transpose(0, 1)


def _by_row(x: Tensor) -> Tensor:
    """The tensor with neighbouring columns side by side in memory: itself where it is so."""
    return x if x.stride(2) == 1 else x.contiguous()


def _whole(x: Tensor) -> Tensor:
    """The contiguous tensor that a view lies in: with its first two dimensions swapped, or flat."""
    if x.is_contiguous() or x.transpose(0, 1).is_contiguous():
        return x if x.is_contiguous() else x.transpose(0, 1)
    return x.as_strided((1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True)),), (1,))


def _operands(seed: int, form: str, shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns, depth = shape
    generator = torch.Generator().manual_seed(seed)
    left = (1, depth, rows) if form == "tn" else (1, rows, depth)
    right = (1, columns, depth) if form == "nt" else (1, depth, columns)
    a, b = (torch.randn(size, generator=generator).to(dtype) for size in (left, right))
    return a, b, torch.full((1, rows, columns), 7.0, dtype=dtype)


def _dense_inputs(seed: int) -> Launch:
    """An odd number of tokens, a width that fills no tile, one row of huge values and one of tiny ones."""
    a, b, out = _operands(seed, "nt", (77, 200, 328), torch.bfloat16)
    a[0, 3] *= 2.0**40
    a[0, 5] *= 2.0**-40
    return Launch(*_started(a, b, out, "nt", (64, 128, 128), 3))


def _input_grad_inputs(seed: int) -> Launch:
    return Launch(*_started(*_operands(seed, "nn", (33, 136, 72), torch.float16), "nn", (64, 128, 64), 2))


def _weight_grad_inputs(seed: int) -> Launch:
    return Launch(*_started(*_operands(seed, "tn", (120, 72, 45), torch.float32), "tn", (64, 64, 64), 3))


def _groups_inputs(seed: int) -> Launch:
    """Three groups whose rows lie interleaved in memory, as the output projection has them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(19, 3, 96, generator=generator).bfloat16()
    weight = torch.randn(3, 40, 96, generator=generator).bfloat16()
    out = torch.zeros(19, 3, 40, dtype=torch.bfloat16)
    return Launch(*_started(x.transpose(0, 1), weight, out.transpose(0, 1), "nt", (32, 64, 64), 1))


def _absorbed_inputs(seed: int) -> Launch:
    """MLA's queries taken into the latent space: every head's first 32 rows of `wkv_b`, turned, by a part of x."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(19, 3, 48, generator=generator).bfloat16()[..., :32]
    weight = torch.randn(3, 64, 72, generator=generator).bfloat16()[:, :32]
    out = torch.zeros(19, 3, 72, dtype=torch.bfloat16)
    return Launch(*_started(x.transpose(0, 1), weight, out.transpose(0, 1), "nn", (32, 64, 32), 1))


def _started(a: Tensor, b: Tensor, out: Tensor, form: str, tile: tuple[int, int, int], programs: int) -> tuple[
        dict[str, Any], tuple[int, int], dict[str, Any], tuple[str]]:
    if form != "nn":
        a, b, depth = whole_depth(a, b, form, tile[2])
        tile = (*tile[:2], depth)
    args, constants = plan_product(a, b, out, form, tile)
    return args, (programs, out.shape[0]), constants, ("out",)


def _product_reference(args: dict[str, Any]) -> dict[str, Tensor]:
    a = args["a"].transpose(1, 2) if args["A_TURNED"] else args["a"]
    return {"out": a @ (args["b"].transpose(1, 2) if args["B_TURNED"] else args["b"])}


def _groups_reference(args: dict[str, Any]) -> dict[str, Tensor]:
    return {"out": torch.einsum("tgi,goi->tgo", args["a"], args["b"])}


def _absorbed_reference(args: dict[str, Any]) -> dict[str, Tensor]:
    heads, depth = args["out"].shape[1], args["depth"]
    x = args["a"].as_strided((args["rows"], heads, depth), (args["a_row"], args["a_batch"], 1))
    weight = args["b"].as_strided((heads, depth, args["columns"]), (args["b_batch"], args["b_row"], 1))
    return {"out": torch.einsum("thd,hdc->thc", x, weight)}


@triton.jit
def load_tile(x, row, column, rows, columns, step, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The tile of a [rows, columns] matrix (row stride `step`) from (row, column) on; zeros beyond its edges."""
    r = tl.arange(0, ROWS)[:, None]
    c = tl.arange(0, COLUMNS)[None, :]
    at = x + tl.cast(row, tl.int64) * step + column + r * step + c
    return tl.load(at, mask=(r < rows - row) & (c < columns - column), other=0.0)


@triton.jit
def load_operand(x, row, column, rows, columns, step, MASKED: tl.constexpr, BY_ROW: tl.constexpr,
                 ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A tile of a product's operand. Not MASKED: the depth (its rows where BY_ROW, else its columns) has no edge, and
    anything may lie beyond the other edge, for it reaches only results that are not stored."""
    r = tl.arange(0, ROWS)[:, None]
    c = tl.arange(0, COLUMNS)[None, :]
    at = x + tl.cast(row, tl.int64) * step + column + r * step + c
    if MASKED:
        tile = tl.load(at, mask=(r < rows - row) & (c < columns - column), other=0.0)
    elif BY_ROW:
        tile = tl.load(at, mask=c < columns - column)
    else:
        tile = tl.load(at, mask=r < rows - row)
    return tile


@example(_absorbed_inputs, _absorbed_reference)
@example(_groups_inputs, _groups_reference)
@example(_weight_grad_inputs, _product_reference)
@example(_input_grad_inputs, _product_reference)
@example(_dense_inputs, _product_reference)
@triton.jit
def matmul(
    a, b, out, rows, columns, depth, a_row, b_row, out_row, a_batch, b_batch, out_batch,
    A_TURNED: tl.constexpr, B_TURNED: tl.constexpr, MASKED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):
    """out[i] = op(a[i]) @ op(b[i]), fp32 inside; `_row` and `_batch` are strides in elements. MASKED: BLOCK_K
    does not divide the depth."""
    batch = tl.program_id(1).to(tl.int64)
    a += batch * a_batch
    b += batch * b_batch
    out += batch * out_batch
    tiles_m = tl.cdiv(rows, BLOCK_M)
    tiles_n = tl.cdiv(columns, BLOCK_N)
    for tile in range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0)):
        # GROUP rows of tiles are finished column by column: what lies in the shared cache is used again soon.
        first = tile // (GROUP * tiles_n) * GROUP
        height = tl.minimum(tiles_m - first, GROUP)
        within = tile % (GROUP * tiles_n)
        m0 = (first + within % height) * BLOCK_M
        n0 = within // height * BLOCK_N
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in range(0, depth, BLOCK_K):
            if A_TURNED:
                left = tl.trans(load_operand(a, start, m0, depth, rows, a_row, MASKED, True, BLOCK_K, BLOCK_M))
            else:
                left = load_operand(a, m0, start, rows, depth, a_row, MASKED, False, BLOCK_M, BLOCK_K)
            if B_TURNED:
                right = tl.trans(load_operand(b, n0, start, columns, depth, b_row, MASKED, False, BLOCK_N, BLOCK_K))
            else:
                right = load_operand(b, start, n0, depth, columns, b_row, MASKED, True, BLOCK_K, BLOCK_N)
            total = tl.dot(left, right, total, input_precision="ieee")
        m = tl.arange(0, BLOCK_M)[:, None]
        n = tl.arange(0, BLOCK_N)[None, :]
        at = out + tl.cast(m0, tl.int64) * out_row + n0 + m * out_row + n
        tl.store(at, total.to(out.dtype.element_ty), mask=(m < rows - m0) & (n < columns - n0))
