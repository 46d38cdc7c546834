"""The lightning indexer: scores of every visible entry, and the exact choice of the best, ties to the lowest row.

The choice needs no sort of scores: the last score that is kept is found bit by bit, by counting how many scores reach
a threshold; among equals of that score, the last row that is kept is found the same way. What is kept of a tile is
then put in order. Shape suffixes: T tokens, H indexer heads, I indexer channels, M entry rows, V the most that a
token sees, K kept rows.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import NotSupported
from ..ops import Ranges
from .example import Launch, example
from .grid import Args, power_of_2, programs
from .launch import Launcher

_LARGEST_TILE = 2048  # scores looked at at once: 8 KB each, some twenty times over (4096 overflow UB by 512 bytes)
LOWEST = tl.constexpr(-2139095041)  # the place of -inf among all floats in order

# ------------------------------------------------------------------------------------------------ examples


def _score_launch(seed: int, shape: tuple[int, int, int], dtype: torch.dtype, whole: bool) -> Launch:
    """One token sees nothing, one a single entry, one more than a tile; weights of both signs."""
    tokens, heads, channels = shape
    g = torch.Generator().manual_seed(seed)
    draw = (lambda *s: torch.randint(-3, 4, s, generator=g).to(dtype)) if whole else (
        lambda *s: torch.randn(*s, generator=g).to(dtype))
    count = torch.tensor([0, 1, 90, 33][:tokens], dtype=torch.int32)
    start = torch.tensor([5, 129, 40, 0][:tokens], dtype=torch.int32)
    args, constants = plan_scores(draw(*shape), draw(tokens, heads), draw(130, channels), (start, count))
    args["score"] = torch.full((tokens, 90), 7.0)
    return Launch(args | {"most": 90}, (tokens,), constants, ("score",))


def _flash_inputs(seed: int) -> Launch:
    return _score_launch(seed, (3, 64, 128), torch.bfloat16, False)


def _tied_inputs(seed: int) -> Launch:
    """Few heads of small whole numbers: all sums are exact, many are equal, many are zero."""
    return _score_launch(seed, (4, 5, 32), torch.float32, True)


def _score_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    score = a["score"].clone()
    for t, (start, count) in enumerate(zip(a["start"].tolist(), a["count"].tolist(), strict=True)):
        dot = (a["query"][t] @ a["key"][start : start + count].T).relu()
        score[t, :count] = a["weight"][t] @ dot
    return {"score": score}


def _best_launch(seed: int, most: int, block: int) -> Launch:
    """Tokens that see nothing, fewer than are kept, just as many, and more; scores without, with few, all ties."""
    g = torch.Generator().manual_seed(seed)
    count = torch.tensor([0, 5, 40, 41, most, most, most - 1, most], dtype=torch.int32)
    score = torch.randn(8, most, generator=g)
    score[4] = torch.randint(-2, 3, (most,), generator=g).float()
    score[5], score[6, ::3], score[6, 1::3] = -0.0, 0.0, -0.0
    score[7] *= torch.logspace(-44, 38, most)
    start = torch.tensor([3, 0, 900, 1, 0, 77, 5, 2], dtype=torch.int32)
    args: Args = {"score": score, "start": start, "count": count, "best": torch.full((8, 40), -1, dtype=torch.int32),
                  "tokens": 8, "most": most, "topk": 40}
    return Launch(args, (3,), {"BLOCK": block, "WHOLE": block >= most}, ("best",))


def _one_tile_inputs(seed: int) -> Launch:
    return _best_launch(seed, 200, 256)


def _tiles_inputs(seed: int) -> Launch:
    return _best_launch(seed, 301, 128)


def _best_reference(a: dict[str, Any]) -> dict[str, Tensor]:
    best = torch.full_like(a["best"], -1)
    for t, (start, count) in enumerate(zip(a["start"].tolist(), a["count"].tolist(), strict=True)):
        order = a["score"][t, :count].sort(descending=True, stable=True).indices[: a["topk"]]
        best[t, : len(order)] = (start + order.sort().values).int()
    return {"best": best}


# ------------------------------------------------------------------------------------------------- kernels


@example(_tied_inputs, _score_reference)
@example(_flash_inputs, _score_reference)
@triton.jit
def index_scores(query, weight, key, start, count, score, heads, most,
                 CHANNELS: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr):
    """score[t, j] = sum_h weight[t, h] * relu(query[t, h] . key[start[t] + j]) for j < count[t]; others stay."""
    t = tl.program_id(0)
    h = tl.arange(0, BLOCK_H)
    n = tl.arange(0, BLOCK_N)
    at = t.to(tl.int64) * heads * CHANNELS + h[:, None] * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    q = tl.load(query + at, mask=h[:, None] < heads, other=0.0)
    w = tl.load(weight + t * heads + h, mask=h < heads, other=0.0).to(tl.float32)
    row = tl.load(start + t)
    visible = tl.load(count + t)
    for first in range(0, visible, BLOCK_N):
        place = key + (row + first).to(tl.int64) * CHANNELS + n[:, None] * CHANNELS + tl.arange(0, CHANNELS)[None, :]
        keys = tl.load(place, mask=n[:, None] < visible - first, other=0.0)
        dot = tl.dot(q, tl.trans(keys), input_precision="ieee")
        dot = tl.where(h[:, None] < heads, tl.maximum(dot, 0.0) * w[:, None], 0.0)
        tl.store(score + t.to(tl.int64) * most + first + n, tl.sum(dot, 0), mask=n < visible - first)


@triton.jit
def as_float(place):
    """The float at a place in the order of all floats (place -1 is -0.0, 0 is 0.0)."""
    return (place ^ ((place >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def tally(score, tile, threshold, last, count, FORM: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    """How many of a token's `count` scores reach (FORM 0), exceed (1), or equal (2) a threshold, before row `last`."""
    n = tl.arange(0, BLOCK)
    found = 0
    for first in range(0, count, BLOCK):
        x = tile if WHOLE else tl.load(score + first + n, mask=n < count - first, other=float("-inf"))
        hit = x >= threshold if FORM == 0 else (x > threshold if FORM == 1 else x == threshold)
        found += tl.sum((hit & (first + n < tl.minimum(last, count))).to(tl.int32), 0)
    return found


