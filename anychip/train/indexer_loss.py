"""The indexer's own loss: its scores against where attention looks. Selection itself has no gradient.

KL(p || softmax(I)) over the entries that a token selected (in the indexer's own stage: over all that it sees), where p
is the heads' attention on these entries, summed over heads and scaled to 1. Attention's probabilities include the
window's and the sink's shares of the softmax. DeepSeek-V3.2's report, section 2.1; V4's gives no loss.

A block of tokens is worked on against one run of rows that holds all of theirs, as whole products; what a token does
not see is masked. Shape suffixes: T tokens, H heads, M rows of the run.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..model.attention import Watched
from ..ops import Ranges
from .qat import turned_fp4

_BLOCK = 128  # tokens whose scores exist at once


def indexer_loss(watched: Watched, *, fp4: bool = False) -> Tensor:
    """Return the sum over tokens of the divergence, nats, fp32. A token that sees no entry counts nothing.

    `fp4` scores the indexer's rows as they read back from MXFP4.
    """
    if fp4:
        watched = watched._replace(index_query_THI=turned_fp4(watched.index_query_THI),
                                   index_key_MI=turned_fp4(watched.index_key_MI))
    tokens = watched.query_THC.shape[0]
    return torch.stack([_block_loss(watched, slice(at, min(at + _BLOCK, tokens)))
                        for at in range(0, tokens, _BLOCK)]).sum()


def _block_loss(watched: Watched, span: slice) -> Tensor:
    assert watched.keys.selected is not None
    low, seen_TM = _seen(watched.keys.selected, span)
    if not seen_TM.shape[1]:
        return watched.index_query_THI.sum() * 0.0
    rows = slice(low, low + seen_TM.shape[1])
    target_TM = _target(watched, span, rows, seen_TM)
    loss: Tensor = checkpoint(_divergence, watched.index_query_THI[span], watched.index_weight_TH[span],
                              watched.index_key_MI[rows], target_TM, seen_TM, use_reentrant=False)
    return loss


def _divergence(query_THI: Tensor, weight_TH: Tensor, key_MI: Tensor, target_TM: Tensor, seen_TM: Tensor) -> Tensor:
    tokens, heads, _ = query_THI.shape
    dot_THM = (query_THI.float().flatten(0, 1) @ key_MI.float().T).relu_().view(tokens, heads, -1)
    score_TM = (weight_TH.float()[:, None] @ dot_THM)[:, 0]
    # a token without entries keeps its scores: a softmax over nothing would be NaN; its target is 0 everywhere
    score_TM = score_TM.masked_fill(~seen_TM & seen_TM.any(1, keepdim=True), float("-inf"))
    log_TM = score_TM.log_softmax(-1).masked_fill(target_TM == 0, 0.0)
    return (torch.xlogy(target_TM, target_TM) - target_TM * log_TM).sum()


@torch.no_grad()
def _target(watched: Watched, span: slice, rows: slice, seen_TM: Tensor) -> Tensor:
    """Return where the block's heads look among the rows, summed over heads and scaled to 1."""
    keys, query_THC = watched.keys, watched.query_THC[span].float()
    assert keys.compressed_MC is not None
    tokens, heads, _ = query_THC.shape
    first, near_TN = _seen(keys.window, span)
    entries = torch.cat((keys.window_NC[first : first + near_TN.shape[1]], keys.compressed_MC[rows])).float()
    logit_THK = (query_THC.flatten(0, 1) @ entries.T).mul_(watched.scale).view(tokens, heads, -1)
    logit_THK.masked_fill_(~torch.cat((near_TN, seen_TM), 1)[:, None], float("-inf"))
    if watched.sink_H is not None:
        sink_TH1 = watched.sink_H.float()[None, :, None].expand(tokens, -1, 1)
        logit_THK = torch.cat((logit_THK, sink_TH1), -1)
    looked_TM = logit_THK.softmax(-1)[..., near_TN.shape[1] : near_TN.shape[1] + seen_TM.shape[1]].sum(1)
    total = looked_TM.sum(-1, keepdim=True)
    return looked_TM / torch.where(total > 0, total, 1)


def _seen(rows: Ranges | Tensor, span: slice) -> tuple[int, Tensor]:
    """Return the first of a run of rows that holds all that a block of tokens sees, and which of the run each sees."""
    if isinstance(rows, Ranges):
        start, count = rows.start[span].long(), rows.count[span].long()
        real = count > 0
        if not real.any():
            return 0, torch.zeros(len(start), 0, dtype=torch.bool, device=start.device)
        low, high = int(start[real].min()), int((start + count)[real].max())
        run = torch.arange(low, high, device=start.device)
        return low, (run >= start[:, None]) & (run < (start + count)[:, None])
    chosen = rows[span].long()
    if not (chosen >= 0).any():
        return 0, torch.zeros(len(chosen), 0, dtype=torch.bool, device=chosen.device)
    low, high = int(chosen[chosen >= 0].min()), int(chosen.max()) + 1
    seen = torch.zeros(len(chosen), high - low + 1, dtype=torch.bool, device=chosen.device)  # one more for absent rows
    seen.scatter_(1, torch.where(chosen >= 0, chosen - low, high - low), True)
    return low, seen[:, :-1]
