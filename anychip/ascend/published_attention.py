"""A plain flash attention (one head, no mask) in Triton, to stand for published times of the same computation."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def flash_attention(q, k, v, out, keys, scale, CHANNELS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """out [S0, C] = softmax(q @ k' * scale) @ v for whole tiles of queries; `keys` (S1) is a multiple of BLOCK_N."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.arange(0, CHANNELS)
    query = tl.load(q + m[:, None] * CHANNELS + c[None, :])
    peak = tl.full((BLOCK_M,), -1e30, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    mixed = tl.zeros((BLOCK_M, CHANNELS), tl.float32)
    for start in range(0, keys, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        key = tl.load(k + n[:, None] * CHANNELS + c[None, :])
        logits = tl.dot(query, tl.trans(key)) * scale
        new = tl.maximum(peak, tl.max(logits, 1))
        weight = tl.exp(logits - new[:, None])
        fade = tl.exp(peak - new)
        total = total * fade + tl.sum(weight, 1)
        value = tl.load(v + n[:, None] * CHANNELS + c[None, :])
        mixed = mixed * fade[:, None] + tl.dot(weight.to(tl.float16), value)
        peak = new
    tl.store(out + m[:, None] * CHANNELS + c[None, :], (mixed / total[:, None]).to(tl.float16))
