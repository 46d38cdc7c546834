"""Muon's orthogonalisation: Newton-Schulz steps X <- aX + b(XX^T)X + c(XX^T)^2 X, each product with its epilogue.

DeepSeek-V4's rule (report, algorithm 1): X0 = M / ||M||_F, eight steps of one set of coefficients, then two of
another; products in bf16. Shape suffixes: B matrices, M rows, N columns, with M <= N (else the transpose is worked on).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .example import Launch, example
from .grid import Args
from .launch import Launcher
from .matmul import load_tile, product

# (a, b, c) of each step: report, algorithm 1
STEPS = ((3.4445, -4.7750, 2.0315),) * 8 + ((2.0, -1.5, 0.5),) * 2

# ------------------------------------------------------------------------------------------------ examples


def _square_inputs(seed: int) -> Launch:
    """b A + c A A for a symmetric A: the factor of a step."""
    x = torch.randn(2, 72, 100, generator=torch.Generator().manual_seed(seed))
    x = (x / x.norm(dim=(1, 2), keepdim=True)).bfloat16()
    a = (x.float() @ x.float().transpose(1, 2)).bfloat16()
    args, constants = plan_step(a, a, a, (-4.7750, 2.0315), (64, 64, 64))
    return Launch(args | {"out": torch.zeros_like(a)}, (3, 2), constants, ("out",))


def _apply_inputs(seed: int) -> Launch:
    """a X + B X: the end of a step, on a matrix of odd sides."""
    g = torch.Generator().manual_seed(seed)
    x, b = torch.randn(1, 45, 131, generator=g), torch.randn(1, 45, 45, generator=g)
    args, constants = plan_step(b, x, x, (3.4445, 1.0), (32, 64, 32))
    return Launch(args | {"out": torch.zeros_like(x)}, (4, 1), constants, ("out",))


def _step_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    return {"out": a["keep"] * a["base"] + a["gain"] * (a["left"] @ a["right"])}


# ------------------------------------------------------------------------------------------------- kernels


@example(_apply_inputs, _step_reference)
@example(_square_inputs, _step_reference)
@triton.jit
def newton_schulz_step(left, right, base, out, rows, columns, depth, keep, gain,
                       BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """out[i] [M, N] = keep * base[i] + gain * left[i] [M, K] @ right[i] [K, N], rounded once."""
    batch = tl.program_id(1).to(tl.int64)
    left += batch * rows * depth
    right += batch * depth * columns
    tiles_n = tl.cdiv(columns, BLOCK_N)
    for tile in range(tl.program_id(0), tl.cdiv(rows, BLOCK_M) * tiles_n, tl.num_programs(0)):
        m0 = tile // tiles_n * BLOCK_M
        n0 = tile % tiles_n * BLOCK_N
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k0 in range(0, depth, BLOCK_K):
            x = load_tile(left, m0, k0, rows, depth, depth, BLOCK_M, BLOCK_K)
            y = load_tile(right, k0, n0, depth, columns, columns, BLOCK_K, BLOCK_N)
            total = tl.dot(x, y, total, input_precision="ieee")
        old = load_tile(base + batch * rows * columns, m0, n0, rows, columns, columns, BLOCK_M, BLOCK_N)
        total = keep * old.to(tl.float32) + gain * total
        m = tl.arange(0, BLOCK_M)[:, None]
        n = tl.arange(0, BLOCK_N)[None, :]
        at = out + (batch * rows + m0) * columns + n0 + m * columns + n
        tl.store(at, total.to(out.dtype.element_ty), mask=(m < rows - m0) & (n < columns - n0))


# ---------------------------------------------------------------------------------------------------- host


def plan_step(left: Tensor, right: Tensor, base: Tensor, factors: tuple[float, float],
              tile: tuple[int, int, int]) -> tuple[Args, dict[str, Any]]:
    """Return args (all but `out`) and constants of `newton_schulz_step`; factors = (keep, gain)."""
    args: Args = {"left": left, "right": right, "base": base, "rows": left.shape[1], "columns": right.shape[2],
                  "depth": left.shape[2], "keep": factors[0], "gain": factors[1]}
    return args, {"BLOCK_M": tile[0], "BLOCK_N": tile[1], "BLOCK_K": tile[2]}


def orthogonalize(launch: Launcher, matrix: Tensor, steps: tuple[tuple[float, float, float], ...] = STEPS) -> Tensor:
    """Return the nearly orthogonal factor of a matrix [M, N], or of each of a stack [B, M, N], in bf16 products.

    The singular values come out near 1; the result has the input's dtype. A zero matrix stays zero.
    """
    stack = matrix if matrix.dim() == 3 else matrix[None]
    tall = stack.shape[1] > stack.shape[2]
    x = stack.transpose(1, 2) if tall else stack
    norm = torch.linalg.vector_norm(x.float(), dim=(1, 2), keepdim=True).clamp_min(1e-30)
    x = (x.float() / norm).bfloat16().contiguous()
    for a, b, c in steps:
        gram = product(launch, x, x, x.new_empty(x.shape[0], x.shape[1], x.shape[1]), "nt")
        factor = _step(launch, gram, gram, (b, c))
        x = _step(launch, factor, x, (a, 1.0))
    x = x.transpose(1, 2) if tall else x
    return x.reshape(matrix.shape).to(matrix.dtype)


def _step(launch: Launcher, left: Tensor, right: Tensor, factors: tuple[float, float]) -> Tensor:
    """factors[0] * right + factors[1] * left @ right."""
    out = torch.empty_like(right)
    tile = (64, 128, 256) if launch.family == "ascend" else (64, 128, 64)
    args, constants = plan_step(left, right, right, factors, tile)
    tiles = -(-out.shape[1] // tile[0]) * -(-out.shape[2] // tile[1])
    programs = max(1, min(tiles, -(-launch.num_cube // out.shape[0])))
    launch(newton_schulz_step, (programs, out.shape[0]), args | {"out": out}, constants, warps=4, stages=3)
    return out
