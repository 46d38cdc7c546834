"""Attention with keys and values of their own, whose heads groups of query heads share: GQA, and MLA un-absorbed.

All sequences of a batch lie one after the other in the token dimension; which rows a token sees is data.
Shape suffixes: T query tokens, H query heads, N rows, G key heads (H is a multiple), C key channels, V value channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..record import Cost
from .attention import Ranges
from .linear import nbytes

_BLOCK = 64  # query tokens worked on at once by the reference: memory stays linear in T


def grouped_attention(query_THC: Tensor, key_NGC: Tensor, value_NGV: Tensor, ranges: Ranges, scale: float) -> Tensor:
    """Softmax attention of each token over its run of rows; query head h reads key head h // (H // G).

    Returns [T, H, V]. fp32 inside; backward works the probabilities out again. A token sees at least one row.
    """
    blocks = [checkpoint(_attend, query_THC, key_NGC, value_NGV, ranges, (scale, span), use_reentrant=False,
                         preserve_rng_state=False) for span in _spans(ranges)]
    return torch.cat(blocks) if blocks else query_THC.new_zeros(0, query_THC.shape[1], value_NGV.shape[2])


def kept_attention(query_THC: Tensor, key_NGC: Tensor, value_NGV: Tensor, ranges: Ranges, scale: float) -> Tensor:
    """`grouped_attention` of a few tokens, whose probabilities are (in training) kept."""
    return torch.cat([_attend(query_THC, key_NGC, value_NGV, ranges, (scale, span)) for span in _spans(ranges)])


def _spans(ranges: Ranges) -> list[slice]:
    """Cut the tokens into blocks of equal `start`: their rows lie in one run, and no other sequence's among them."""
    start = ranges.start.tolist()
    spans, at = [], 0
    for token in range(1, len(start) + 1):
        if token == len(start) or token - at == _BLOCK or start[token] != start[at]:
            spans.append(slice(at, token))
            at = token
    return spans


def _attend(query_THC: Tensor, key_NGC: Tensor, value_NGV: Tensor, ranges: Ranges,
            where: tuple[float, slice]) -> Tensor:
    scale, span = where
    query, count_T = query_THC[span], ranges.count[span]
    first, most = int(ranges.start[span.start]), int(count_T.max())
    key_GCk = key_NGC[first : first + most].float().permute(1, 2, 0)
    value_GkV = value_NGV[first : first + most].float().transpose(0, 1)
    tokens, heads, channels = query.shape
    groups = key_GCk.shape[0]
    query_GRC = query.float().view(tokens, groups, -1, channels).transpose(0, 1).flatten(1, 2)
    logit_GTRk = (query_GRC @ key_GCk * scale).view(groups, tokens, -1, most)
    unseen_Tk = torch.arange(most, device=query.device) >= count_T[:, None]
    prob_GRk = logit_GTRk.masked_fill(unseen_Tk[:, None], float("-inf")).softmax(-1).flatten(1, 2)
    out_GRV = prob_GRk @ value_GkV
    return out_GRV.view(groups, tokens, heads // groups, -1).transpose(0, 1).flatten(1, 2).to(query.dtype)


def grouped_attention_cost(query_THC: Tensor, key_NGC: Tensor, value_NGV: Tensor, ranges: Ranges,
                           scale: float) -> Cost:
    """2H(C + V) FLOPs for every (token, row) pair that is seen; queries, values out and seen rows move once."""
    tokens, heads, channels = query_THC.shape
    out = value_NGV.shape[2]
    seen = min(1.0, ranges.num_pairs / max(key_NGC.shape[0], 1))
    moved = nbytes(query_THC) * (1 + out / channels) + seen * nbytes(key_NGC, value_NGV)
    return Cost(2.0 * heads * (channels + out) * ranges.num_pairs, moved)
