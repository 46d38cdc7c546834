"""How attention's kernels fetch tiles of keys and weigh them: for the kernels of attention.py and its gradients.

A key has CHANNELS channels that are its value too, and TAIL more (none in DeepSeek-V4) that only its logit takes part
in: a product of each, for a tile's sides are powers of two. Shape suffixes: H rows of queries, C channels, N keys.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def run_rows(num_rows, start, count, first, BLOCK_N: tl.constexpr):
    """Where a tile begins that takes the keys from `first` on of a run (`start`, `count`), and which rows they are.

    No mask: products add up over the tile's rows, so none may hold what was in on-chip memory before (zero times NaN
    is NaN), and 950's compiler loses the zeros of a masked tile that is turned. The tile moves back within the run;
    only a run shorter than a tile reads rows of others.
    """
    n = tl.arange(0, BLOCK_N)
    row = tl.minimum(start + tl.minimum(first, tl.maximum(count - BLOCK_N, 0)), num_rows - BLOCK_N)
    done = start + first - row
    return row, (n >= done) & (n < done + count - first)


@triton.jit
def list_rows(chosen, num_rows, left, BLOCK_N: tl.constexpr):
    """The rows of a tile that `left` numbers at `chosen` name, and which of them are real (not negative).

    Every lane names a row that exists: on Ascend a masked gather reads memory all the same.
    """
    n = tl.arange(0, BLOCK_N)
    named = tl.load(chosen + n, mask=n < left, other=-1)
    return tl.minimum(tl.maximum(named, 0), num_rows - 1), named >= 0


@triton.jit
def load_run(rows, row, step, CHANNELS: tl.constexpr, BLOCK_N: tl.constexpr):
    """The tile [N, C] of the rows from `row` on, each `step` elements after the last."""
    n = tl.arange(0, BLOCK_N)[:, None]
    return tl.load(rows + tl.cast(row, tl.int64) * step + n * step + tl.arange(0, CHANNELS)[None, :])


@triton.jit
def load_list(rows, row, left, WIDTH: tl.constexpr, CHANNELS: tl.constexpr):
    """The tile [N, C] of the rows that `row` [N] names; `left` is at least 1.

    The bits are joined with zero because 950's compiler gives rows that the vector core has only fetched to the matrix
    core in a wrong order.
    """
    keys = tl.load(rows + row[:, None].to(tl.int64) * WIDTH + tl.arange(0, CHANNELS)[None, :])
    zero = tl.minimum(left, 0)
    if rows.dtype.element_ty == tl.float32:
        keys = (keys.to(tl.int32, bitcast=True) | zero).to(tl.float32, bitcast=True)
    else:
        keys = (keys.to(tl.int16, bitcast=True) | zero.to(tl.int16)).to(rows.dtype.element_ty, bitcast=True)
    return keys


@triton.jit
def run_keys(rows, row, step, CHANNELS: tl.constexpr, TAIL: tl.constexpr, BLOCK_N: tl.constexpr):
    """Both parts of a tile of neighbouring keys (or heads), [N, C] and [N, TAIL]; the first again without a tail."""
    keys = load_run(rows, row, step, CHANNELS, BLOCK_N)
    tail = keys
    if TAIL > 0:
        tail = load_run(rows + CHANNELS, row, step, TAIL, BLOCK_N)
    return keys, tail


@triton.jit
def list_keys(rows, row, left, CHANNELS: tl.constexpr, TAIL: tl.constexpr):
    """Both parts of a tile of listed keys."""
    keys = load_list(rows, row, left, CHANNELS + TAIL, CHANNELS)
    tail = keys
    if TAIL > 0:
        tail = load_list(rows + CHANNELS, row, left, CHANNELS + TAIL, TAIL)
    return keys, tail


@triton.jit
def products(left, left_tail, right, right_tail, TAIL: tl.constexpr):
    """left . right over both parts, fp32."""
    dot = tl.dot(left, tl.trans(right), input_precision="ieee")
    if TAIL > 0:
        dot = tl.dot(left_tail, tl.trans(right_tail), dot, input_precision="ieee")
    return dot


@triton.jit
def logits(query, query_tail, keys, tail, seen, scale, TAIL: tl.constexpr):
    """Scaled products [H, N]; -1e30 for keys that are not `seen` ([1, N] or [H, N])."""
    return tl.where(seen, products(query, query_tail, keys, tail, TAIL) * scale, -1e30)


@triton.jit
def add_up(logit, peak, total):
    """Fold a tile of logits into the running maximum and the running sum of exponentials."""
    higher = tl.maximum(peak, tl.max(logit, 1))
    return higher, total * tl.exp(peak - higher) + tl.sum(tl.exp(logit - higher[:, None]), 1)


@triton.jit
def mix_in(logit, lse, values, mixed):
    """Add the values, weighed by their softmax, to `mixed` [H, C]."""
    weight = tl.exp(logit - lse[:, None]).to(values.dtype)
    return tl.dot(weight, values, mixed, input_precision="ieee")
