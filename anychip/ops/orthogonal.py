"""Muon's update of a matrix: momentum, Newton-Schulz orthogonalisation, decay and step (report, algorithm 1).

M <- mu M + G;  O = NewtonSchulz(mu M + G) sqrt(max(m, n)) gamma;  W <- (1 - rate decay) W - rate O. An orthogonal
factor's entries have a root mean square of 1/sqrt(max(m, n)), so the step's is gamma, much like AdamW's.

Shape suffixes: B matrices of equal shape, M rows, N columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# (a, b, c) of X <- aX + b(XX^T)X + c(XX^T)^2 X: eight steps that bring every singular value near 1, two that settle it
STEPS = ((3.4445, -4.7750, 2.0315),) * 8 + ((2.0, -1.5, 0.5),) * 2
GAMMA = 0.18


class MuonRule(NamedTuple):
    """One step's numbers: the momentum's factor mu, the learning rate, and the weight decay."""

    momentum: float
    rate: float
    decay: float


class Matrices(NamedTuple):
    """Logical matrices of equal shape [B, M, N], row by row in memory: weights, their gradients and momenta."""

    weight: Tensor
    grad: Tensor
    momentum: Tensor


def orthogonalize(stack_BMN: Tensor) -> Tensor:
    """Return U V^T of each matrix, nearly: ten Newton-Schulz steps on X / ||X||_F, in fp32 (float64 where given).

    Singular values above 1e-4 of the norm come out within 0.1 % of 1; a zero matrix stays zero.
    """
    x = stack_BMN if stack_BMN.dtype is torch.float64 else stack_BMN.float()
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    x = x / torch.where(norm > 0, norm, 1)  # a norm that is not a number stays one
    for a, b, c in STEPS:
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.transpose(1, 2) if tall else x).to(stack_BMN.dtype)


def step_size(rows: int, columns: int) -> float:
    """Return the factor that gives an orthogonal [rows, columns] a root mean square of gamma."""
    return GAMMA * float(max(rows, columns)) ** 0.5


def muon(matrices: Matrices, rule: MuonRule, orthogonal: Callable[[Tensor], Tensor] = orthogonalize) -> None:
    """Take one step: `weight` and `momentum` change in place. `orthogonal` is a chip's `orthogonalize`."""
    matrices.momentum.mul_(rule.momentum).add_(matrices.grad)
    made = orthogonal(matrices.grad + rule.momentum * matrices.momentum)
    gain = rule.rate * step_size(*made.shape[1:])
    matrices.weight.mul_(1 - rule.rate * rule.decay).sub_(made * gain)
