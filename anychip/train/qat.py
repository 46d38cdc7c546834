"""Quantisation-aware training: the forward pass sees weights and indexer as MXFP4, gradients pass straight through.

DeepSeek-V4 report section 5.2.1, for post-training: routed experts' weights, and the indexer's query and key, which
are turned by a Hadamard matrix first (inference/model.py). Masters stay fp32; exporting to FP4 then changes nothing.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..errors import InputError
from ..ops import Ops, Ranges
from ..ops.formats import FP4_BLOCK, fake_quantize_fp4
from ..ops.wrapped import WrappedOps


class QuantizedOps(WrappedOps):
    """`inner`'s ops on routed experts and indexer rows as they read back from MXFP4."""

    def at(self, layer: str) -> Ops:
        return QuantizedOps(self._inner.at(layer))

    def experts(self, x_Td: Tensor, ids_TK: Tensor, weight_TK: Tensor,  # type: ignore[override]
                banks: tuple[Tensor, Tensor], limit: float) -> Tensor:
        rounded = fake_quantize_fp4(banks[0]), fake_quantize_fp4(banks[1])
        return self._inner.experts(x_Td, ids_TK, weight_TK, rounded, limit)

    def index_topk(self, query_THI: Tensor, weight_TH: Tensor, key_MI: Tensor,  # type: ignore[override]
                   visible: Ranges, topk: int) -> Tensor:
        return self._inner.index_topk(turned_fp4(query_THI), weight_TH, turned_fp4(key_MI), visible, topk)


def turned_fp4(x: Tensor) -> Tensor:
    """Turn the last dimension by a Hadamard matrix and round to MXFP4; products of two such rows stay what they were,
    up to rounding. Raises InputError where the size is not a power of two, or no multiple of 32."""
    size = x.shape[-1]
    if size & (size - 1) or size % FP4_BLOCK[1]:
        raise InputError(f"FP4 training turns the indexer's rows by a Hadamard matrix: index_head_dim={size} must be a "
                         "power of two and at least 32")
    return fake_quantize_fp4(x @ _hadamard(size).to(x))


@lru_cache(maxsize=4)
def _hadamard(size: int) -> Tensor:
    """The orthonormal Hadamard matrix [size, size], Sylvester's order."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix * size**-0.5
