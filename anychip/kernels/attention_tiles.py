"""Tiles of attention's kernels: their sizes, and what the host adds so that every tile is whole.

A product adds up over keys or heads, so no row of a tile may hold what was in on-chip memory before; and Huawei's
compiler for the 950 loses the zeros of a masked tile that is then turned. So kernels load these tiles without a mask,
and the rows that they reach exist.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .grid import Args, power_of_2
from .launch import Family

KEYS = 64  # keys in a tile of attention_forward and attention_query_grad


def whole_tile(rows: Tensor) -> Tensor:
    """The rows, and zeros after them where they are fewer than a tile: `load_run` reads whole tiles."""
    missing = KEYS - rows.shape[0]
    return torch.nn.functional.pad(rows, (0, 0, 0, missing)) if missing > 0 else rows.contiguous()


def whole_heads(x_THC: Tensor, block: int) -> Tensor:
    """Return it with as many heads as whole blocks have, the last ones zero: `[T, blocks * block, C]`."""
    missing = -x_THC.shape[1] % block
    return torch.nn.functional.pad(x_THC, (0, 0, 0, missing)) if missing else x_THC.contiguous()


def head_block(family: Family, query_THC: Tensor) -> int:
    """Return how many heads a program takes.

    [heads, channels] in fp32 and a tile of logits fit 910B's L0C (128 KB); on NVIDIA the queries and a tile of keys
    fit an SM's shared memory.
    """
    _, heads, channels = query_THC.shape
    wide = channels > 256 and (family == "ascend" or query_THC.element_size() > 2)
    return max(16, min(32 if wide else 64, power_of_2(heads)))


def by_block(args: Args, block: int) -> Args:
    """Return the query and its gradient with heads up to a whole block."""
    query, grad = args["query"], args["grad"]
    assert isinstance(query, Tensor) and isinstance(grad, Tensor)
    return {"query": whole_heads(query, block), "grad": whole_heads(grad, block)}


def key_blocks(channels: int) -> dict[str, int]:
    """Return the tile of `attention_keys_grad`: 950's compiler crashes at 16 heads, and overflows UB at 32 keys of 512
    channels."""
    return {"BLOCK_H": 32, "BLOCK_N": 16 if channels > 256 else 32}


def with_slack(args: Args, rows: int) -> Args:
    """Return both kinds of keys with so many zero rows after them, which `load_next` may read."""
    window, entries = args["window"], args["entries"]
    assert isinstance(window, Tensor) and isinstance(entries, Tensor)
    pad = torch.nn.functional.pad
    return {"window": pad(window, (0, 0, 0, rows)), "entries": pad(entries, (0, 0, 0, rows))}


def slots(args: Args, constants: dict[str, Any]) -> dict[str, int]:
    """Return where a token's entries begin among the slots, and how many slots there are."""
    window, entries = args["window_count"], args["entry_count"]
    assert isinstance(window, Tensor) and isinstance(entries, Tensor)
    most = int(window.max()) if window.numel() else 0
    return {"window_slots": most,
            "num_slots": most + (int(entries.max()) if constants["FORM"] and entries.numel() else 0)}
