"""Hard inputs for the CPU chip's ops: clamps, ties, absent experts, huge and tiny numbers, uneven gradients."""

import pytest
import torch
from cpu_ops_cases import RULE, assert_close, results, seeded

from anychip.chips.cpu.ops import CpuOps
from anychip.errors import NotSupported
from anychip.ops import HyperRule, HyperWeights, Ops


@pytest.fixture(scope="module")
def cpu():
    return CpuOps()


def banks(normal, experts=4, width=16, d=32):
    return normal(experts, 2 * width, d), normal(experts, d, width)


@pytest.mark.parametrize("tokens", [2, 50])
def test_clamps_are_reached_on_both_sides(cpu, tokens):
    normal = seeded("clamp")
    x, (w13, w2) = 5 * normal(tokens, 32), banks(normal)
    ids, weight = torch.arange(tokens)[:, None] % 4, normal(tokens, 1)
    gate, up = torch.einsum("td,tpd->tp", x, w13[ids[:, 0]]).chunk(2, -1)
    assert (gate > 10).any() and (up > 10).any() and (up < -10).any()

    def call(ops, *tensors):
        return ops.experts(tensors[0], ids, tensors[1], tensors[2:], 10.0)

    assert_close(results(cpu, call, (x, weight, w13, w2)), results(Ops(), call, (x, weight, w13, w2)))
    with torch.no_grad():
        assert_close([call(cpu, x, weight, w13, w2)], [call(Ops(), x, weight, w13, w2)])


def test_experts_without_tokens_get_zero_gradients(cpu):
    normal = seeded("absent")
    x, (w13, w2) = normal(40, 32), tuple(t.requires_grad_() for t in banks(normal))
    ids = torch.full((40, 2), 1)
    ids[:, 1] = 3
    cpu.experts(x, ids, normal(40, 2), (w13, w2), 10.0).sum().backward()
    for grad in (w13.grad, w2.grad):
        assert not grad[0].any() and not grad[2].any() and grad[1].any() and grad[3].any()


def test_one_token_may_choose_an_expert_twice(cpu):
    normal = seeded("twice")
    tensors = (normal(30, 32), normal(30, 3), *banks(normal))

    def call(ops, x, weight, *weights):
        return ops.experts(x, torch.full((30, 3), 2), weight, weights, 10.0)

    assert_close(results(cpu, call, tensors), results(Ops(), call, tensors))


def test_more_tokens_than_one_weight_block_sums(cpu):
    normal = seeded("deep")
    tensors = (normal(700, 32), normal(700, 1), *banks(normal, width=56))

    def call(ops, x, weight, *weights):
        return ops.experts(x, torch.arange(700)[:, None] // 400, weight, weights, 10.0)

    assert_close(results(cpu, call, tensors), results(Ops(), call, tensors))


@pytest.mark.parametrize("tokens", [3, 40])
def test_equal_scores_go_to_the_lowest_ids(cpu, tokens):
    x, gate = torch.ones(tokens, 16), torch.zeros(12, 16)
    gate[5:8] = 1.0
    assert cpu.route(x, gate, 5)[0].tolist() == [[5, 6, 7, 0, 1]] * tokens


@pytest.mark.parametrize("scale", [1e-3, 1.0, 6.0])
@pytest.mark.parametrize("tokens", [4, 40])
def test_routing_of_tiny_and_huge_logits(cpu, tokens, scale):
    normal = seeded("logits")
    x, gate = scale * normal(tokens, 16), normal(32, 16)

    def call(ops, a, w):
        return ops.route(a, w, 6)[1]

    assert torch.equal(cpu.route(x, gate, 6)[0], Ops().route(x, gate, 6)[0])
    assert_close(results(cpu, call, (x, gate)), results(Ops(), call, (x, gate)))


def test_scores_that_vanish_have_no_gradient_instead_of_nan(cpu):
    gate = torch.tensor([[1.0], [2.0], [-300.0]], requires_grad=True)
    _, weight = cpu.route(torch.ones(1, 1), gate, 3, ids_TK=torch.tensor([[0, 1, 2]]))
    weight[0, 0].backward()
    assert weight[0, 2] == 0 and gate.grad[2] == 0 and gate.grad[0] > 0 and gate.grad.isfinite().all()


def test_a_hash_table_may_name_an_expert_twice(cpu):
    normal = seeded("hash")
    x, gate, ids = normal(20, 16), normal(8, 16), torch.tensor([[3, 3, 5]] * 20)

    def call(ops, a, w):
        return ops.route(a, w, 3, ids_TK=ids)[1]

    assert_close(results(cpu, call, (x, gate)), results(Ops(), call, (x, gate)))
    with pytest.raises(IndexError, match="experts 0..7"):
        cpu.route(x, gate, 3, ids_TK=ids + 5)


@pytest.mark.parametrize("factor", [1e-15, 1e-3, 1e3, 1e9])
def test_norms_of_tiny_and_huge_rows(cpu, factor):
    normal = seeded("rows")
    x, weight, angle = factor * normal(9, 3, 40), normal(40), normal(9, 6)

    def call(ops, a, w):
        return ops.norm_rope(a, w, 1e-6, angle.cos(), angle.sin())

    assert_close(results(cpu, call, (x, weight)), results(Ops(), call, (x, weight)))


@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0, 100.0])
def test_pooling_with_wide_gates(cpu, spread):
    normal = seeded("gates")
    tensors = normal(32, 24), spread * normal(32, 24), normal(4, 24)
    first, previous = torch.arange(0, 32, 4).int(), torch.arange(-4, 28, 4).clamp(min=-1).int()

    def call(ops, *rows):
        return ops.compress(*rows, first, previous)

    assert_close(results(cpu, call, tensors), results(Ops(), call, tensors))


