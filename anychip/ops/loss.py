"""The language-model loss, without a full logits tensor.

Shape suffixes: T tokens, d hidden, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..record import Cost
from .linear import nbytes

_CHUNK = 1024  # tokens whose logits exist at once


def cross_entropy(hidden_Td: Tensor, head_Vd: Tensor, target_T: Tensor) -> Tensor:
    """Return -log softmax(hidden @ head^T)[target] for each token, fp32 [T]; 0 where the target is negative."""
    losses = []
    for hidden, target in zip(hidden_Td.split(_CHUNK), target_T.split(_CHUNK), strict=True):
        losses.append(checkpoint(token_losses, hidden, head_Vd, target, use_reentrant=False))
    return torch.cat(losses) if losses else hidden_Td.new_zeros(0, dtype=torch.float32)


def token_losses(hidden: Tensor, head: Tensor, target: Tensor) -> Tensor:
    """`cross_entropy` of a few tokens at once, whose logits all exist (and, in training, are kept)."""
    return F.cross_entropy(F.linear(hidden.float(), head.float()), target.clamp_min(-1), ignore_index=-1,
                           reduction="none")


def cross_entropy_cost(hidden_Td: Tensor, head_Vd: Tensor, target_T: Tensor) -> Cost:
    """The head's product and about five FLOPs a logit; logits stay on the chip."""
    logits = hidden_Td.shape[0] * head_Vd.shape[0]
    return Cost(logits * (2.0 * hidden_Td.shape[1] + 5), nbytes(hidden_Td, head_Vd) + 4.0 * hidden_Td.shape[0])
