"""The seam's ops on the suite's kernels: who serves which op, what is refused, and whole models on virtual Ascends."""

import functools
import importlib.util
import os

import pytest
import torch
from models import nano, random_ids, vivid_model

from anychip.chips import open_chip
from anychip.chips.kernel_calls import made_up, num_tokens
from anychip.chips.virtual import VirtualOps
from anychip.chips.virtual_kernels import KernelVirtualOps, why_not
from anychip.config import load_config
from anychip.errors import KernelError, NotSupported
from anychip.kernels import ops as kernel_ops
from anychip.kernels.launch import TritonLauncher
from anychip.kernels.ops import HOSTS, KernelOps
from anychip.model import Layout
from anychip.ops import Keys, Ops, Ranges
from anychip.ops.seam import COSTS

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("ascendnpuir") is None or os.environ.get("TRITON_INTERPRET") == "1",
    reason="needs pip install 'anychip[ascend]', and Triton not in interpreter mode")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")


def run(ops, preset="nano", length=140):
    with torch.no_grad():
        return vivid_model(load_config(preset), ops)(random_ids(length), Layout.whole([length])).hidden_Td


def error(a, b):
    return float((a - b).square().mean().sqrt() / b.square().mean().sqrt())


class Refusing:
    """A launcher on which nothing runs."""

    family, num_cube, num_vector, keeps_zeros = "ascend", 24, 48, True

    def __call__(self, fn, grid, args, constants, *, warps=4, stages=2):
        raise NotSupported("this launcher runs nothing")


@needs_triton
def test_every_op_of_the_seam_has_a_kernel_and_a_refused_call_is_the_definition_and_says_so():
    ops = KernelOps(Refusing())
    assert HOSTS.keys() == COSTS.keys() and not any(s.startswith("plain") for s in ops.kernels().values())
    x, w = torch.randn(5, 16), torch.randn(8, 16)
    assert torch.equal(ops.linear(x, w), Ops.linear(x, w))
    assert ops.kernels()["linear"] == "matmul.linear; some calls in plain torch: this launcher runs nothing"
    assert ops.kernels()["rms_norm"] == "normalize.rms_norm" and ops.blocks([], x, x, None) is None


@needs_triton
def test_only_the_named_errors_are_served_by_the_definition():
    class Broken(Refusing):
        def __call__(self, *args, **named):
            raise KernelError("it does not compile")

    with pytest.raises(KernelError, match="does not compile"):
        KernelOps(Broken()).linear(torch.randn(5, 16), torch.randn(8, 16))
    assert KernelOps(Broken(), (KernelError,)).linear(torch.randn(5, 16), torch.randn(8, 16)).shape == (5, 8)


def test_without_triton_the_kernels_say_what_to_install(monkeypatch):
    monkeypatch.setattr(kernel_ops.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotSupported, match=r"pip install triton for NVIDIA, pip install 'anychip\[ascend\]'"):
        KernelOps(Refusing())


@needs_triton
def test_a_kernel_that_does_not_fit_a_gpu_is_one_kernel_error():
    class OutOfResources(Exception):
        pass

    class Kernel:
        __name__ = "big"

        def __getitem__(self, grid):
            def start(**named):
                assert named["num_warps"] == 8 and grid == (3,)
                raise OutOfResources("shared memory, required 300000")

            return start

    with pytest.raises(KernelError, match="'big' cannot run on this device: shared memory"):
        TritonLauncher("cuda", 132, 132)(Kernel(), (3,), {}, {}, warps=8)
    TritonLauncher("cuda", 132, 132)(Kernel(), (0,), {}, {})  # an empty grid starts nothing


def test_a_virtual_chip_says_why_no_kernel_runs():
    assert why_not("h100", "bf16") == "kernels are compiled for Ascend chips only"
    assert why_not("ascend910b", "hf32") == "kernels compute in bf16 and fp16; hf32 is emulated"
    emulated = open_chip("virtual:ascend910b@hf32").sources()
    assert emulated["linear"] == "emulated: kernels compute in bf16 and fp16; hf32 is emulated"
    if importlib.util.find_spec("ascendnpuir") is None:
        assert "pip install 'anychip[ascend]'" in open_chip("virtual:ascend910b").sources()["linear"]


@needs_compiler
@pytest.mark.parametrize("name", ["virtual:ascend910b", "virtual:ascend950pr"])
def test_a_model_on_compiled_kernels_is_as_near_to_fp32_as_its_format(name):
    chip, exact = open_chip(name), run(Ops())
    emulated = error(run(VirtualOps(Ops(), "bf16")), exact)
    assert 0 < error(run(chip.ops()), exact) < 1.5 * emulated
    assert_compiled(chip)


@needs_compiler
@pytest.mark.parametrize("preset", ["v32-nano", "qwen3-moe-nano"])
def test_every_call_of_a_family_on_compiled_kernels_is_as_near_to_fp32_as_its_format(preset):
    # call by call: in a whole pass one token that goes to another expert moves all that follow it
    chip = open_chip("virtual:ascend910b")
    beside = Beside(VirtualOps(Ops(), "bf16"), chip.ops())
    run(beside, preset)
    assert len(beside.errors) > 60
    for op, emulated, compiled in beside.errors:
        assert compiled < 1.5 * emulated, op
    assert_compiled(chip)