@pytest.mark.parametrize("streams", [1, 2, 3, 4])
@pytest.mark.parametrize("scale", [0.0, 1.0, 8.0])
def test_mixing_of_any_number_of_streams(cpu, streams, scale):
    normal = seeded("streams")
    mixes = streams * (streams + 2)
    tensors = normal(21, streams, 24), normal(mixes, streams * 24), normal(mixes), scale * normal(3)

    def call(ops, x, *weights):
        return ops.hc_pre(x, HyperWeights(*weights), RULE)

    assert_close(results(cpu, call, tensors), results(Ops(), call, tensors), 1e-4)


@pytest.mark.parametrize(("shape", "iters", "words"), [
    ((2, 5, 16), 20, "hc_mult=5"), ((2, 4, 12), 20, "hidden_size=12"), ((2, 4, 16), 65, "hc_sinkhorn_iters=65"),
])  # fmt: skip
def test_shapes_that_mixing_lacks_are_refused(cpu, shape, iters, words):
    n = shape[1]
    weights = HyperWeights(torch.ones(n * (n + 2), n * shape[2]), torch.ones(n * (n + 2)), torch.ones(3))
    with pytest.raises(NotSupported, match=words):
        cpu.hc_pre(torch.ones(shape), weights, HyperRule(iters, 1e-6, 1e-6))


def test_widths_that_experts_lack_are_refused(cpu):
    with pytest.raises(NotSupported, match="hidden_size=12"):
        cpu.mlp(torch.ones(2, 12), torch.ones(8, 12), torch.ones(8, 12), torch.ones(12, 8), 10.0)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_losses_with_uneven_gradients_and_ignored_targets(cpu, scale):
    normal = seeded("loss")
    tensors = scale * normal(333, 16), normal(70, 16)
    target = torch.arange(333) % 71 - 1

    def call(ops, *both):
        return ops.cross_entropy(*both, target)

    assert_close(results(cpu, call, tensors), results(Ops(), call, tensors))
    assert not cpu.cross_entropy(*tensors, target)[target < 0].any()


def test_losses_refuse_a_target_outside_the_vocabulary(cpu):
    with pytest.raises(IndexError, match="target 9 is outside the head's 9 rows"):
        cpu.cross_entropy(torch.ones(1, 4), torch.ones(9, 4), torch.tensor([9]))


def test_a_second_backward_gives_the_same_gradients(cpu):
    normal = seeded("second")
    hidden, head = (t.requires_grad_() for t in (normal(20, 16), normal(40, 16)))
    loss = cpu.cross_entropy(hidden, head, torch.arange(20)).mean()
    once = torch.autograd.grad(loss, (hidden, head), retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(once, torch.autograd.grad(loss, (hidden, head)), strict=True))
