"""The indexer's own loss: its scores against where attention looks. Selection itself has no gradient.

KL(p || softmax(I)) over the entries that a token selected (in the indexer's own stage: over all that it sees), where p
is the heads' attention on these entries, summed over heads and scaled to 1. Attention's probabilities include the
window's and the sink's shares of the softmax. DeepSeek-V3.2's report, section 2.1; V4's gives no loss.

Shape suffixes: T tokens, K entries of a token.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..model.attention import Watched
from ..ops.attention import probabilities, selected_rows
from ..ops.index import index_scores
from .qat import turned_fp4

_BLOCK = 64  # tokens whose scores exist at once


def indexer_loss(watched: Watched, *, fp4: bool = False) -> Tensor:
    """Return the sum over tokens of the divergence, nats, fp32. A token that sees no entry counts nothing.

    `fp4` scores the indexer's rows as they read back from MXFP4.
    """
    if fp4:
        watched = watched._replace(index_query_THI=turned_fp4(watched.index_query_THI),
                                   index_key_MI=turned_fp4(watched.index_key_MI))
    tokens = watched.query_THC.shape[0]
    parts = [checkpoint(_block_loss, watched, slice(at, min(at + _BLOCK, tokens)), use_reentrant=False)
             for at in range(0, tokens, _BLOCK)]
    return torch.stack(parts).sum()


def _block_loss(watched: Watched, span: slice) -> Tensor:
    assert watched.keys.selected is not None
    rows_TK, seen_TK = selected_rows(watched.keys.selected, span)
    if not rows_TK.shape[1]:
        return watched.index_query_THI.sum() * 0.0
    target_TK = _target(watched, span, seen_TK)
    score_TK = index_scores(watched.index_query_THI[span], watched.index_weight_TH[span], watched.index_key_MI, rows_TK)
    # a token without entries keeps its scores: a softmax over nothing would be NaN; its target is 0 everywhere
    score_TK = score_TK.masked_fill(~seen_TK & seen_TK.any(1, keepdim=True), float("-inf"))
    log_TK = score_TK.log_softmax(-1).masked_fill(target_TK == 0, 0.0)
    return (torch.xlogy(target_TK, target_TK) - target_TK * log_TK).sum()


def _target(watched: Watched, span: slice, seen_TK: Tensor) -> Tensor:
    """Return where the block's heads look among the entries, summed over heads and scaled to 1."""
    with torch.no_grad():
        prob_THK, _ = probabilities(watched.query_THC, watched.keys, watched.sink_H, span)
        looked_TK = prob_THK[..., watched.keys.window.max_count :].sum(1) * seen_TK
        total = looked_TK.sum(-1, keepdim=True)
        return looked_TK / torch.where(total > 0, total, 1)
