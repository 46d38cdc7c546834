"""The lightning indexer: score every visible compressed entry, keep the best, ties to the lowest row.

Shape suffixes: T tokens, H indexer heads, I indexer channels, M entry rows, K kept rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..record import Cost
from .attention import Ranges, range_rows
from .linear import nbytes

_BLOCK = 64  # query tokens scored at once by the reference: the score tile is [64, max visible]


def index_topk(query_THI: Tensor, weight_TH: Tensor, key_MI: Tensor, visible: Ranges, topk: int) -> Tensor:
    """Return int32 rows [T, topk] of the entries with the highest `sum_h weight_h * relu(query_h . key)`.

    Rows ascend; -1 fills where fewer than topk are visible. Equal scores go to the lowest row. Not differentiable.
    """
    with torch.no_grad():
        blocks = [_best(query_THI, weight_TH, key_MI, visible, (topk, at))
                  for at in range(0, query_THI.shape[0], _BLOCK)]
        return torch.cat(blocks) if blocks else query_THI.new_zeros((0, topk), dtype=torch.int32)


def _best(query_THI: Tensor, weight_TH: Tensor, key_MI: Tensor, visible: Ranges, where: tuple[int, int]) -> Tensor:
    topk, at = where
    span = slice(at, at + _BLOCK)
    rows, seen = range_rows(visible, span)
    score = index_scores(query_THI[span], weight_TH[span], key_MI, rows).masked_fill(~seen, float("-inf"))
    order = score.sort(dim=-1, descending=True, stable=True).indices[:, :topk]
    kept = torch.where(seen.gather(1, order), rows.gather(1, order), torch.iinfo(torch.int32).max)
    kept = kept.sort(-1).values
    kept = torch.where(kept == torch.iinfo(torch.int32).max, -1, kept).int()
    return torch.nn.functional.pad(kept, (0, topk - kept.shape[1]), value=-1)


def index_scores(query_THI: Tensor, weight_TH: Tensor, key_MI: Tensor, rows_TM: Tensor) -> Tensor:
    """Return the scores [T, m] of each token's candidate rows [T, m], fp32."""
    low, high = (int(rows_TM.min()), int(rows_TM.max()) + 1) if rows_TM.numel() else (0, 0)
    dot = torch.einsum("thi,mi->thm", query_THI.float(), key_MI[low:high].float()).relu_()
    score = torch.einsum("thm,th->tm", dot, weight_TH.float())
    return score.gather(1, (rows_TM - low).clamp_min(0).long())


def index_topk_cost(query_THI: Tensor, weight_TH: Tensor, key_MI: Tensor, visible: Ranges, topk: int) -> Cost:
    """(2I + 2)H FLOPs for every visible pair; keys, queries and kept rows move once."""
    tokens, heads, channels = query_THI.shape
    rows = min(key_MI.shape[0], visible.num_pairs)
    moved = nbytes(query_THI, weight_TH) + rows * channels * key_MI.element_size() + 4.0 * tokens * topk
    return Cost((2.0 * channels + 2) * heads * visible.num_pairs, moved)
