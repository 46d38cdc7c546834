"""A user's file: a good kernel, one whose tile is too big, one with a masked gather, one with a mistake."""

import torch
import triton
import triton.language as tl

from anychip.kernels import Launch, example


def rows(seed):
    x = torch.randn(8, 1000, generator=torch.Generator().manual_seed(seed))
    return Launch({"x": x, "y": torch.empty_like(x), "n": 1000}, (8,), {"BLOCK": 1024}, ("y",))


def one_long_row(seed):
    x = torch.randn(1, 65536, generator=torch.Generator().manual_seed(seed))
    return Launch({"x": x, "y": torch.empty_like(x), "n": 65536}, (1,), {"BLOCK": 65536}, ("y",))


def with_gaps(seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 100, (64,), generator=generator).int()
    ids[60:] = -1
    x = torch.randn(100, 64, generator=generator)
    return Launch({"x": x, "ids": ids, "y": torch.empty(64, 64)}, (1,), {}, ("y",))


def gathered(a):
    return {"y": torch.where(a["ids"][:, None] >= 0, a["x"][a["ids"].clamp_min(0).long()], 0.0)}


@example(one_long_row, lambda a: {"y": a["x"].softmax(-1)})
@example(rows, lambda a: {"y": a["x"].softmax(-1)})
@triton.jit
def softmax(x, y, n, BLOCK: tl.constexpr):
    row, i = tl.program_id(0), tl.arange(0, BLOCK)
    value = tl.load(x + row * n + i, mask=i < n, other=-float("inf"))
    value = tl.exp(value - tl.max(value, 0))
    tl.store(y + row * n + i, value / tl.sum(value, 0), mask=i < n)


@example(rows, lambda a: {"y": 3 * a["x"]})
@triton.jit
def doubled(x, y, n, BLOCK: tl.constexpr):
    row, i = tl.program_id(0), tl.arange(0, BLOCK)
    tl.store(y + row * n + i, 2 * tl.load(x + row * n + i, mask=i < n), mask=i < n)


@example(with_gaps, gathered)
@triton.jit
def gather(x, ids, y):
    i, j = tl.arange(0, 64), tl.arange(0, 64)
    chosen = tl.load(ids + i)
    value = tl.load(x + chosen[:, None] * 64 + j[None, :], mask=(chosen >= 0)[:, None], other=0.0)
    tl.store(y + i[:, None] * 64 + j[None, :], value)


@example(rows)
@triton.jit
def misspelt(x, y, n, BLOCK: tl.constexpr):
    row, i = tl.program_id(0), tl.arange(0, BLOCK)
    tl.store(y + row * n + i, tl.lode(x + row * n + i, mask=i < n), mask=i < n)


@example(rows)
@triton.jit
def without_reference(x, y, n, BLOCK: tl.constexpr):
    row, i = tl.program_id(0), tl.arange(0, BLOCK)
    tl.store(y + row * n + i, tl.load(x + row * n + i, mask=i < n), mask=i < n)
