"""The CPU's attention and indexer against their plain-torch definitions, forward and every gradient."""

import pytest
import torch

from anychip.chips.cpu.attention import attention, grouped_attention, index_topk
from anychip.errors import NotSupported
from anychip.ops import Keys, Ops, Ranges


def ranges(start, count):
    start, count = torch.tensor(start, dtype=torch.int32), torch.tensor(count, dtype=torch.int32)
    return Ranges(start, count, int(count.sum()), int(count.max()) if len(count) else 0)


def packed(lengths, window, ratio):
    """Window and compressed ranges of packed samples, as the model makes them."""
    start, count, first, seen, row, entry = [], [], [], [], 0, 0
    for length in lengths:
        for t in range(length):
            low = max(0, t - window + 1)
            start.append(row + low)
            count.append(t - low + 1)
            first.append(entry)
            seen.append((t + 1) // ratio)
        row, entry = row + length, entry + length // ratio
    return ranges(start, count), ranges(first, seen), row, entry


def case(name, heads=8, channels=32, lengths=(70, 5, 33), ratio=4, scale=1.0):
    generator = torch.Generator().manual_seed(len(name))

    def normal(*shape):
        return torch.randn(*shape, generator=generator).mul_(scale).requires_grad_()

    window, seen, rows, entries = packed(lengths, 16, ratio)
    query, kv, compressed = normal(rows, heads, channels), normal(rows, channels), normal(entries, channels)
    sink = normal(heads)
    selected = {"window": None, "runs": seen}.get(name)
    if name == "chosen":
        selected = torch.full((rows, 6), -1, dtype=torch.int32)
        for t in range(rows):
            low, n = int(seen.start[t]), int(seen.count[t])
            kept = (torch.randperm(n, generator=generator)[:6] + low).sort().values
            selected[t, : len(kept)] = kept.int()
    keys = Keys(kv, window, None if name == "window" else compressed, selected)
    return query, keys, sink


def leaves(query, keys, sink):
    return [t for t in (query, keys.window_NC, keys.compressed_MC, sink) if t is not None]


SHAPES = [dict(), dict(heads=1, channels=16), dict(heads=4, channels=64), dict(heads=12, channels=24),
          dict(heads=40, channels=8), dict(lengths=(1,)), dict(lengths=(1, 1, 1)), dict(lengths=(300,)),
          dict(channels=512, heads=2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["window", "runs", "chosen"])
def test_forward_and_gradients_equal_the_definition(name, shape):
    query, keys, sink = case(name, **shape)
    out = attention(query, keys, sink)
    expected = Ops().attention(query, keys, sink)
    assert torch.allclose(out, expected, rtol=1e-5, atol=2e-6)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    mine = torch.autograd.grad(out, leaves(query, keys, sink), grad, allow_unused=True)
    theirs = torch.autograd.grad(expected, leaves(query, keys, sink), grad, allow_unused=True)
    for a, b in zip(mine, theirs, strict=True):
        b = torch.zeros_like(a) if b is None and a is not None else b
        assert (a is None and b is None) or torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (4, 1), (7, 1), (16, 4), (40, 2), (3, 3), (24, 24)], ids=str)
@pytest.mark.parametrize("lengths", [(1,), (70, 5, 33), (300,)], ids=str)
def test_grouped_heads_equal_the_definition(lengths, shape):
    (heads, groups), generator = shape, torch.Generator().manual_seed(sum(lengths))
    seen, _, rows, _ = packed(lengths, 1000, 1)
    tensors = [torch.randn(rows, *each, generator=generator).requires_grad_()
               for each in ((heads, 40), (groups, 40), (groups, 24))]
    out, expected = grouped_attention(*tensors, seen, 0.25), Ops().grouped_attention(*tensors, seen, 0.25)
    assert torch.allclose(out, expected, rtol=1e-5, atol=2e-6)
    grad = torch.randn(out.shape, generator=generator)
    for mine, theirs in zip(torch.autograd.grad(out, tensors, grad), torch.autograd.grad(expected, tensors, grad),
                            strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_huge_logits_stay_finite_and_right():
    query, keys, sink = case("runs", scale=60.0)  # logits to 20,000: one ulp of a logit is 0.2 % of a probability
    out = attention(query, keys, sink)
    error = (out - Ops().attention(query, keys, sink)).abs()
    assert out.isfinite().all() and error.mean() <= 1e-6 * 60 and error.max() <= 0.01 * 60


def test_a_nan_in_a_key_reaches_every_token_that_sees_it():
    query, keys, sink = case("runs")
    with torch.no_grad():
        keys.window_NC[40] = float("nan")
        out = attention(query, keys, sink)
    assert out[40:56].isnan().all() and out[:40].isfinite().all() and out[75:].isfinite().all()


def test_two_runs_and_any_number_of_threads_give_the_same_bits():
    query, keys, sink = case("runs", lengths=(400, 133))

    def run():
        out = attention(query, keys, sink)
        return [out, *torch.autograd.grad(out.square().sum(), leaves(query, keys, sink))]

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        first = run()
        torch.set_num_threads(1)
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("heads", [1, 16, 20])
def test_the_indexer_keeps_the_rows_of_the_definition(tokens, heads):
    generator = torch.Generator().manual_seed(heads)
    query, key = torch.randn(tokens, heads, 32, generator=generator), torch.randn(500, 32, generator=generator)
    weight = torch.randn(tokens, heads, generator=generator)
    visible = ranges([10 + t for t in range(tokens)], [min(480 - t, 7 + 12 * t + 400 * (t % 2)) for t in range(tokens)])
    assert torch.equal(index_topk(query, weight, key, visible, 20), Ops().index_topk(query, weight, key, visible, 20))


def test_equal_scores_go_to_the_lowest_row_and_minus_zero_equals_zero():
    query, weight, key = torch.ones(1, 16, 8), torch.full((1, 16), -1.0), -torch.ones(300, 8)
    key[200:] = 0.0
    visible = ranges([0], [300])
    assert index_topk(query, weight, key, visible, 5).tolist() == [[0, 1, 2, 3, 4]]
    assert Ops().index_topk(query, weight, key, visible, 5).tolist() == [[0, 1, 2, 3, 4]]


def test_rows_that_nobody_sees_get_no_gradient():
    query, keys, sink = case("chosen")
    seen = torch.zeros(keys.compressed_MC.shape[0], dtype=torch.bool)
    seen[keys.selected[keys.selected >= 0].long()] = True
    grad = torch.autograd.grad(attention(query, keys, sink).sum(), keys.compressed_MC)[0]
    assert not grad[~seen].any() and grad[seen].abs().sum() > 0


def test_a_nan_score_is_never_kept_before_a_number():
    query, weight, key = torch.ones(1, 16, 8), torch.ones(1, 16), torch.rand(100, 8)
    key[5] = float("nan")
    assert 5 not in index_topk(query, weight, key, ranges([0], [100]), 99).tolist()[0]


def test_other_formats_are_refused_by_name():
    query, keys, sink = case("window")
    with pytest.raises(NotSupported, match="no attention in bfloat16"):
        attention(query.bfloat16(), keys, sink)
