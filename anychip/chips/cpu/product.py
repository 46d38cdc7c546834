"""Products of large matrices on the CPU: our kernel where it beats torch's library, torch's library elsewhere."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import torch
from torch import Tensor

from .bind import bind
from .kernels import load_library


@cache
def _kernels() -> SimpleNamespace:
    return bind(load_library(), {"product_fits": "", "product": "lllpllpllpli"})


def product(a_MK: Tensor, b_KN: Tensor, out_MN: Tensor, *, add: bool = False) -> Tensor:
    """Write a @ b into `out` (`add`: add it), fp32, and return `out`, whose rows must be contiguous.

    a and b may be transposed views or slices. No gradients.
    """
    if not _kernels().product_fits():
        return out_MN.addmm_(a_MK, b_KN) if add else torch.mm(a_MK, b_KN, out=out_MN)
    a, b = _stepped(a_MK), _stepped(b_KN)
    _kernels().product(a.shape[0], b.shape[1], a.shape[1], a.data_ptr(), *a.stride(), b.data_ptr(), *b.stride(),
                       out_MN.data_ptr(), out_MN.stride(0), int(add))
    return out_MN


def _stepped(matrix: Tensor) -> Tensor:
    """Return the matrix with neighbours in memory along its rows or its columns."""
    return matrix if 1 in matrix.stride() else matrix.contiguous()