@example(_tiles_inputs, _best_reference)
@example(_one_tile_inputs, _best_reference)
@triton.jit
def index_best(score, start, count, best, tokens, most, topk, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    """best[t] = the rows of the topk highest scores, ascending; slots beyond the visible rows stay. WHOLE: one tile."""
    n = tl.arange(0, BLOCK)
    for t in range(tl.program_id(0).to(tl.int64), tokens, tl.num_programs(0)):
        visible = tl.load(count + t)
        row = tl.load(start + t)
        scores = score + t * most
        tile = tl.load(scores + n, mask=n < visible, other=float("-inf"))
        kept = tl.minimum(visible, topk)
        lowest = LOWEST
        place = tl.where(tally(scores, tile, 0.0, visible, visible, 0, BLOCK, WHOLE) >= kept, 0, -2147483648)
        for bit in range(30, -1, -1):
            higher = place + (1 << bit)
            if tally(scores, tile, as_float(higher), visible, visible, 0, BLOCK, WHOLE) >= kept:
                place = higher
        threshold = as_float(tl.maximum(place, lowest))
        equal = kept - tally(scores, tile, threshold, visible, visible, 1, BLOCK, WHOLE)
        last = 0  # how many rows may hold all `equal` scores that are kept, the lowest first
        for bit in range(24, -1, -1):
            if tally(scores, tile, threshold, last + (1 << bit), visible, 2, BLOCK, WHOLE) <= equal:
                last += 1 << bit
        slot = best + t * topk
        for first in range(0, visible, BLOCK):
            x = tile if WHOLE else tl.load(scores + first + n, mask=n < visible - first, other=float("-inf"))
            take = (x > threshold) | ((x == threshold) & (first + n < last))
            take = take & (n < visible - first)
            order = tl.sort(tl.where(take, n, BLOCK).to(tl.float32))
            many = tl.sum(take.to(tl.int32), 0)
            tl.store(slot + n, order.to(tl.int32) + first + row, mask=n < many)
            slot += many


# ---------------------------------------------------------------------------------------------------- host


def plan_scores(query_THI: Tensor, weight_TH: Tensor, key_MI: Tensor,
                visible: tuple[Tensor, Tensor]) -> tuple[Args, dict[str, Any]]:
    """Return args (all but `score` and `most`) and constants of `index_scores`; `visible` = (start, count).

    Raises NotSupported for an index_head_dim that is no power of two from 16 on.
    """
    _, heads, channels = query_THI.shape
    if channels < 16 or channels & (channels - 1):
        raise NotSupported(f"indexer kernels take an index_head_dim of 16, 32, 64, ...; this one is {channels}")
    args: Args = {"query": query_THI.contiguous(), "weight": weight_TH.contiguous(), "key": key_MI.contiguous(),
                  "start": visible[0].int().contiguous(), "count": visible[1].int().contiguous(), "heads": heads}
    return args, {"CHANNELS": channels, "BLOCK_H": max(16, power_of_2(heads)), "BLOCK_N": 64}


@torch.no_grad()
def index_topk(launch: Launcher, query_THI: Tensor, weight_TH: Tensor, key_MI: Tensor, visible: Ranges,
               topk: int) -> Tensor:
    """`ops.index_topk` by the kernels: int32 rows [T, topk], ascending, -1 where fewer are visible."""
    tokens, most = query_THI.shape[0], visible.max_count
    best = torch.full((tokens, topk), -1, dtype=torch.int32, device=query_THI.device)
    if not tokens or not most:
        return best
    args, constants = plan_scores(query_THI, weight_TH, key_MI, (visible.start, visible.count))
    score = query_THI.new_empty(tokens, most, dtype=torch.float32)
    launch(index_scores, (tokens,), args | {"score": score, "most": most}, constants)
    block = max(128, min(_LARGEST_TILE, power_of_2(most)))
    launch(index_best, programs(launch, tokens),
           {"score": score, "start": args["start"], "count": args["count"], "best": best, "tokens": tokens,
            "most": most, "topk": topk}, {"BLOCK": block, "WHOLE": block >= most}, warps=8 if block >= 2048 else 4)
    return best
