"""Quantisation-aware training: the forward pass sees weights and indexer as MXFP4, gradients pass straight through.

DeepSeek-V4 report section 5.2.1, for post-training: routed experts' weights, and the indexer's query and key, which
are turned by a Hadamard matrix first (inference/model.py). Masters stay fp32; exporting to FP4 then changes nothing.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..ops import Ops, Ranges
from ..ops.formats import FP4_BLOCK, fake_quantize_fp4
from ..ops.orthogonal import MuonRule
from ..ops.seam import COSTS


class QuantizedOps(Ops):
    """`inner`'s ops on routed experts and indexer rows as they read back from MXFP4."""

    def __init__(self, inner: Ops) -> None:
        self._inner = inner
        for name in COSTS:
            if name not in ("experts", "index_topk"):
                setattr(self, name, getattr(inner, name))
        self.experts = partial(self._experts)  # type: ignore[method-assign]
        self.index_topk = partial(self._index_topk)  # type: ignore[method-assign]

    def at(self, layer: str) -> Ops:
        return QuantizedOps(self._inner.at(layer))

    def orthogonalize(self, stack_BMN: Tensor) -> Tensor:
        return self._inner.orthogonalize(stack_BMN)

    def muon(self, groups: Any, rule: MuonRule) -> None:
        self._inner.muon(groups, rule)

    def _experts(self, x_Td: Tensor, ids_TK: Tensor, weight_TK: Tensor, banks: tuple[Tensor, Tensor],
                 limit: float) -> Tensor:
        rounded = fake_quantize_fp4(banks[0]), fake_quantize_fp4(banks[1])
        return self._inner.experts(x_Td, ids_TK, weight_TK, rounded, limit)

    def _index_topk(self, query_THI: Tensor, weight_TH: Tensor, key_MI: Tensor, visible: Ranges, topk: int) -> Tensor:
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
