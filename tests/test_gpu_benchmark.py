"""The GPU's benchmark, as far as it can be tried without a GPU."""

import importlib.util
import os
from types import SimpleNamespace

import pytest
import torch

from anychip.errors import KernelError
from anychip.kernels.example import Example, Kernel, Launch
from benchmarks import gpu


def test_without_a_gpu_it_refuses_and_says_what_is_missing(capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has an NVIDIA GPU")
    assert gpu.main() == 2
    assert "needs an NVIDIA GPU: torch sees no cuda device" in capsys.readouterr().err


def double(x, y, n):
    """What fits a launch: parameters x, y, n."""


def kernel(off=0.0):
    def inputs(seed):
        return Launch({"x": torch.arange(1.0, 9.0), "y": torch.zeros(8), "n": 8}, (1,), {}, ("y",))

    def reference(a):
        return {"y": 2 * a["x"]}

    def launch(fn, grid, args, constants):
        args["y"].copy_(2 * args["x"] + off)

    fn = SimpleNamespace(fn=double)
    return Kernel("double", fn, (Example("small", inputs, reference),)), launch


@pytest.mark.parametrize("off, wrong", [(0.0, False), (0.01, True), (float("nan"), True)])
def test_each_example_gives_an_error_and_a_time(off, wrong):
    made, launch = kernel(off)
    rows = list(gpu.kernel_rows([made], launch, torch.device("cpu"), lambda call: [2e-6, 1e-6, 3e-6]))
    assert [line["what"] for line in rows] == ["double/small error", "double/small time"]
    assert rows[0]["wrong"] is wrong and rows[1]["value"] == 2.0 and rows[1]["unit"] == "us"
    assert (rows[1]["low"], rows[1]["high"], rows[1]["n"]) == (1.0, 3.0, 3)


def test_a_kernel_that_does_not_run_is_a_wrong_row_with_its_reason():
    def launch(fn, grid, args, constants):
        raise KernelError("it does not fit")

    (line,) = gpu.kernel_rows([kernel()[0]], launch, torch.device("cpu"), lambda call: [1.0])
    assert line["wrong"] and line["reason"] == "it does not fit"


@pytest.mark.skipif(importlib.util.find_spec("ascendnpuir") is None or os.environ.get("TRITON_INTERPRET") == "1",
                    reason="needs pip install 'anychip[ascend]', and Triton not in interpreter mode")
def test_every_timed_op_has_kernels_and_arguments_that_fit():
    from anychip.ascend import find_target
    from anychip.ascend.timed_launch import TimedLauncher
    from anychip.kernels.ops import KernelOps

    ops = KernelOps(TimedLauncher(find_target("ascend910b")))
    calls = gpu.op_calls(64, experts=2)
    assert all(ops.attempt(name, *arguments) is not NotImplemented for name, arguments in calls)
    assert len(ops.launch.times) > len(calls)
