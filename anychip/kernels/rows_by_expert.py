"""(token, expert) pairs as rows sorted by expert, cut into blocks of one expert each.

The table of blocks is made on the chip, of a size that is known without a copy to the host. Shape suffixes as in
experts.py: T tokens, K experts a token, R = T*K rows, E experts, J blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .grid import power_of_2


@dataclass(frozen=True)
class Rows:
    """Where each (token, expert) pair lies.

    `order_R` (int64): the pair t*K + k of each sorted row; `token_R`: its token; `slot_TK`: the sorted row of each
    pair; `offset_E1`: the first row of each expert, and R last; `blocks_J3`: see `cut`. All int32 but the first.
    """

    order_R: Tensor
    token_R: Tensor
    slot_TK: Tensor
    offset_E1: Tensor
    blocks_J3: Tensor


def sort_rows(ids_TK: Tensor, num_experts: int, height: int) -> Rows:
    """Sort the pairs by expert (equal ones by token) and cut them into blocks of at most `height` rows."""
    flat, topk = ids_TK.reshape(-1), ids_TK.shape[1]
    order_R = flat.argsort(stable=True)
    slot = torch.empty_like(order_R)
    slot[order_R] = torch.arange(flat.numel(), device=flat.device)
    offset_E1 = torch.zeros(num_experts + 1, dtype=torch.int64, device=flat.device)
    offset_E1[1:] = torch.bincount(flat, minlength=num_experts).cumsum(0)
    blocks_J3 = cut(offset_E1, height, flat.numel())
    return Rows(order_R, (order_R // topk).int(), slot.view_as(ids_TK).int(), offset_E1.int(), blocks_J3)


def cut(offset_E1: Tensor, height: int, num_rows: int) -> Tensor:
    """Return blocks int32 [J, 3]: expert, first row, end; unused ones are 0, 0, 0. J is the most that can be needed."""
    num_experts = offset_E1.shape[0] - 1
    each_E = (offset_E1.diff() + height - 1) // height
    ends_E = each_E.cumsum(0)
    block_J = torch.arange(num_rows // height + min(num_experts, num_rows), device=offset_E1.device)
    expert_J = torch.searchsorted(ends_E, block_J, right=True).clamp_max(num_experts - 1)
    first_J = offset_E1[expert_J] + (block_J - (ends_E - each_E)[expert_J]) * height
    end_J = torch.minimum(first_J + height, offset_E1[expert_J + 1])
    used = (block_J < ends_E[-1])[:, None]
    return torch.where(used, torch.stack((expert_J, first_J, end_J), 1), 0).int()


def block_height(num_rows: int, num_experts: int) -> int:
    """Return how many rows a block holds: about what an expert gets, within what a tile may have."""
    return max(16, min(128, power_of_2(-(-num_rows // num_experts))))
