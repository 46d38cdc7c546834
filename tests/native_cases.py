"""Kernels that try what the native path must get right: every function it defines, roundings, atomics, grids."""

import triton
import triton.language as tl


@triton.jit
def scan_sort_gather(x, index, sums, products, falling, gathered, flipped, N: tl.constexpr):
    r = tl.arange(0, N)[:, None]
    c = tl.arange(0, N)[None, :]
    v = tl.load(x + r * N + c)
    tl.store(sums + r * N + c, tl.cumsum(v, 1, reverse=True))
    tl.store(products + r * N + c, tl.cumprod(v, 0))
    tl.store(falling + r * N + c, tl.sort(v, 1, descending=True))
    tl.store(gathered + r * N + c, tl.gather(v, tl.load(index + r * N + c), 1))
    tl.store(flipped + r * N + c, tl.flip(v, 1))


@triton.jit
def histogram(x, counts, N: tl.constexpr):
    c = tl.arange(0, N)
    tl.store(counts + c, tl.histogram(tl.load(x + c), N))


@triton.jit
def maths(x, out, n, BLOCK: tl.constexpr):
    c = tl.arange(0, BLOCK)
    v = tl.load(x + c, mask=c < n, other=1.0)
    tl.store(out + c, tl.exp(v), mask=c < n)
    tl.store(out + n + c, tl.exp2(v), mask=c < n)
    tl.store(out + 2 * n + c, tl.log(v), mask=c < n)
    tl.store(out + 3 * n + c, tl.log2(v), mask=c < n)


@triton.jit
def square_plus(x, out, N: tl.constexpr):
    c = tl.arange(0, N)
    v = tl.load(x + c)
    tl.store(out + c, v * v + v)


@triton.jit
def products(a, b, nn, nt, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, K)
    left = tl.load(a + m * K + k[None, :])
    tl.store(nn + m * N + n, tl.dot(left, tl.load(b + k[:, None] * N + n)))
    turned = tl.trans(tl.load(b + tl.arange(0, N)[:, None] * K + k[None, :]))
    tl.store(nt + m * N + n, tl.dot(left, turned, tl.full((M, N), 1.0, tl.float32)))


@triton.jit
def count_blocks(total, places, BLOCK: tl.constexpr):
    tl.atomic_add(total + tl.arange(0, BLOCK), 1)
    x, y, z = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    at = (z * tl.num_programs(1) + y) * tl.num_programs(0) + x
    tl.store(places + at, 100 * x + 10 * y + z)


@triton.jit
def scaled(x, out, factor, n, BLOCK: tl.constexpr):
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + c, tl.load(x + c, mask=c < n, other=0.0) * factor, mask=c < n)
