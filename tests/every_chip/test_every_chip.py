"""What holds on every chip that this machine can open: real ones that are here, and every virtual one."""

import pytest
import torch
from models import nano, random_ids, vivid_model

from anychip.chips import list_chips, open_chip
from anychip.gap.proof import EXPLAINED
from anychip.model import Layout, State
from anychip.ops import Ops
from anychip.text.batches import TokenBatches
from anychip.train import Trainer, TrainSettings

NAMES = [status.name for status in list_chips() if not status.reason]


@pytest.fixture(scope="module")
def reference():
    with torch.no_grad():
        return vivid_model(nano(), Ops())(random_ids(200), Layout.whole([200])).hidden_Td


@pytest.fixture(params=NAMES)
def chip(request):
    return open_chip(request.param)


def test_the_model_is_the_definition_within_the_chips_format(chip, reference):
    model = vivid_model(nano(), chip.ops()).to(chip.device)
    with torch.no_grad():
        hidden = model(random_ids(200).to(chip.device), Layout.whole([200])).hidden_Td.cpu()
    error = (hidden - reference).square().mean().sqrt() / reference.square().mean().sqrt()
    assert error <= 10 * EXPLAINED[chip.precision]  # ten sub-layers, each at most one op's worth


def test_decode_continues_what_prefill_began(chip):
    model, ids = vivid_model(nano(), chip.ops()).to(chip.device), random_ids(140).to(chip.device)
    state = State(nano(), 140, chunk=136, device=chip.device)
    with torch.no_grad():
        whole = model(ids, Layout.whole([140])).hidden_Td[136:]
        model(ids[:136], Layout((0,), (136,)), state)
        steps = torch.cat([model(ids[i : i + 1], Layout((i,), (1,)), state).hidden_Td for i in range(136, 140)])
    assert (steps - whole).square().mean().sqrt() <= 10 * EXPLAINED[chip.precision] * whole.square().mean().sqrt()


def test_two_training_steps_lower_the_loss(chip):
    settings = TrainSettings(steps=4, batch=2, length=24, seed=0, learning_rate=3e-3, warmup_steps=1)
    trainer = Trainer(vivid_model(nano(), chip.ops()), chip, TokenBatches(random_ids(60), 2, 24, 0), settings)
    losses = [trainer.step().loss for _ in range(4)]
    assert all(loss == loss for loss in losses) and losses[-1] < losses[0]
