"""Muon and AdamW against their formulas in float64, torch's own optimizers, and the published band."""

import pytest
import torch
from models import nano
from torch.optim._muon import _zeropower_via_newtonschulz
from train_cases import small, trainer

from anychip.chips import open_chip
from anychip.errors import CheckpointError, NotSupported
from anychip.model import Transformer, initialize
from anychip.ops.orthogonal import GAMMA, STEPS, Matrices, MuonRule, muon, orthogonalize
from anychip.train.muon import is_muons, logical_matrices

CPU = open_chip("cpu").ops()
SHAPES = [(3, 24, 40), (2, 40, 24), (1, 1, 50), (1, 96, 256), (2, 17, 16), (1, 33, 33)]


def drawn(*shape, seed=0, lowest=0.0):
    """Random matrices, with singular values spread from 1 down to 10^-lowest where that is given."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    return (u * torch.logspace(0, -lowest, u.shape[-1], dtype=torch.float64)) @ v if lowest else x


def formula(matrix):
    """Algorithm 1 of the report as it is written, one matrix in float64."""
    x = matrix.double()
    x = x.T if x.shape[0] > x.shape[1] else x
    x = x / x.norm()
    for a, b, c in STEPS:
        x = a * x + b * (x @ x.T) @ x + c * (x @ x.T) @ (x @ x.T) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("ops", "allowed"), [(orthogonalize, 1e-5), (CPU.orthogonalize, 5e-5)], ids=["plain", "cpu"])
def test_orthogonalisation_is_the_reports_formula_for_each_matrix_alone(shape, ops, allowed):
    stack = drawn(*shape).float()
    expected = torch.stack([formula(matrix) for matrix in stack])
    assert (ops(stack).double() - expected).norm() <= allowed * expected.norm()


@pytest.mark.parametrize("ops", [orthogonalize, CPU.orthogonalize], ids=["plain", "cpu"])
def test_singular_values_come_out_at_one(ops):
    stack = drawn(2, 48, 80, lowest=3).float()  # 1 down to a thousandth
    values = torch.linalg.svdvals(ops(stack).double())
    assert values.min() > 0.99 and values.max() < 1.01


@pytest.mark.parametrize("ops", [orthogonalize, CPU.orthogonalize], ids=["plain", "cpu"])
def test_a_zero_matrix_stays_zero_and_nan_stays_nan(ops):
    stack = torch.zeros(2, 20, 30)
    stack[1, 3, 4] = torch.nan
    assert not ops(stack)[0].any() and ops(stack)[1].isnan().all()


@pytest.mark.parametrize("ops", [open_chip("cpu:reference").ops(), CPU], ids=["plain", "cpu"])
def test_three_steps_are_the_formulas_step_by_step(ops):
    weight, momentum = drawn(2, 24, 40, seed=1).float(), torch.zeros(2, 24, 40)
    w, m = weight.double(), momentum.double()
    for step in range(3):
        grad, rate = drawn(2, 24, 40, seed=2 + step).float() * 10.0**-step, 0.01 * (step + 1)
        ops.muon([Matrices(weight, grad, momentum)], MuonRule(0.95, rate, 0.1))
        m = 0.95 * m + grad.double()
        made = torch.stack([formula(matrix) for matrix in grad.double() + 0.95 * m])
        w = w * (1 - rate * 0.1) - rate * GAMMA * 40**0.5 * made
        assert (weight - w).norm() <= 1e-6 * w.norm() and (momentum - m).norm() <= 1e-6 * m.norm()


def test_an_update_has_the_published_root_mean_square():
    weight = torch.zeros(1, 64, 200)
    CPU.muon([Matrices(weight, drawn(1, 64, 200).float(), torch.zeros(1, 64, 200))], MuonRule(0.95, 1.0, 0.0))
    assert weight.square().mean().sqrt() == pytest.approx(GAMMA, rel=1e-2)


def test_momentum_decay_and_scale_are_torchs():
    weight, momentum = drawn(1, 24, 40).float(), torch.zeros(1, 24, 40)
    peer_weight = torch.nn.Parameter(weight[0].clone())
    peer = torch.optim.Muon([peer_weight], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")

    def theirs(stack):  # torch's own five steps in bf16, and its factor of 0.2 in place of gamma
        return _zeropower_via_newtonschulz(stack[0], STEPS[0], 5, 1e-7)[None].float() * (0.2 / GAMMA)

    for step in range(3):
        grad = drawn(1, 24, 40, seed=step).float()
        peer_weight.grad = grad[0].clone()
        peer.step()
        muon(Matrices(weight, grad, momentum), MuonRule(0.95, 0.02, 0.1), theirs)
        assert (weight[0] - peer_weight).norm() <= 2e-3 * peer_weight.norm()  # a bf16 rounding may go the other way


def test_every_parameter_has_its_optimizer():
    model = Transformer(nano(), open_chip("cpu:reference").ops())
    adamw = {name for name, p in model.named_parameters() if not is_muons(name, p)}
    assert {"embed.weight", "head.weight", "norm.weight", "layers.1.attn.attn_sink", "layers.1.attn.compressor.ape",
            "layers.0.hc_attn_base", "layers.0.hc_ffn_scale", "hc_head_scale", "layers.2.attn_norm.weight"} <= adamw
    assert all(leaf in ("weight", "attn_sink", "ape") or leaf.endswith(("_base", "_scale"))
               for leaf in (name.rsplit(".", 1)[-1] for name in adamw))
    assert all(p.dim() == 1 or name in ("embed.weight", "head.weight") or name.endswith(".ape")
               for name, p in model.named_parameters() if name in adamw)


def test_joined_matrices_are_taken_apart_as_the_report_writes_them():
    config = nano()
    model = Transformer(config, open_chip("cpu:reference").ops())
    initialize(model, 0)
    parts = {name: [tuple(stack.shape) for stack in logical_matrices(name, p, config)]
             for name, p in model.named_parameters() if is_muons(name, p)}
    experts, width, d = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
    assert parts["layers.0.ffn.experts.w13"] == [(2 * experts, width, d)]
    assert parts["layers.0.ffn.experts.w2"] == [(experts, d, width)]
    assert parts["layers.0.attn.wo_a.weight"] == [(2, 32, 128)]  # o_groups
    assert parts["layers.1.attn.compressor.wkv.weight"] == [(2, 64, d)]  # CSA's own and next window's half
    assert parts["layers.2.attn.compressor.wkv.weight"] == [(1, 64, d)]  # HCA has one
    assert parts["layers.1.attn.indexer.compressor.wgate.weight"] == [(2, 32, d)]
    assert parts["layers.1.hc_attn_fn"] == [(2, 4, 4 * d), (1, 16, 4 * d)]
    assert parts["layers.1.attn.wq_b.weight"] == [(1, 256, 32)]


def test_a_training_step_moves_each_expert_by_its_own_gradient_alone():
    work = trainer(weight_decay=0.0, warmup_steps=0)
    bank = work.model.layers[1].ffn.experts.w2
    before = bank.detach().clone()
    result = work.step()
    moved = (before - bank.detach()) / result.learning_rate
    for expert in range(4):  # the clipped gradient's scale does not matter
        expected = formula(bank.grad[expert]) * GAMMA * 16**0.5
        assert (moved[expert] - expected).norm() <= 1e-3 * expected.norm()


def test_adamw_takes_the_rest_by_its_formula():
    work = trainer(warmup_steps=0)
    weight = work.model.embed.weight
    w, m, v = weight.detach().double(), 0.0, 0.0
    for step in range(3):
        rate, g = work.step().learning_rate, weight.grad.double()
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g.square()
        made = m / (1 - 0.9 ** (step + 1)) / ((v / (1 - 0.95 ** (step + 1))).sqrt() + 1e-20)
        w = w * (1 - rate * 0.1) - rate * made
        assert (weight.detach() - w).norm() <= 1e-6 * w.norm()


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_a_state_taken_over_goes_on_as_if_it_had_never_stopped(name):
    works = [trainer(optimizer=name) for _ in range(2)]
    works[0].step()
    works[1].model.load_state_dict(works[0].model.state_dict())
    works[1].optimizer.load_state_dict({key: t.clone() for key, t in works[0].optimizer.state_dict().items()})
    works[1].steps_done = 1
    results = [work.step() for work in works]
    assert results[0].loss == results[1].loss
    assert all(torch.equal(a, b) for a, b in zip(*(work.model.parameters() for work in works), strict=True))


def test_a_state_of_another_model_is_refused():
    work, other = trainer(), trainer(small(hidden_size=32))
    other.step()
    with pytest.raises(CheckpointError, match=r"does not belong to this model and optimizer \(muon\)"):
        work.optimizer.load_state_dict(other.optimizer.state_dict())


def test_the_cpu_chip_refuses_other_formats_than_fp32():
    with pytest.raises(NotSupported, match="no orthogonalize in float64"):
        CPU.orthogonalize(torch.zeros(1, 4, 4, dtype=torch.float64))
