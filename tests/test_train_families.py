"""Families beside DeepSeek-V4 train by the same trainer: what each has, and what is refused where it has not."""

import pytest
import torch
from train_cases import OneBatch

from anychip.chips import open_chip
from anychip.config import load_config
from anychip.errors import InputError
from anychip.model import Layout, Transformer, initialize
from anychip.train import Trainer
from anychip.train.objective import balance_loss
from anychip.train.recipe import make_settings

PRESETS = ("v3-nano", "v32-nano", "glm5-nano", "qwen3-moe-nano")


def trainer(preset, **given):
    chip, config = open_chip("cpu:reference"), load_config(preset)
    asked = {"steps": 6, "batch": 2, "length": 96, "warmup_steps": 1} | given
    model = Transformer(config, chip.ops())
    initialize(model, 0)
    plan = make_settings(preset, None, asked, family=config.family)
    return Trainer(model, chip, OneBatch(plan.batch, plan.length), plan)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_family_learns_by_its_own_recipe(preset):
    work = trainer(preset)
    results = [work.step() for _ in range(6)]
    assert results[-1].loss < results[0].loss - 0.5
    config, last = work.model.config, results[-1]
    assert (last.mtp_loss is not None) == (config.num_nextn_predict_layers > 0)
    assert (last.indexer_loss is not None) == (preset in ("v32-nano", "glm5-nano"))
    layers = work.placement.loads()
    assert last.balance_loss == pytest.approx(len(layers), rel=0.6)  # 1 a layer where the load is even
    moved = [layer.gate.bias for layer, _ in layers if layer.gate.bias is not None]
    assert all(bias.abs().max() > 0 for bias in moved) and (not moved) == (preset == "qwen3-moe-nano")


def test_a_router_without_a_bias_is_balanced_over_the_micro_batch():
    work = trainer("qwen3-moe-nano", micro_batches=2)
    batch = work._batch(0)
    losses = work.placement.step(batch, work.objective)
    wanted = 0.0
    for part in batch.split(2):
        work.model(part.inputs_BL.flatten(), part.layout)
        wanted += sum(balance_loss(layer.scores.detach(), Layout.whole([96]), layer.topk) for layer, _ in
                      work.placement.loads()) / 2
    assert losses.named["balance_loss"].item() == pytest.approx(float(wanted), rel=1e-6)
    gate = next(layer.gate for layer, _ in work.placement.loads())
    assert torch.isfinite(gate.weight.grad).all()


def test_settings_for_parts_that_a_model_does_not_have_are_refused_together():
    with pytest.raises(InputError, match=r"mtp_weight=0.3, but this model has no MTP .*; indexer_steps=2, but a "
                                         r"qwen3-moe model has no indexer: set indexer_steps=0"):
        trainer("qwen3-moe-nano", mtp_weight=0.3, indexer_steps=2)