class Beside(Ops):
    """The definitions; `errors` has (op, first's, second's) of every call with a floating-point result."""

    def __init__(self, first, second):
        self.errors, self.others = [], (first, second)
        for name in COSTS:
            setattr(self, name, functools.partial(self.call, name))

    def call(self, name, *arguments, **named):
        result = getattr(Ops, name)(*arguments, **named)
        exact, *others = (found[-1] if isinstance(found, tuple) else found
                          for found in (result, *(getattr(o, name)(*arguments, **named) for o in self.others)))
        if exact.is_floating_point():
            self.errors.append((name, *(error(other, exact) for other in others)))
        return result


def assert_compiled(chip):
    assert isinstance(chip.ops(), KernelVirtualOps)
    assert all(source.startswith("compiled kernel: ") and "some calls" not in source
               for source in chip.sources().values()), chip.sources()


@needs_compiler
def test_gradients_through_compiled_kernels_follow_the_definitions():
    chip, grads = open_chip("virtual:ascend910b"), []
    for ops in (Ops(), chip.ops()):
        model = vivid_model(nano(), ops)
        ids = random_ids(40)
        hidden = model(ids[:-1], Layout.whole([39])).hidden_Td
        ops.cross_entropy(hidden, model.head.weight, ids[1:]).mean().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    worst = {n: error(grads[1][n], g) for n, g in grads[0].items() if g.abs().max() > 1e-6}
    assert grads[0].keys() <= grads[1].keys() and sorted(worst.values())[len(worst) // 2] < 0.15
    assert all("some calls" not in source for source in chip.sources().values()), chip.sources()


@needs_compiler
def test_simulated_times_are_the_kernels_and_grow_with_the_work():
    chip = open_chip("virtual:ascend910b")
    from anychip.record import Event, Kind

    def timed(tokens, backward=""):
        arguments = (torch.empty(tokens, 512, device="meta"), torch.empty(512, 512, device="meta"), {})
        event = Event("linear" + backward, "", ((tokens, 512), (512, 512)), "bfloat16", 1e9, 1e6, None, Kind.SIMULATED)
        (found,) = chip.simulate([event], [arguments])
        assert found.source == "kernels" and found.kind is Kind.SIMULATED
        return found.time_s

    assert 1e-6 < timed(64) < timed(8192) < timed(65536) < timed(65536, " backward")
    assert 4 < timed(65536) / timed(8192) < 9


@needs_compiler
def test_an_op_whose_kernel_is_refused_keeps_the_roofline_and_the_reason():
    from anychip.record import Event, Kind

    chip = open_chip("virtual:ascend910b")
    value, first = torch.empty(30, 16, device="meta"), torch.empty(10, dtype=torch.int32, device="meta")
    arguments = (value, value, torch.empty(3, 16, device="meta"), first, None, {})  # windows of three tokens
    event = Event("compress", "", ((30, 16),), "float32", 1e6, 1e6, None, Kind.SIMULATED)
    (found,) = chip.simulate([event], [arguments])
    assert found.source.startswith("roofline: ") and "power of two" in found.source and found.time_s > 0


def test_made_up_calls_keep_the_work_of_each_token():
    ranges = Ranges(torch.empty(64, dtype=torch.int32, device="meta"), torch.empty(64, dtype=torch.int32), 640, 16)
    keys = Keys(torch.empty(64, 8, device="meta"), ranges, torch.empty(16, 8, device="meta"),
                torch.empty(64, 5, dtype=torch.int32, device="meta"))
    call = made_up("attention", (torch.empty(64, 2, 8, device="meta"), keys, torch.empty(2, device="meta")), {}, 16)
    query, made, _ = call.arguments
    assert query.shape == (16, 2, 8) and made.window.count.tolist() == [10] * 16 and made.window.num_pairs == 160
    assert int(made.window.start.min()) == 0 and made.selected.tolist() == [[0, 1, 2, 3, 4]] * 16


def test_made_up_grouped_attention_lets_every_token_see_as_many_keys_of_one_sequence():
    seen = Ranges(torch.empty(64, dtype=torch.int32, device="meta"), torch.empty(64, dtype=torch.int32), 2080, 64)
    given = (torch.empty(64, 4, 8, device="meta"), *(torch.empty(64, 2, 8, device="meta") for _ in range(2)), seen, 1.0)
    query, key, _, made, _ = made_up("grouped_attention", given, {}, 16).arguments
    assert query.shape == (16, 4, 8) and key.shape == (32, 2, 8)
    assert made.start.tolist() == [0] * 16 and made.count.tolist() == [32] * 16 and made.max_count == 32


def test_a_made_up_weight_lies_in_memory_as_the_real_one():
    weight = torch.empty(3, 56, 24, device="meta")[:, :40].transpose(1, 2)
    _, made = made_up("grouped_linear", (torch.empty(64, 3, 40, device="meta"), weight), {}, 16).arguments
    assert made.shape == (3, 24, 40) and made.stride() == weight.stride()


def test_made_up_experts_have_as_many_rows_as_the_real_ones():
    banks = (torch.empty(32, 8, 4, device="meta"), torch.empty(32, 4, 4, device="meta"))
    ids = torch.empty(512, 2, dtype=torch.int64, device="meta")
    given = (torch.empty(512, 4, device="meta"), ids, torch.empty(512, 2, device="meta"), banks, 10.0)
    assert num_tokens("experts", given) == 512
    _, ids, _, made, _ = made_up("experts", given, {}, 128).arguments
    assert made[0].shape[0] == 8 and ids.flatten().bincount().tolist() == [1024 // 32] * 8
    loss = made_up("cross_entropy", (torch.empty(8, 4, device="meta"), torch.empty(32768, 4, device="meta"),
                                     torch.empty(8, dtype=torch.int64, device="meta")), {}, 8)
    assert loss.share == 4.0 and loss.arguments[1].shape == (8192, 4)
