"""The CPU chip's ops against the references that define them: results, gradients, and what all of them refuse."""

import pytest
import torch
from cpu_ops_cases import assert_close, cases, results

from anychip.chips.cpu.ops import CpuOps
from anychip.errors import NotSupported
from anychip.ops import Ops

NAMES = sorted(cases())


@pytest.fixture(scope="module")
def cpu():
    return CpuOps()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tokens", [1, 5, 45, 300])
def test_results_and_gradients_are_the_references(cpu, name, tokens):
    call, tensors = cases(tokens)[name]
    assert_close(results(cpu, call, tensors), results(Ops(), call, tensors))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tokens", [1, 7, 45])
def test_results_without_gradients_are_the_references(cpu, name, tokens):
    call, tensors = cases(tokens)[name]
    with torch.no_grad():
        found, wanted = call(cpu, *tensors), call(Ops(), *tensors)
    assert_close([found] if torch.is_tensor(found) else found, [wanted] if torch.is_tensor(wanted) else wanted)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_call_twice_is_the_same_to_the_bit(cpu, name):
    call, tensors = cases(300)[name]
    once, again = results(cpu, call, tensors), results(cpu, call, tensors)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_that_come_without_strides_are_read_as_they_are(cpu, name):
    call, tensors = cases()[name]
    leaves = [t.clone().requires_grad_() for t in tensors]
    out = call(cpu, *leaves)
    out = out if isinstance(out, tuple) else (out,)
    expanded = torch.autograd.grad(out, leaves, [torch.ones(()).expand(o.shape) for o in out], retain_graph=True)
    filled = torch.autograd.grad(out, leaves, [torch.ones(o.shape) for o in out])
    assert_close(expanded, filled, 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_strided_inputs_are_read_as_they_are(cpu, name):
    call, tensors = cases()[name]
    strided = [torch.stack((t, -t), -1)[..., 0] for t in tensors]
    with torch.no_grad():
        found, wanted = call(cpu, *strided), call(cpu, *tensors)
    assert_close([found] if torch.is_tensor(found) else found, [wanted] if torch.is_tensor(wanted) else wanted)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "embed"])
def test_nan_in_the_input_stays_visible(cpu, name):
    call, tensors = cases()[name]
    broken = tensors[0].clone()
    broken[1] = float("nan")
    with torch.no_grad():
        out = call(cpu, broken, *tensors[1:])
    out = out if isinstance(out, tuple) else (out,)
    with torch.no_grad():
        wanted = call(Ops(), broken, *tensors[1:])
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    assert any(o.isnan().any() for o in out)
    assert all(torch.equal(o.isnan(), w.isnan()) for o, w in zip(out, wanted, strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_number_formats_are_refused_by_name(cpu, name, dtype):
    call, tensors = cases()[name]
    with pytest.raises(NotSupported, match=str(dtype).removeprefix("torch.")):
        call(cpu, *(t.to(dtype) for t in tensors))


@pytest.mark.parametrize("name", NAMES)
def test_no_tokens_give_empty_results_and_zero_gradients(cpu, name):
    call, tensors = cases(0)[name]
    if name.startswith("compress"):  # pools windows of rows: none are closed
        tensors = [tensors[0][:0], tensors[1][:0], tensors[2]]
        empty = torch.empty(0, dtype=torch.int32)
        call = lambda o, v, g, a: o.compress(v, g, a, empty, empty if name == "compress_csa" else None)  # noqa: E731
    *outs, = results(cpu, call, tensors)
    assert outs[0].shape[0] == 0
    assert all(not grad.any() for grad in outs[-len(tensors):])
