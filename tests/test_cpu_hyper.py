"""The CPU chip joins the two gradients of a site's residual streams, and only where that is the same sum."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from anychip.chips.cpu import hyper as cpu_hyper
from anychip.ops import hyper
from anychip.ops.hyper import HyperRule, HyperWeights

Ops = type(hyper)
RULE = HyperRule(20, 1e-6, 1e-6)
T, N, D = 37, 4, 64


def site(ops: Ops, use: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], partial_first: bool) -> list[Tensor]:
    """Gradients of the inputs after one site: `use` makes the result from (sub-layer input, streams, post, comb)."""
    g = torch.Generator().manual_seed(7)
    shapes = (T, N, D), (N * (N + 2), N * D), (N * (N + 2),), (3,)
    leaves = [torch.randn(*shape, generator=g).requires_grad_() for shape in shapes]
    streams = leaves[0] * 1.0
    x, post, comb = ops.hc_pre(streams, HyperWeights(*leaves[1:]), RULE)
    out = use(x, streams, post, comb).square().sum()
    if partial_first:  # a run that never reaches hc_pre
        torch.autograd.grad(out, comb, retain_graph=True)
    out.backward(retain_graph=True)
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("partial_first", [False, True])
def test_the_joined_gradient_is_the_sum(partial_first: bool) -> None:
    found = site(cpu_hyper, lambda x, s, p, c: cpu_hyper.hc_post(x.tanh(), s, p, c), partial_first)
    exact = site(hyper, lambda x, s, p, c: hyper.hc_post(x.tanh(), s, p, c), partial_first)
    for a, b in zip(found, exact, strict=True):
        assert (a - b).abs().max() <= 2e-5 * b.abs().max()


def test_two_writes_of_one_site_both_count() -> None:
    found = site(cpu_hyper, lambda x, s, p, c: cpu_hyper.hc_post(x, s, p, c) + cpu_hyper.hc_post(2 * x, s, p, c), False)
    exact = site(hyper, lambda x, s, p, c: hyper.hc_post(x, s, p, c) + hyper.hc_post(2 * x, s, p, c), False)
    for a, b in zip(found, exact, strict=True):
        assert (a - b).abs().max() <= 2e-5 * b.abs().max()


def test_other_streams_than_the_sites_own_are_not_joined() -> None:
    found = site(cpu_hyper, lambda x, s, p, c: cpu_hyper.hc_post(x, s * 3, p, c), False)
    exact = site(hyper, lambda x, s, p, c: hyper.hc_post(x, s * 3, p, c), False)
    for a, b in zip(found, exact, strict=True):
        assert (a - b).abs().max() <= 2e-5 * b.abs().max()
