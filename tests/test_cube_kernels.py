"""The kernels with matrix products in Triton's interpreter: examples against float64, ops against definitions.

They run in a process of their own, which the last test starts: see test_vector_kernels.
"""

import importlib
import os
import subprocess
import sys

import cube_kernel_cases as cube
import pytest
import torch
import vector_kernel_cases as cases

pytest.importorskip("triton", minversion="3.4", reason="the interpreter of triton-ascend's Triton fails on NumPy 2.4")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the process that the last test starts")
TOPICS = ("matmul rows experts attention attention_delta attention_grad grouped grouped_grad indexer muon").split()


def _widened(launch):
    """Two-byte floats as fp32: the interpreter does not multiply bf16, and the tolerances are fp32's."""
    for name, value in launch.args.items():
        if isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16):
            launch.args[name] = value.float()
    return launch


@interpreted
@pytest.mark.parametrize("topic", TOPICS)
def test_every_example_agrees_with_its_float64_reference(topic):
    from anychip.kernels import find_kernels

    kernels = find_kernels(importlib.import_module(f"anychip.kernels.{topic}"))
    assert kernels
    for kernel in kernels:
        for example in kernel.examples:
            launch = _widened(kernel.launch(example, seed=1))
            want = example.reference(cases.in_float64(launch))
            kernel.fn[launch.grid](**launch.args, **launch.constants)
            for name in launch.outputs:
                cases.close(launch.args[name], want[name], f"{kernel.name}/{example.name}: {name}")


@interpreted
@pytest.mark.parametrize("op", cube.OPS, ids=lambda op: op.__name__)
def test_every_op_and_its_gradients_equal_the_definition(op):
    kernel, reference, inputs = op(torch.Generator().manual_seed(3))
    got = cases.with_gradients(kernel, inputs, torch.float32)
    want = cases.with_gradients(reference, inputs, torch.float32)
    assert got.keys() == want.keys()
    for name in want:
        cases.close(got[name], want[name], name)


@interpreted
@pytest.mark.parametrize("shape", ((20, 33), (2, 33, 20)), ids=str)
def test_muon_takes_the_reports_newton_schulz_steps(shape, monkeypatch):
    from anychip.kernels import muon

    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)  # the interpreter does not multiply bf16
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    got = muon.orthogonalize(cases.LAUNCH, matrix)
    x = matrix.double() / torch.linalg.vector_norm(matrix.double(), dim=(-2, -1), keepdim=True)
    for a, b, c in ((3.4445, -4.7750, 2.0315),) * 8 + ((2.0, -1.5, 0.5),) * 2:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    cases.close(got, x, "orthogonalised")
    assert (torch.linalg.svdvals(got) - 1).abs().max() < 0.1


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_the_kernels_hold_in_tritons_interpreter():
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
