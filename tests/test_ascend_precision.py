"""The Ascend precision standard 2.1: what it passes, what it fails, and the benchmark that stands for the GPU."""

import pytest
import torch

from anychip.ascend.precision import SameFormat, judge, within


def values(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_rounded_golden_passes_every_level_and_is_exact(dtype):
    golden = values(64, 64)
    for level in ("L0", "L1", "L2"):
        found = judge(golden.to(dtype), golden, golden.to(dtype), level)
        assert found.passed and found.exact and found.mare <= 1


def test_three_times_the_benchmarks_error_fails_the_mean_and_names_the_worst_place():
    golden = 1 + values(1000).abs()
    benchmark, got = golden * (1 + 2**-7 * values(1000, seed=1)), golden * (1 + 3 * 2**-7 * values(1000, seed=1))
    found = judge(got.bfloat16(), golden, benchmark.bfloat16())
    assert not found.passed and 2.5 < found.mere < 3.5 and "mean relative error is" in found.reason
    worst = int(((got.bfloat16().double() - golden).abs() / golden).argmax())
    assert f"worst at [{worst}]" in found.reason
    assert judge(benchmark.bfloat16(), golden, benchmark.bfloat16()).passed


def test_one_wrong_element_in_a_million_fails():
    golden = values(1024, 1024)
    got = golden.bfloat16()
    got[3, 5] = golden[3, 5] * 1.1
    assert judge(golden.bfloat16(), golden, golden.bfloat16()).passed
    assert not judge(got, golden, golden.bfloat16()).passed


def test_small_values_are_counted_against_the_benchmark():
    golden = values(1000) * 2**-20
    got = golden.clone()
    got[:3] += 2**-15
    found = judge(got.bfloat16(), golden, golden.bfloat16())
    assert not found.passed and found.small == 3 and "small values" in found.reason
    got[2] = golden[2]
    assert judge(got.bfloat16(), golden, golden.bfloat16()).passed


def test_infinities_and_nan_must_stand_where_the_reference_has_them():
    golden = torch.tensor([1.0, -torch.inf, 2.0], dtype=torch.float64)
    assert judge(golden.bfloat16(), golden, golden.bfloat16()).passed
    got = torch.tensor([1.0, -torch.inf, torch.nan]).bfloat16()
    found = judge(got, golden, golden.bfloat16())
    assert not found.passed and "1 of 3 values are NaN or infinite" in found.reason and "worst at [2]" in found.reason


def test_integers_must_be_equal_and_a_shape_too():
    ids = torch.arange(8)
    assert judge(ids.int(), ids, ids).passed
    assert "1 of 8 integers differ" in judge(torch.where(ids == 3, 9, ids).int(), ids, ids).reason
    assert "has shape [7]" in judge(ids[:7].int(), ids, ids).reason


def test_a_limit_of_the_examples_own_replaces_the_rule():
    codes = torch.tensor([3, 4, 5])
    assert within(torch.tensor([3, 5, 5], dtype=torch.int8), codes, 1).passed
    found = within(torch.tensor([3, 6, 5], dtype=torch.int8), codes, 1)
    assert not found.passed and "differs by 2 (at most 1); worst at [1]: 6, should be 4" in found.reason


def test_the_benchmark_is_the_reference_in_the_kernels_formats():
    a, b = values(32, 64), values(64, 16, seed=1)
    with SameFormat(torch.bfloat16):
        product, root = a @ b, (a * a).sum(-1).sqrt()
        c = torch.zeros(4, dtype=torch.float64)
        c += 1 / 3
    assert torch.equal(product, (a.bfloat16().float() @ b.bfloat16().float()).double())
    assert torch.equal(root, (a.float() * a.float()).sum(-1).sqrt().double())
    assert torch.equal(c, torch.full((4,), 1 / 3).double()) and c.dtype == torch.float64
