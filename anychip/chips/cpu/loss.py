"""The language-model loss on the CPU: logits exist for a chunk of tokens, and their gradient is made on the spot."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .bind import bind, refuse, wants_grad
from .kernels import load_library
from .product import product

_F32 = torch.float32
_CHUNK_BYTES = 16 * 2**20  # logits that exist at once: they stay in the last-level cache


@cache
def _kernels() -> SimpleNamespace:
    return bind(load_library(), {"cross_entropy": "llppip"})


def cross_entropy(hidden_Td: Tensor, head_Vd: Tensor, target_T: Tensor) -> Tensor:
    """`ops.loss.cross_entropy`. Raises NotSupported for other formats than fp32, IndexError for a target >= V."""
    if not (hidden_Td.dtype is head_Vd.dtype is _F32):
        refuse("cross_entropy", hidden_Td, head_Vd)
    target = target_T.long().contiguous()
    if target.numel() and int(target.max()) >= head_Vd.shape[0]:
        raise IndexError(f"target {int(target.max())} is outside the head's {head_Vd.shape[0]} rows")
    if wants_grad(hidden_Td, head_Vd):
        out: Tensor = _CrossEntropy.apply(hidden_Td, head_Vd, target)
        return out
    losses = torch.empty(hidden_Td.shape[0])
    for span in _chunks(hidden_Td.shape[0], head_Vd.shape[0]):
        _loss_of(_logits(hidden_Td[span], head_Vd), target[span], losses[span], into_gradient=False)
    return losses


def _chunks(tokens: int, vocabulary: int) -> list[slice]:
    step = max(_CHUNK_BYTES // (4 * vocabulary), 64)
    return [slice(at, min(at + step, tokens)) for at in range(0, tokens, step)]


def _logits(hidden: Tensor, head: Tensor) -> Tensor:
    return product(hidden, head.t(), torch.empty(hidden.shape[0], head.shape[0]))


def _loss_of(logits: Tensor, target: Tensor, losses: Tensor, *, into_gradient: bool) -> None:
    tokens, vocabulary = logits.shape
    _kernels().cross_entropy(
        tokens, vocabulary, logits.data_ptr(), target.data_ptr(), int(into_gradient), losses.data_ptr()
    )


class _CrossEntropy(torch.autograd.Function):
    """Losses whose gradients are made in the forward pass, for a gradient of one from every token.

    Where backward brings one same number for all tokens (a mean or a sum) they are scaled by it. Otherwise the
    head's gradient, which sums over tokens, is worked out again with each token's own number.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, target: Tensor) -> Tensor:
        losses = torch.empty(hidden.shape[0])
        dhidden = torch.empty_like(hidden, memory_format=torch.contiguous_format)
        dhead = torch.zeros_like(head)
        for span in _chunks(hidden.shape[0], head.shape[0]):
            grad = _logits(hidden[span], head)
            _loss_of(grad, target[span], losses[span], into_gradient=True)
            product(grad, head, dhidden[span])
            product(grad.t(), hidden[span], dhead, add=True)
        ctx.save_for_backward(hidden, head, target, dhidden, dhead)
        return losses

    @staticmethod
    def backward(ctx: Any, dlosses: Tensor) -> Any:  # type: ignore[override]
        hidden, head, target, dhidden, dhead = ctx.saved_tensors
        counted = dlosses[target >= 0]
        if counted.numel() and bool((counted == counted[0]).all()):
            return dhidden * dlosses[:, None], dhead * counted[0], None
        dhead = torch.zeros_like(head)
        scratch = torch.empty(hidden.shape[0])
        for span in _chunks(hidden.shape[0], head.shape[0]):
            grad = _logits(hidden[span], head)
            _loss_of(grad, target[span], scratch[span], into_gradient=True)
            product(grad.t(), hidden[span] * dlosses[span, None], dhead, add=True)
        return dhidden * dlosses[:, None], dhead, None
