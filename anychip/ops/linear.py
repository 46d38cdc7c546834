"""Matrix products: the dense linear map, the block-diagonal one of the output projection, the embedding lookup.

Shape suffixes: T tokens, I input width, O output width, G groups, V vocabulary.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..record import Cost


def linear(x_TI: Tensor, weight_OI: Tensor) -> Tensor:
    """Return `x @ weight.T` [T, O] in x's dtype, accumulated in fp32."""
    return F.linear(x_TI, weight_OI)


def linear_cost(x_TI: Tensor, weight_OI: Tensor) -> Cost:
    """2TIO FLOPs; the input, the weight and the output each move once."""
    rows = x_TI.numel() // x_TI.shape[-1]
    out = weight_OI.shape[0]
    return Cost(2.0 * rows * weight_OI.numel(), nbytes(x_TI, weight_OI) + rows * out * x_TI.element_size())


def grouped_linear(x_TGI: Tensor, weight: Tensor) -> Tensor:
    """Map each of G groups with its own block of `weight`; return [T, G*O] (V4's report, section 2.3).

    `weight` is [G*O, I], or a view [G, O, I] with any strides (MLA's absorbed products take parts of wkv_b so).
    """
    tokens, groups, width = x_TGI.shape
    weight_GIO = (weight if weight.dim() == 3 else weight.view(groups, -1, width)).transpose(1, 2)
    return x_TGI.transpose(0, 1).bmm(weight_GIO).transpose(0, 1).reshape(tokens, -1)


def grouped_linear_cost(x_TGI: Tensor, weight: Tensor) -> Cost:
    """Each token meets each weight once."""
    out = x_TGI.shape[0] * weight.numel() // x_TGI.shape[2]
    return Cost(2.0 * x_TGI.shape[0] * weight.numel(), nbytes(x_TGI, weight) + out * x_TGI.element_size())


def embed(ids_T: Tensor, weight_Vd: Tensor) -> Tensor:
    """Look up token ids; return [T, d]. Raises IndexError for an id outside 0..V-1."""
    return F.embedding(ids_T, weight_Vd)


def embed_cost(ids_T: Tensor, weight_Vd: Tensor) -> Cost:
    """No arithmetic; each row is read and written once."""
    return Cost(0.0, 2.0 * ids_T.numel() * weight_Vd.shape[1] * weight_Vd.element_size())


def nbytes(*tensors: Tensor | None) -> float:
    """Return the bytes that the tensors hold together (None counts nothing)."""
    return float(sum(t.numel() * t.element_size() for t in tensors if t is not None))
