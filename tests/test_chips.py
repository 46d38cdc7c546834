"""Chips by name, and what a virtual chip is: real maths in the target's formats, time from its facts."""

import pytest
import torch
from models import nano, random_ids, vivid_model

from anychip.chips import known_names, list_chips, open_chip
from anychip.chips.virtual import VirtualOps
from anychip.errors import ChipError, NotSupported
from anychip.model import Layout
from anychip.ops import Ops
from anychip.ops.recorded import RecordedOps
from anychip.record import Kind, Recorder


def hidden(ops, length=300):
    with torch.no_grad():
        return vivid_model(nano(), ops)(random_ids(length), Layout.whole([length])).hidden_Td


def test_an_unknown_chip_offers_the_nearest_and_all():
    with pytest.raises(ChipError, match="Did you mean 'virtual:ascend910b'.*cpu:reference"):
        open_chip("virtual-ascend910b")
    with pytest.raises(ChipError, match="ascend910b"):
        open_chip("virtual:ascend910x")


def test_a_real_chip_that_is_absent_is_refused_and_never_replaced():
    if torch.cuda.is_available():
        pytest.skip("this machine has an NVIDIA GPU")
    with pytest.raises(ChipError, match="cannot be used here.*anychip doctor"):
        open_chip("cuda")


def test_a_format_that_the_chip_lacks_is_not_supported():
    with pytest.raises(NotSupported, match="no fp8 matrix unit; it has .*bf16"):
        open_chip("virtual:ascend910b@fp8")
    with pytest.raises(NotSupported, match="choose one of bf16"):
        open_chip("virtual:h100@fp7")
    assert open_chip("virtual:h100@fp8").precision == "fp8"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_everything_a_virtual_chip_stores_fits_its_format(precision):
    out = hidden(VirtualOps(Ops(), precision))
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert torch.equal(out, out.to(dtype).float())


def test_coarser_formats_depart_further_from_fp32():
    exact = hidden(Ops())
    error = {p: float((hidden(VirtualOps(Ops(), p)) - exact).square().mean().sqrt() / exact.square().mean().sqrt())
             for p in ("fp32", "hf32", "fp16", "bf16", "fp8", "fp4")}
    assert error["fp32"] == 0.0
    assert 0 < error["hf32"] < error["bf16"] < error["fp8"] < error["fp4"] < 1.5
    assert error["fp16"] < error["bf16"]


def test_gradients_are_rounded_on_their_way_back():
    ops, weight = VirtualOps(Ops(), "bf16"), torch.nn.Parameter(torch.randn(8, 8))
    ops.linear(torch.randn(5, 8), weight).square().sum().backward()
    assert torch.equal(weight.grad, weight.grad.bfloat16().float()) and weight.grad.abs().sum() > 0


def test_simulated_times_follow_the_facts():
    recorder = Recorder()
    model = vivid_model(nano(), Ops())
    model.ops = RecordedOps(Ops(), recorder, Kind.EMULATED)
    with torch.no_grad():
        model(random_ids(64), Layout.whole([64]))
    slow, fast = (open_chip(f"virtual:{name}").simulate(recorder.events) for name in ("ascend910b", "h100"))
    assert len(slow) == len(recorder.events) and all(e.kind is Kind.SIMULATED for e in slow)
    assert sum(e.time_s for e in slow) > sum(e.time_s for e in fast) > 0


def test_every_listed_chip_says_whether_it_can_be_used():
    names = {status.name for status in list_chips()}
    assert {"cpu", "cuda", "npu", "virtual:ascend910c", "virtual:ascend950pr"} <= names <= set(known_names())
    assert all(status.reason or status.name.startswith(("cpu", "virtual")) or torch.cuda.is_available()
               for status in list_chips())
