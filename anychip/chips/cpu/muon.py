"""Muon's step on the CPU: all matrices in one call, one thread a matrix, half the products of the plain formula."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace

import torch
from torch import Tensor

from ...ops.orthogonal import STEPS, Matrices, MuonRule, step_size
from .bind import bind, refuse
from .kernels import load_library

_F32 = torch.float32


@cache
def _kernels() -> SimpleNamespace:
    return bind(load_library(), {"muon": "lppffp"})


@cache
def _coefficients() -> Tensor:
    return torch.tensor(STEPS)


def orthogonalize(stack_BMN: Tensor) -> Tensor:
    """`ops.orthogonal.orthogonalize`. Raises NotSupported for other formats than fp32."""
    if stack_BMN.dtype is not _F32:
        refuse("orthogonalize", stack_BMN)
    stack = stack_BMN.contiguous()
    out = torch.empty_like(stack)
    _run([_jobs(out, stack, None)], [1.0], 0.0, 0.0)
    return out


def muon(groups: Sequence[Matrices], rule: MuonRule) -> None:
    """`ops.orthogonal.muon` of every group. Raises NotSupported for other formats than fp32, and TypeError where
    matrices do not lie row by row."""
    jobs, gains = [], []
    for weight, grad, momentum in groups:
        if not (weight.dtype is grad.dtype is momentum.dtype is _F32):
            refuse("muon", weight, grad, momentum)
        if not (weight.is_contiguous() and momentum.is_contiguous()):
            raise TypeError(f"muon's matrices must lie row by row; strides are {weight.stride()}, {momentum.stride()}")
        kept = grad.contiguous()
        jobs.append(_jobs(weight, kept, momentum))
        gains.append(-rule.rate * step_size(*weight.shape[1:]))
    if jobs:
        _run(jobs, gains, rule.momentum, 1 - rule.rate * rule.decay)


def _jobs(out: Tensor, grad: Tensor, momentum: Tensor | None) -> tuple[Tensor, Tensor]:
    """One line of addresses and shape for each matrix (the kernel's Job); `grad` rides along so that it lives."""
    count, rows, columns = out.shape
    at = torch.arange(count) * (4 * rows * columns)
    lines = torch.empty(count, 5, dtype=torch.int64)
    lines[:, 0] = at + out.data_ptr()
    lines[:, 1] = at + grad.data_ptr()
    lines[:, 2] = 0 if momentum is None else at + momentum.data_ptr()
    lines[:, 3], lines[:, 4] = rows, columns
    return lines, grad


def _run(jobs: Sequence[tuple[Tensor, Tensor]], gains: Sequence[float], mu: float, keep: float) -> None:
    lines = torch.cat([job for job, _ in jobs])
    gain = torch.tensor(gains).repeat_interleave(torch.tensor([len(job) for job, _ in jobs]))
    work = lines[:, 3] * lines[:, 4] * lines[:, 3:].amin(1)
    order = work.argsort(descending=True, stable=True)  # large ones first: the threads end together
    lines, gain = lines[order].contiguous(), gain[order].contiguous()
    _kernels().muon(len(lines), lines.data_ptr(), gain.data_ptr(), mu, keep, _coefficients().data_ptr())
