"""One training step: what the losses are, what moves and by how much, and when a step is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from models import random_ids
from train_cases import OneBatch, settings, small, trainer

from anychip.errors import InputError
from anychip.model import Layout
from anychip.parallel.placement import RouterLoads
from anychip.train import Diverged, mean_loss, unigram_loss
from anychip.train.trainer import balance, score_routed


def test_loss_falls_on_one_batch():
    work = trainer(steps=25, mtp_weight=0.3, learning_rate=1e-2, optimizer="adamw")
    work.batches = OneBatch(2, 24)
    results = [work.step() for _ in range(25)]
    assert results[0].loss == pytest.approx(math.log(4096), abs=0.1)
    assert results[-1].loss < results[0].loss - 1
    assert results[-1].mtp_loss < results[0].mtp_loss - 0.5
    assert [r.step for r in results] == list(range(25)) and results[0].tokens == 48


def test_losses_are_the_cross_entropies_of_next_and_second_next_token():
    work = trainer()
    inputs, targets = work.batches.at(0)
    loss, mtp_loss = work.losses(inputs, targets)
    layout = Layout.whole([24, 24])
    hidden = work.model(inputs.flatten(), layout)
    ahead = work.model.predict_next(hidden.streams_Tnd, targets.flatten(), layout)
    torch.testing.assert_close(loss, F.cross_entropy(work.model.logits(hidden.hidden_Td), targets.flatten()))
    logits = work.model.logits(ahead).view(2, 24, -1)[:, :-1]  # the last position's target is beyond the batch
    torch.testing.assert_close(mtp_loss, F.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten()))


def test_mtp_weight_scales_the_gradient_of_the_mtp_block():
    def gradient(weight):
        work = trainer(mtp_weight=weight, balance_weight=0.0, clip_norm=1e9)
        work.step()
        return work.model.mtp[0].e_proj.weight.grad

    torch.testing.assert_close(gradient(0.6), 2 * gradient(0.3), rtol=1e-4, atol=1e-9)
    assert gradient(0.0) is None


def test_packed_sequences_of_a_batch_do_not_see_each_other():
    work = trainer()
    inputs, targets = work.batches.at(0)
    both, _ = work.losses(inputs, targets)
    alone = [work.losses(inputs[i : i + 1], targets[i : i + 1])[0] for i in range(2)]
    torch.testing.assert_close(both, sum(alone) / 2)


def test_rate_warms_up_then_falls_by_a_cosine_to_its_share():
    plan = settings(steps=101, warmup_steps=10, learning_rate=2.0, min_rate=0.1, decay_from=0.0)
    assert [plan.rate(step) for step in (0, 4, 9, 10)] == pytest.approx([0.2, 1.0, 2.0, 2.0])
    assert plan.rate(55) == pytest.approx(2.0 * 0.55)
    assert plan.rate(100) == pytest.approx(0.2)
    assert {settings(min_rate=1.0).rate(step) for step in range(6)} == {3e-3}


def test_a_step_uses_the_rate_of_its_number():
    work = trainer(warmup_steps=3, learning_rate=3e-3)
    assert [work.step().learning_rate for _ in range(3)] == pytest.approx([1e-3, 2e-3, 3e-3])


def test_rate_stays_constant_until_its_share_of_the_steps():
    plan = settings(steps=101, warmup_steps=10, learning_rate=2.0, decay_from=0.5)
    assert {plan.rate(step) for step in range(10, 51)} == {2.0} and plan.rate(51) < 2.0
    assert plan.rate(100) == pytest.approx(0.2)
    assert [plan.mtp_weight_at(step) for step in (0, 49, 50, 100)] == pytest.approx([0.3, 0.3, 0.1, 0.1])


def test_gradient_is_clipped_to_the_norm():
    work = trainer(clip_norm=1e-3)
    result = work.step()
    norm = torch.stack([p.grad.norm() for p in work.model.parameters() if p.grad is not None]).norm()
    assert result.grad_norm > 0.1 and float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_balance_raises_the_bias_of_idle_experts_and_lowers_that_of_busy_ones():
    model = trainer().model
    for layer in score_routed(model):
        layer.chosen = torch.tensor([[0, 1], [0, 1], [0, 2], [1, 0]])  # loads 4, 3, 1, 0; mean 2
    loads = RouterLoads()
    loads.add(model)
    balance(loads.of_layers(), 1e-3)
    biases = [layer.gate.bias for layer in score_routed(model)]
    assert len(biases) == 3  # two of the three layers, and the MTP block
    for bias in biases:
        torch.testing.assert_close(bias, torch.tensor([-1e-3, -1e-3, 1e-3, 1e-3]))


def test_a_step_moves_every_visited_router_bias_by_the_speed():
    work = trainer(bias_speed=1e-2)
    work.step()
    for layer in score_routed(work.model):
        assert set(layer.gate.bias.tolist()) <= {0.0, *torch.tensor([0.01, -0.01]).tolist()}
        assert layer.gate.bias.abs().max() > 0


def test_balance_evens_out_the_load():
    def spread(speed):
        work = trainer(steps=16, bias_speed=speed, learning_rate=1e-5, optimizer="adamw")
        with torch.no_grad():
            for layer in score_routed(work.model):
                layer.gate.bias.copy_(torch.tensor([0.15, 0.0, 0.0, -0.15]))  # far beyond the spread of scores
        for _ in range(16):
            work.step()
        work.losses(*work.batches.at(99))
        loads = [torch.bincount(layer.chosen.flatten(), minlength=4) for layer in score_routed(work.model)]
        return max(int(load.max() - load.min()) for load in loads)

    assert spread(0.02) < spread(0.0)


def test_a_step_with_a_loss_that_is_not_finite_is_refused_and_changes_nothing():
    work = trainer()
    work.step()
    with torch.no_grad():
        work.model.norm.weight[0] = math.nan
    before = {name: tensor.clone() for name, tensor in work.model.state_dict().items()}
    with pytest.raises(Diverged, match=r"at step 1: loss is nan, MTP loss is [\d.]+|at step 1: loss is nan"):
        work.step()
    after = work.model.state_dict()
    assert work.steps_done == 1
    assert all(torch.equal(before[name].nan_to_num(), after[name].nan_to_num()) for name in before)


def test_settings_that_cannot_train_are_refused_with_all_reasons():
    with pytest.raises(InputError, match=r"steps=0 .*; length=-1 .*; min_rate=2 .*; learning_rate=nan .*"):
        settings(steps=0, length=-1, learning_rate=math.nan, min_rate=2)


def test_mtp_loss_without_an_mtp_block_is_refused():
    with pytest.raises(InputError, match="mtp_weight=0.3, but this model has no MTP block"):
        trainer(small(num_nextn_predict_layers=0, compress_ratios=(0, 4, 128)))


def test_mean_loss_is_the_mean_over_windows_that_do_not_overlap():
    model, ids = trainer().model, random_ids(61)
    with torch.no_grad():
        losses = [F.cross_entropy(model.logits(model(part, Layout.whole([len(part)])).hidden_Td), nexts,
                                  reduction="sum")
                  for part, nexts in zip(ids[:-1].split(16), ids[1:].split(16), strict=True)]
    assert mean_loss(model, ids, 16, batch=2) == pytest.approx(float(sum(losses)) / 60, rel=1e-5)


def test_unigram_loss_of_equal_counts_is_log_of_the_vocabulary():
    assert unigram_loss(torch.arange(8), torch.tensor([0, 3, 5]), 8) == pytest.approx(math.log(8))
    skewed = torch.tensor([0, 0, 0, 0, 0, 0, 1])  # plus one each: 7/9 and 2/9
    assert unigram_loss(skewed, torch.tensor([0, 0, 1]), 2) == pytest.approx(-(math.log(7 / 9) + math.log(2 / 9)) / 2)
