"""Attention with keys and values of their own, whose heads groups of query heads share: the forward kernel.

The rows of a product are tokens that see the same run of keys, times the heads of a group: `cut_tokens` makes the
table of such tiles on the chip. A program takes tiles in turn and goes over a tile's keys once, with a running softmax:
values are narrow enough for that (not so in attention.py). Shape suffixes: T tokens, H query heads, G key heads,
N keys, C key channels, V value channels, R = T * (H / G, filled up to a power of two) rows of queries, J tiles.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import NotSupported
from ..ops import Ranges
from .attention import ranges
from .attention_keys import load_run, logits, run_keys, run_rows
from .attention_tiles import KEYS
from .example import Launch, example
from .grid import Args, power_of_2
from .launch import Family

QUERIES = 32  # rows of queries that the keys' gradient takes at a time

# --------------------------------------------------------------------------------------------------- tiles


def by_group(x_THC: Tensor, groups: int, slack: int) -> Tensor:
    """Return [G, R + slack, C]: each group's rows, token by token, and zeros for heads and rows that there are not."""
    tokens, heads, channels = x_THC.shape
    each = heads // groups
    rows = x_THC.new_zeros(groups, tokens * power_of_2(each) + slack, channels)
    view = rows[:, : rows.shape[1] - slack].view(groups, tokens, -1, channels)
    view[:, :, :each] = x_THC.view(tokens, groups, each, channels).transpose(0, 1)
    return rows


