"""What needs a real accelerator: skipped, with the reason, where there is none."""

import pytest
import torch
from models import nano, random_ids, vivid_model

from anychip.chips import list_chips, open_chip
from anychip.gap.bundle import Bundle
from anychip.gap.numerics import record_ops
from anychip.gap.subject import Settings, Subject
from anychip.ops import Ops
from anychip.text.tokenizer import open_tokenizer


@pytest.fixture(params=["cuda", "npu"])
def chip(request):
    reason = next(status.reason for status in list_chips() if status.name == request.param)
    if reason:
        pytest.skip(reason)
    return open_chip(request.param)


def test_every_op_is_the_definition_on_equal_inputs(chip):
    weights = {name: value.detach() for name, value in vivid_model(nano(), Ops()).state_dict().items()}
    subject = Subject("nano", nano(), weights, open_tokenizer("anychip-4096"), random_ids(400), (), Settings())
    bundle = Bundle({})
    record_ops(subject, open_chip("cpu:reference"), chip, bundle)
    assert not [row for row in bundle.tables["ops"] if row["op"] != "index_topk" and not row["error"] < 1e-4]


def test_times_are_taken_after_the_device_is_done(chip):
    a = torch.randn(4096, 4096, device=chip.device)
    start = chip.clock()
    for _ in range(20):
        a = a @ a
        a /= a.norm()
    assert chip.clock() - start > 20 * 2 * 4096**3 / 2e15  # no device multiplies fp32 faster than this
