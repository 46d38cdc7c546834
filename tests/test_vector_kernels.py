"""The vector kernels in Triton's interpreter: examples against float64, ops and gradients against their definitions.

TRITON_INTERPRET must be set before triton is imported and would change other tests' kernels, so these tests run in
a process of their own, which the last test starts.
"""

import importlib
import os
import subprocess
import sys

import pytest
import torch
import vector_kernel_cases as cases

pytest.importorskip("triton", reason="kernels are written in Triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the process that the last test starts")
TOPICS = "norm rope swiglu hyper_mix hyper_streams".split()


@interpreted
@pytest.mark.parametrize("topic", TOPICS)
def test_every_example_agrees_with_its_float64_reference(topic):
    from anychip.kernels import find_kernels

    kernels = find_kernels(importlib.import_module(f"anychip.kernels.{topic}"))
    assert kernels
    for kernel in kernels:
        for example in kernel.examples:
            launch = kernel.launch(example, seed=1)
            want = example.reference(cases.in_float64(launch))
            kernel.fn[launch.grid](**launch.args, **launch.constants)
            assert set(want) == set(launch.outputs)
            for name in launch.outputs:
                cases.close(launch.args[name], want[name], f"{kernel.name}/{example.name}: {name}")


@interpreted
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("op", cases.OPS, ids=lambda op: op.__name__)
def test_every_op_and_its_gradients_equal_the_definition(op, dtype):
    kernel, reference, inputs = op(torch.Generator().manual_seed(3), dtype)
    got = cases.with_gradients(kernel, inputs, dtype)
    want = cases.with_gradients(reference, cases.in_float32(inputs), dtype)
    assert got.keys() == want.keys()
    for name in want:
        cases.close(got[name], want[name], name, dtype)


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_the_kernels_hold_in_tritons_interpreter():
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
