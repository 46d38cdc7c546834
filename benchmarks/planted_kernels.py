"""Kernels with bugs of the kinds that people write, each beside its good form (BUG = 0)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

UNMASKED_TAIL = tl.constexpr(1)
OFF_BY_ONE = tl.constexpr(2)
GATHER_MINUS_ONE = tl.constexpr(3)
STORE_UNMASKED = tl.constexpr(4)
SWAPPED_STRIDES = tl.constexpr(5)
BUGS = {"unmasked tail": 1, "index off by one": 2, "gather with -1": 3, "missing mask on store": 4,
        "swapped strides": 5}


@triton.jit
def scale(x, y, n, BLOCK: tl.constexpr, BUG: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if BUG == UNMASKED_TAIL:
        tl.store(y + i, tl.load(x + i) * 2.0)
    elif BUG == OFF_BY_ONE:
        tl.store(y + i, tl.load(x + i + 1, mask=i < n) * 2.0, mask=i < n)
    elif BUG == STORE_UNMASKED:
        tl.store(y + i, tl.load(x + i, mask=i < n, other=0.0) * 2.0)
    else:
        tl.store(y + i, tl.load(x + i, mask=i < n) * 2.0, mask=i < n)


@triton.jit
def softmax(x, y, rows, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BUG: tl.constexpr):
    r = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.arange(0, BLOCK_N)
    inside = (r[:, None] < rows) & (c[None, :] < columns)
    at = r[:, None] * columns + c[None, :]
    if BUG == UNMASKED_TAIL:
        v = tl.load(x + at, mask=c[None, :] < columns, other=-float("inf"))
    elif BUG == OFF_BY_ONE:
        v = tl.load(x + at + 1, mask=inside, other=-float("inf"))
    elif BUG == SWAPPED_STRIDES:
        v = tl.load(x + r[:, None] + c[None, :] * columns, mask=inside, other=-float("inf"))
    else:
        v = tl.load(x + at, mask=inside, other=-float("inf"))
    e = tl.exp(v - tl.max(v, 1)[:, None])
    p = e / tl.sum(e, 1)[:, None]
    if BUG == STORE_UNMASKED:
        tl.store(y + at, p)
    else:
        tl.store(y + at, p, mask=inside)


@triton.jit
def take(table, index, out, num_rows, count, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BUG: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    c = tl.arange(0, WIDTH)
    row = tl.load(index + i, mask=i < count, other=0)
    if BUG == OFF_BY_ONE:
        row = row + 1
    present = row >= 0
    if BUG != GATHER_MINUS_ONE:
        row = tl.where(present, row, 0)
    v = tl.load(table + row[:, None] * WIDTH + c[None, :], mask=present[:, None], other=0.0)
    v = tl.where(present[:, None], v, 0.0)
    if BUG == STORE_UNMASKED:
        tl.store(out + i[:, None] * WIDTH + c[None, :], v)
    else:
        tl.store(out + i[:, None] * WIDTH + c[None, :], v, mask=i[:, None] < count)


@triton.jit
def multiply(a, b, out, rows, columns, depth, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
             BUG: tl.constexpr):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, depth, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        if BUG == UNMASKED_TAIL:
            left = tl.load(a + m[:, None] * depth + k[None, :], mask=m[:, None] < rows, other=0.0)
        elif BUG == OFF_BY_ONE:
            left = tl.load(a + m[:, None] * depth + k[None, :] + 1,
                           mask=(m[:, None] < rows) & (k[None, :] < depth), other=0.0)
        else:
            left = tl.load(a + m[:, None] * depth + k[None, :],
                           mask=(m[:, None] < rows) & (k[None, :] < depth), other=0.0)
        if BUG == SWAPPED_STRIDES:
            right = tl.load(b + k[:, None] + n[None, :] * columns,
                            mask=(k[:, None] < depth) & (n[None, :] < columns), other=0.0)
        else:
            right = tl.load(b + k[:, None] * columns + n[None, :],
                            mask=(k[:, None] < depth) & (n[None, :] < columns), other=0.0)
        total = tl.dot(left, right, total)
    at = out + m[:, None] * columns + n[None, :]
    if BUG == STORE_UNMASKED:
        tl.store(at, total.to(tl.bfloat16))
    else:
        tl.store(at, total.to(tl.bfloat16), mask=(m[:, None] < rows) & (n[None, :] < columns))


@dataclass(frozen=True)
class Case:
    """A kernel, its launch without BUG, its output, the reference, and the bugs that can be planted into it."""

    fn: Any
    args: Callable[[], dict[str, Any]]
    grid: tuple[int, ...]
    constants: dict[str, int]
    output: str
    reference: Callable[[dict[str, Any]], torch.Tensor]
    bugs: tuple[str, ...]


def _random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7)).to(dtype)


def _take_args() -> dict[str, Any]:
    index = torch.tensor([3, 5, -1, 0, 9, -1, 2, 7, 4, 9, 1], dtype=torch.int32)
    return {"table": _random(10, 64), "index": index, "out": torch.zeros(11, 64), "num_rows": 10, "count": 11}


def _taken(args: dict[str, Any]) -> torch.Tensor:
    index = args["index"].long()
    return torch.where((index >= 0)[:, None], args["table"][index.clamp(min=0)], 0.0)


def cases() -> dict[str, Case]:
    """Return the kernels by name."""
    bf16 = torch.bfloat16
    return {
        "scale": Case(scale, lambda: {"x": _random(1000), "y": torch.zeros(1000), "n": 1000}, (4,), {"BLOCK": 256}, "y",
                      lambda a: a["x"] * 2, ("unmasked tail", "index off by one", "missing mask on store")),
        "softmax": Case(softmax, lambda: {"x": _random(13, 100), "y": torch.zeros(13, 100), "rows": 13, "columns": 100},
                        (4,), {"BLOCK_M": 4, "BLOCK_N": 128}, "y", lambda a: a["x"].softmax(1),
                        ("unmasked tail", "index off by one", "missing mask on store", "swapped strides")),
        "take": Case(take, _take_args, (3,), {"WIDTH": 64, "BLOCK": 4}, "out", _taken,
                     ("index off by one", "gather with -1", "missing mask on store")),
        "multiply": Case(multiply, lambda: {"a": _random(40, 72, dtype=bf16), "b": _random(72, 50, dtype=bf16),
                                            "out": torch.zeros(40, 50, dtype=bf16), "rows": 40, "columns": 50,
                                            "depth": 72},
                         (2, 2), {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32}, "out",
                         lambda a: a["a"].float() @ a["b"].float(),
                         ("unmasked tail", "index off by one", "missing mask on store", "swapped strides")),
    }
