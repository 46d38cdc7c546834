"""Kernels' examples: what they hold, what they refuse, and how they are found. Runs with any Triton."""

import sys

import pytest
import torch

from anychip.errors import InputError, KernelError, NotSupported
from anychip.kernels import Launch, find_kernels
from anychip.kernels.example import example, signature

SOURCE = '''
import torch
import triton
import triton.language as tl
from anychip.kernels import Launch, example


def tail(seed):
    x = torch.randn(100, generator=torch.Generator().manual_seed(seed))
    return Launch({"n": 100, "x": x, "y": torch.empty(100)}, grid=(2,), outputs=("y",))


@example(tail, lambda a: {"y": 2 * a["x"]})
@triton.jit
def double(x, y, n, BLOCK: tl.constexpr = 64):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, 2 * tl.load(x + i, mask=i < n), mask=i < n)


@triton.jit
def without_example(x):
    tl.store(x, 1.0)
'''


def written(tmp_path, text=SOURCE):
    path = tmp_path / "mine.py"
    path.write_text(text)
    return path


def test_a_launch_names_every_fault_at_once():
    with pytest.raises(InputError) as error:
        Launch({"x": torch.zeros(4, 4).T, "s": "a"}, grid=(0,), constants={"x": 1}, outputs=("y",))
    for words in ("'x' is not contiguous", "'s' is a str", "grid=(0,)", "x stands in args and in constants",
                  "output 'y' is not a tensor among args"):
        assert words in str(error.value)


def test_the_signature_follows_the_arguments():
    launch = Launch({"a": torch.zeros(1, dtype=torch.bfloat16), "b": torch.zeros(1, dtype=torch.int64), "n": 3,
                     "big": 2**31, "s": 0.5, "on": True}, (1,), outputs=("a",))
    assert signature(launch) == {"a": "*bf16", "b": "*i64", "n": "i32", "big": "i64", "s": "fp32", "on": "i1"}


def test_an_example_stands_above_jit():
    with pytest.raises(InputError, match="on the line before @triton.jit"):
        example(lambda seed: None)(len)


def test_kernels_of_a_file_are_those_with_examples(tmp_path):
    pytest.importorskip("triton", reason="kernels are written in Triton")
    (kernel,) = find_kernels(written(tmp_path))
    assert kernel.name == "double" and [e.name for e in kernel.examples] == ["tail"]
    launch = kernel.launch(kernel.examples[0], 3)
    assert list(launch.args) == ["x", "y", "n"] and launch.constants == {"BLOCK": 64}
    again = kernel.launch(kernel.examples[0], 3)
    assert torch.equal(launch.args["x"], again.args["x"])


def test_examples_are_found_below_autotune_and_beside_neighbours(tmp_path):
    pytest.importorskip("triton", reason="kernels are written in Triton")
    (tmp_path / "neighbour.py").write_text("SIZE = 100\n")
    tuned = "@triton.autotune(configs=[triton.Config({'BLOCK': 64})], key=['n'])\n@triton.jit\ndef double"
    text = "import neighbour\n" + SOURCE.replace("@triton.jit\ndef double", tuned)
    before = list(sys.path)
    (kernel,) = find_kernels(written(tmp_path, text))
    assert kernel.launch(kernel.examples[0]).constants == {"BLOCK": 64} and kernel.fn.fn.__name__ == "double"
    assert sys.path == before


def test_a_launch_that_does_not_fit_is_refused_with_the_parameters(tmp_path):
    pytest.importorskip("triton", reason="kernels are written in Triton")
    text = SOURCE.replace('"n": 100, "x": x', '"m": 100, "BLOCK": 64, "x": x').replace("= 64)", ")")
    (kernel,) = find_kernels(written(tmp_path, text))
    with pytest.raises(InputError) as error:
        kernel.launch(kernel.examples[0])
    for words in ("'m' is no parameter", "'n' is missing in args", "'BLOCK' belongs in constants"):
        assert words in str(error.value)


def test_a_file_that_does_not_run_is_one_error_with_its_line(tmp_path):
    with pytest.raises(KernelError, match=r"mine.py, line 2: .*: def f\("):
        find_kernels(written(tmp_path, "\ndef f(\n"))
    with pytest.raises(KernelError, match="line 3: ZeroDivisionError"):
        find_kernels(written(tmp_path, "\n\n1 / 0\n"))
    with pytest.raises(NotSupported, match="imports no_such_package, which is not installed"):
        find_kernels(written(tmp_path, "import no_such_package\n"))
    with pytest.raises(InputError, match="there is no file"):
        find_kernels(tmp_path / "none.py")
