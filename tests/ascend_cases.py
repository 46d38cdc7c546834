"""Small Triton kernels for tests of the virtual Ascend: good ones, and one for each way of not compiling."""

import triton
import triton.language as tl

SCALE = tl.constexpr(2.0)


@triton.jit
def scaled(value):
    return value * SCALE


@triton.jit
def double(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, scaled(tl.load(x + i, mask=i < n)), mask=i < n)


@triton.jit
def product(a, b, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    i, j, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    left = tl.load(a + i[:, None] * K + k[None, :])
    right = tl.load(b + k[:, None] * N + j[None, :])
    tl.store(c + i[:, None] * N + j[None, :], tl.dot(left, right))


@triton.jit
def uses_unknown(value):
    return value + nothing_of_this_name  # noqa: F821


@triton.jit
def calls_unknown(x):
    i = tl.arange(0, 64)
    tl.store(x + i, uses_unknown(tl.load(x + i)))


@triton.jit
def two_lengths(x):
    tl.store(x + tl.arange(0, 64), tl.load(x + tl.arange(0, 32)) + tl.load(x + tl.arange(0, 64)))


@triton.jit
def opens_a_file(x):
    with open("f"):
        tl.store(x, 1.0)


@triton.jit
def first_index(x, y):
    value, index = tl.max(tl.load(x + tl.arange(0, 64)), 0, return_indices=True)
    tl.store(y, index)


@triton.jit
def stride_two_and_offset(x, y):
    j = tl.arange(0, 32)
    row = tl.arange(0, 16)[:, None] * 512 + 448
    a, b = tl.load(x + row + 2 * j[None, :]), tl.load(x + row + 2 * j[None, :] + 1)
    tl.store(y + row + 2 * j[None, :], a - b)
    tl.store(y + row + 2 * j[None, :] + 1, a + b)


@triton.jit
def widen(x, y):
    i = tl.arange(0, 64)
    tl.store(y + i, tl.load(x + i).to(tl.float32))
