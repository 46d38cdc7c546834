"""Kernels of a few lines for the checker's tests."""

import triton
import triton.language as tl


@triton.jit
def copy_rows(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < n), mask=i < n)


@triton.jit
def share_a_row(x, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + tl.program_id(0) * BLOCK + i) * 2.0)


@triton.jit
def add_all(x, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.atomic_add(y + i, tl.load(x + tl.program_id(0) * BLOCK + i))


@triton.jit
def partial_sum(x, y, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y, tl.sum(tl.load(x + i, mask=i < n), 0))


@triton.jit
def exchange(x, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.atomic_xchg(y + i, tl.load(x + tl.program_id(0) * BLOCK + i))
