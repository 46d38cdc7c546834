"""The suite on Ascend, without one: it compiles for every chip, runs clean and as exactly as its formats allow."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="kernels are written in Triton")
pytest.importorskip("ascendnpuir", reason="Huawei's compiler comes with anychip[ascend]")

from anychip.ascend.check import check_example  # noqa: E402
from anychip.ascend.compile import compile_kernel  # noqa: E402
from anychip.ascend.targets import find_target, list_targets  # noqa: E402
from anychip.errors import KernelError  # noqa: E402
from anychip.kernels import suite as suites  # noqa: E402
from anychip.kernels.example import is_jit, signature  # noqa: E402

CASES = [(kernel, example) for kernel in suites.suite() for example in kernel.examples]
# One example of each file: `anychip kernels check` runs all of them, and continuous integration runs it as a gate.
FIRST = list({kernel.fn.fn.__module__: (kernel, kernel.examples[0]) for kernel, _ in reversed(CASES)}.values())
FOLDER = Path(suites.__file__).parent


def _refused(target):
    """Every example that does not compile, with the reason; two compilers at a time."""
    def tried(case):
        kernel, example = case
        launch = kernel.launch(example)
        try:
            compile_kernel(kernel.fn, signature(launch), launch.constants, target)
        except KernelError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(2) as pool:
        return {f"{k.name}-{e.name}": text for (k, e), text in zip(CASES, pool.map(tried, CASES), strict=True) if text}


def test_every_file_with_examples_is_in_the_suite():
    with_examples = {path.stem for path in FOLDER.glob("*.py") if "\n@example(" in path.read_text()}
    assert with_examples == set(suites.TOPICS)


def test_every_kernel_has_a_name_of_its_own_and_a_reference():
    names = [kernel.name for kernel in suites.suite()]
    assert len(names) == len(set(names)) >= 25
    assert all(is_jit(kernel.fn) and example.reference for kernel, example in CASES)


@pytest.mark.parametrize(("kernel", "example"), FIRST, ids=[f"{k.name}-{e.name}" for k, e in FIRST])
def test_it_runs_clean_exactly_and_as_the_native_path_on_910b(kernel, example):
    checked = check_example(kernel, example, "ascend910b")
    assert checked.status == "pass", (checked.error, checked.native_error, checked.findings,
                                      [p.reason for p in (*checked.outputs.values(), *checked.native.values())])
    assert set(checked.outputs) == set(kernel.launch(example).outputs)
    assert not checked.native_error and set(checked.native) == set(checked.outputs)


def test_the_chips_of_a_generation_differ_in_cores_alone():
    """So one target of each generation stands for the others in the tests above."""
    for name in ("ascend910b", "ascend910c", "ascend950"):
        like = find_target(name)
        same = [t for t in list_targets() if t.arch == like.arch and t.is_950 == like.is_950]
        spaces = ("ub", "l1", "l0a", "l0b", "l0c")
        assert all([t.memory_bytes(s) for s in spaces] == [like.memory_bytes(s) for s in spaces] for t in same)


@pytest.mark.parametrize("target", ["ascend910c", "ascend950"])
def test_every_example_compiles(target):
    assert not _refused(target)
