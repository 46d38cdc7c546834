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

pytest.importorskip("triton", minversion="3.4", reason="the interpreter of triton-ascend's Triton fails on NumPy 2.4")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the process that the last test starts")
TOPICS = "add norm norm_grad rope swiglu hyper_mix hyper_streams route compress loss formats optimizer".split()


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


@interpreted
def test_adamw_takes_torchs_steps():
    from anychip.kernels.optimizer import AdamW, adamw_step

    g = torch.Generator().manual_seed(0)
    want = torch.randn(3, 700, generator=g)
    got, moments = want.clone(), (torch.zeros(3, 700), torch.zeros(3, 700))
    peer = torch.optim.AdamW([want], lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    for step in range(1, 4):
        want.grad = torch.randn(3, 700, generator=g)
        peer.step()
        adamw_step(cases.LAUNCH, got, want.grad, moments, AdamW(1e-2, (0.9, 0.999), 1e-8, 0.1, step))
    torch.testing.assert_close(got, want, rtol=2e-6, atol=2e-7)


@interpreted
@pytest.mark.parametrize("block", ((1, 128), (128, 128)), ids=str)
def test_fp8_bytes_are_the_definitions(block):
    from anychip.kernels.formats import dequantize_fp8, quantize_fp8
    from anychip.ops import formats

    x = torch.randn(150, 200, generator=torch.Generator().manual_seed(0)) * torch.logspace(-9, 9, 200)
    got, want = quantize_fp8(cases.LAUNCH, x, block), formats.quantize_fp8(x, block)
    assert torch.equal(got.codes.view(torch.int8), want.codes.view(torch.int8))
    assert torch.equal(got.scale.view(torch.int8), want.scale.view(torch.int8))
    assert torch.equal(dequantize_fp8(cases.LAUNCH, got, block), formats.dequantize_fp8(*want, block))


@interpreted
def test_fp4_reads_as_the_definition():
    from anychip.kernels.formats import dequantize_fp4
    from anychip.ops import formats

    stored = formats.quantize_fp4(torch.randn(7, 96, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(dequantize_fp4(cases.LAUNCH, stored), formats.dequantize_fp4(*stored))


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_the_kernels_hold_in_tritons_interpreter():
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