def by_token(rows_GRC: Tensor, heads: int, tokens: int) -> Tensor:
    """Return the [T, H, C] that `by_group` made such rows (without slack) of."""
    groups, _, channels = rows_GRC.shape
    found = rows_GRC.view(groups, tokens, -1, channels)[:, :, : heads // groups].transpose(0, 1)
    return found.reshape(tokens, heads, channels)


def cut_tokens(seen: Ranges, each: int, tokens_a_tile: int) -> tuple[Tensor, Tensor]:
    """Return tiles int32 [T, 4] and how many of them there are, int32 [1]; the others are zeros.

    A tile holds at most so many neighbouring tokens, which see keys from the same one on: its first row, its end
    (`each` rows a token), its first key and the most keys that a token of it sees.
    """
    start, count = seen.start.long(), seen.count.long()
    place = torch.arange(start.shape[0], device=start.device)
    begins = torch.ones_like(place, dtype=torch.bool)
    begins[1:] = start[1:] != start[:-1]
    within = place - torch.where(begins, place, 0).cummax(0).values
    tile = (within % tokens_a_tile == 0).cumsum(0) - 1
    first = torch.full_like(place, place.shape[0]).scatter_reduce(0, tile, place, "amin")
    size = torch.zeros_like(place).scatter_add(0, tile, torch.ones_like(place))
    most = torch.zeros_like(place).scatter_reduce(0, tile, count, "amax")
    key = torch.zeros_like(place).scatter(0, tile, start)
    table = torch.stack((first * each, (first + size) * each, key, most), 1)
    return torch.where(size[:, None] > 0, table, 0).int(), (tile[-1:] + 1).int()


def tile_sizes(family: Family, tokens: int, each: int, widest: int) -> tuple[int, int]:
    """Return how many rows of queries a tile of the forward kernel has, and how many keys.

    Few rows where tokens are so few that they may be of as many sequences. 128 rows of 128 channels would be a fifth
    faster on 910B (simulated), and overflow 950's UB.
    """
    return max(16 if tokens < 128 else 64, each), 128 if family == "ascend" and widest <= 128 else KEYS


def key_parts(channels: int, value: int) -> dict[str, int]:
    """Return the constants of keys of so many channels and their values. Raises NotSupported for other widths."""
    main = power_of_2(channels + 1) // 2
    for width in (main, value, channels - main or 16):
        if width < 16 or width & (width - 1):
            raise NotSupported("grouped attention's kernels take values of 16, 32, 64, ... channels, and keys of as "
                               f"many or of two such parts (128 + 64); here they have {value} and {channels}")
    return {"CHANNELS": main, "TAIL": channels - main, "VALUE": value}


def plan_grouped(family: Family, query_THC: Tensor, key_NGC: Tensor, value_NGV: Tensor,
                 view: tuple[Ranges, float]) -> tuple[Args, dict[str, Any]]:
    """Return the args and constants of the forward kernel; `view` = (what each token sees, scale).

    Raises NotSupported as `key_parts` does.
    """
    (tokens, heads, channels), groups, (seen, scale) = query_THC.shape, key_NGC.shape[1], view
    constants = key_parts(channels, value_NGV.shape[2])
    each = power_of_2(heads // groups)
    block, keys = tile_sizes(family, tokens, each, max(constants["CHANNELS"], constants["VALUE"]))
    slack = max(block, QUERIES)
    tiles, num_tiles = cut_tokens(seen, each, block // each)
    key, value = (_whole(t, keys) for t in (key_NGC, value_NGV))
    args: Args = {"query": by_group(query_THC, groups, slack), "key": key, "value": value, "tiles": tiles,
                  "num_tiles": num_tiles, "count": seen.count.int().repeat_interleave(each), "rows": tokens * each,
                  "slack": slack, "num_keys": key.shape[0], "scale": scale}
    return args, constants | {"GROUPS": groups, "BLOCK_M": block, "BLOCK_N": keys}


def _whole(rows_NGC: Tensor, keys: int) -> Tensor:
    """The rows, and zeros after them where they are fewer than a tile: `load_run` reads whole tiles."""
    missing = keys - rows_NGC.shape[0]
    return torch.nn.functional.pad(rows_NGC, (0, 0, 0, 0, 0, missing)) if missing > 0 else rows_NGC.contiguous()


# ------------------------------------------------------------------------------------------------ examples


def grouped_inputs(seed: int, form: str) -> tuple[tuple[Tensor, Tensor, Tensor], Ranges, float]:
    """Sequences side by side, a tile that ends within one, a token that sees one key, decoded tokens of others."""
    heads, groups, channels = {"gqa": (6, 2, 128), "mla": (3, 3, 192)}[form]
    g = torch.Generator().manual_seed(seed)
    seen = ranges([0] * 9 + [9] * 6 + [15, 80], [*range(1, 10), *range(1, 7), 65, 130])
    if form == "mla":
        seen = ranges([3] * 130, [*range(1, 131)])
    shapes = (len(seen.start), heads, channels), (210, groups, channels), (210, groups, 128)
    query, key, values = (torch.randn(shape, generator=g) for shape in shapes)
    query[2] *= 6
    return (query.bfloat16(), key.bfloat16(), values.bfloat16()), seen, channels**-0.5


def _launch(seed: int, form: str) -> Launch:
    tensors, seen, scale = grouped_inputs(seed, form)
    args, constants = plan_grouped("ascend", *tensors, (seen, scale))
    groups, rows = tensors[1].shape[1], int(args["rows"])  # type: ignore[arg-type]
    args |= {"out": tensors[0].new_full((groups, rows, constants["VALUE"]), 7.0),
             "lse": torch.full((groups, rows), 7.0)}
    return Launch(args, (3,), constants, ("out", "lse"))


def _gqa(seed: int) -> Launch:
    """Three query heads a key head: one of four rows is empty."""
    return _launch(seed, "gqa")


def _mla(seed: int) -> Launch:
    """V3's heads of 128 + 64 channels, whose values have 128."""
    return _launch(seed, "mla")


def rows_attention(a: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """In an example's args: probabilities [G, R, N], log sums [G, R], keys [G, N, C] and values [G, N, V]."""
    key, value = a["key"].transpose(0, 1), a["value"].transpose(0, 1)
    begin = a["start"] if "start" in a else torch.zeros(a["rows"], dtype=torch.int64)
    for first, end, start, _ in a["tiles"].tolist() if "tiles" in a else ():
        begin[first:end] = start
    place = torch.arange(key.shape[1])
    seen = (place >= begin[:, None]) & (place < (begin + a["count"])[:, None])
    logit = (a["query"][:, : a["rows"]] @ key.mT * a["scale"]).masked_fill(~seen, -torch.inf)
    return logit.softmax(-1), logit.logsumexp(-1), key, value


def _reference(a: dict[str, Any]) -> dict[str, Tensor]:
    prob, lse, _, value = rows_attention(a)
    return {"out": prob @ value, "lse": lse}


# -------------------------------------------------------------------------------------------------- kernel


@triton.jit
def in_sight(row, start, seen, count, BLOCK_N: tl.constexpr):
    """Which of a tile's keys [N] (from `row` on, `seen` are the tile's) each row of queries sees: [M, N]."""
    place = row - start + tl.arange(0, BLOCK_N)
    return seen[None, :] & (place[None, :] < count[:, None])


@example(_mla, _reference)
@example(_gqa, _reference)
@triton.jit
def grouped_forward(
    query, key, value, tiles, num_tiles, count, out, lse, rows, slack, num_keys, scale, GROUPS: tl.constexpr,
    CHANNELS: tl.constexpr, TAIL: tl.constexpr, VALUE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):
    """out [G, R, V] and lse [G, R] from query [G, R + slack, C], key [N, G, C], value [N, G, V], each row's count."""
    width: tl.constexpr = CHANNELS + TAIL
    m = tl.arange(0, BLOCK_M)
    for job in range(tl.program_id(0), tl.load(num_tiles) * GROUPS, tl.num_programs(0)):
        tile = tiles + job // GROUPS * 4
        group = tl.cast(job % GROUPS, tl.int64)
        first = tl.load(tile)
        left = tl.load(tile + 1) - first
        start = tl.load(tile + 2)
        most = tl.load(tile + 3)
        own = tl.load(count + first + m, mask=m < left, other=0)
        q, q_tail = run_keys(query, group * (rows + slack) + first, width, CHANNELS, TAIL, BLOCK_M)
        peak = tl.full((BLOCK_M,), -1e30, tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        mixed = tl.zeros((BLOCK_M, VALUE), tl.float32)
        for n0 in range(0, most, BLOCK_N):
            row, seen = run_rows(num_keys, start, most, n0, BLOCK_N)
            keys, tail = run_keys(key + group * width, row, GROUPS * width, CHANNELS, TAIL, BLOCK_N)
            logit = logits(q, q_tail, keys, tail, in_sight(row, start, seen, own, BLOCK_N), scale, TAIL)
            values = load_run(value + group * VALUE, row, GROUPS * VALUE, VALUE, BLOCK_N)
            higher = tl.maximum(peak, tl.max(logit, 1))
            weight = tl.exp(logit - higher[:, None])
            fade = tl.exp(peak - higher)
            total = total * fade + tl.sum(weight, 1)
            mixed = mixed * fade[:, None] + tl.dot(weight.to(values.dtype), values, input_precision="ieee")
            peak = higher
        at = group * rows + first
        tl.store(lse + at + m, peak + tl.log(total), mask=m < left)
        tl.store(out + at * VALUE + m[:, None] * VALUE + tl.arange(0, VALUE)[None, :],
                 (mixed / total[:, None]).to(out.dtype.element_ty), mask=m[:, None] < left)
