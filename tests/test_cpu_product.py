"""The CPU chip's product of large matrices against torch's, in every form that it is asked for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from anychip.chips.cpu import product as cpu_product
from anychip.chips.cpu.product import product

SIZES = [(1, 1, 1), (5, 3, 7), (13, 33, 300), (64, 16, 257), (100, 96, 512), (151, 40, 64), (7, 200, 8), (8, 17, 513)]


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def close(found: torch.Tensor, exact: torch.Tensor, depth: int) -> None:
    assert (found - exact).abs().max() <= 1e-6 * (depth**0.5 + 1) * max(1.0, float(exact.abs().max()))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("turned_a", [False, True])
@pytest.mark.parametrize("turned_b", [False, True])
def test_a_product_is_torchs_product(sizes: tuple[int, int, int], turned_a: bool, turned_b: bool) -> None:
    m, n, k = sizes
    a = random(k, m).t() if turned_a else random(m, k)
    b = random(n, k).t() if turned_b else random(k, n)
    out = torch.full((m, n), float("nan"))
    close(product(a, b, out), a.double() @ b.double(), k)
    close(product(a, b, out, add=True), 2 * (a.double() @ b.double()), k)


def test_slices_are_read_and_written_where_they_lie() -> None:
    wide_a, wide_b, wide_out = random(70, 90), random(50, 80), torch.zeros(70, 60)
    product(wide_a[:, 10:60], wide_b[:, 5:45], wide_out[:, 7:47])
    close(wide_out[:, 7:47], wide_a[:, 10:60].double() @ wide_b[:, 5:45].double(), 50)
    assert not wide_out[:, :7].any() and not wide_out[:, 47:].any()


def test_neither_rows_nor_columns_in_memory_is_copied_first() -> None:
    a, b = random(40, 60)[:, ::2], random(30, 22)
    close(product(a, b, torch.empty(40, 22)), a.double() @ b.double(), 30)


def test_no_terms_give_zero() -> None:
    out = torch.full((3, 4), 7.0)
    assert not product(torch.empty(3, 0), torch.empty(0, 4), out).any()


def test_a_nan_reaches_its_row_only() -> None:
    a, b = random(20, 30), random(30, 40)
    a[3, 5] = float("nan")
    assert product(a, b, torch.empty(20, 40)).isnan().any(1).nonzero().tolist() == [[3]]


def test_processors_with_wider_vectors_ask_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_product, "_kernels", lambda: SimpleNamespace(product_fits=lambda: 0))
    a, b = random(9, 12), random(12, 5)
    out = product(a, b, torch.empty(9, 5))
    assert torch.equal(out, a @ b)
    close(product(a, b, out, add=True), 2 * (a.double() @ b.double()), 12)
