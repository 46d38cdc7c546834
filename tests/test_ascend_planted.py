"""Planted bugs are found: those that people write, and each removed synchronisation of a compiled kernel."""

from collections import Counter

import pytest

pytest.importorskip("triton", reason="needs the extra 'ascend'")
pytest.importorskip("ascendnpuir", reason="needs the extra 'ascend'")

from benchmarks.order_proof import unordered_pairs
from benchmarks.planted_kernel_bugs import TARGET, TOLERANCE, kernels, remove_each_sync, run_planted
from benchmarks.planted_kernels import BUGS, cases

SOURCE = [(name, bug) for name, case in cases().items() for bug in case.bugs]


@pytest.mark.parametrize("name", cases())
def test_a_kernel_without_a_planted_bug_has_no_findings(name: str) -> None:
    findings, error = run_planted(cases()[name], 0)
    assert findings == () and error < TOLERANCE


@pytest.mark.parametrize(("name", "bug"), SOURCE, ids=[f"{name}-{bug}".replace(" ", "-") for name, bug in SOURCE])
def test_a_bug_of_the_source_is_found(name: str, bug: str) -> None:
    findings, error = run_planted(cases()[name], BUGS[bug])
    assert findings or not error < TOLERANCE


def test_each_removed_sync_of_a_kernel_is_found_or_proven_redundant() -> None:
    kernel = next(kernel for kernel in kernels() if kernel.name == "grouped_matmul")
    outcomes = Counter(planted.outcome for planted in remove_each_sync(kernel))
    assert outcomes["found"] > 10 and set(outcomes) <= {"found", "redundant"}, outcomes


def test_the_second_check_sees_a_removed_barrier_too() -> None:
    from anychip.ascend import compile_kernel
    from anychip.ascend.run import run_kernel
    from anychip.ascend.steps import StepLog
    from anychip.kernels.example import signature

    kernel = next(kernel for kernel in kernels() if kernel.name == "rms_norm_forward")
    launch = kernel.launch(kernel.examples[0])
    compiled = compile_kernel(kernel.fn, signature(launch), launch.constants, TARGET)
    log = StepLog()
    run_kernel(compiled, launch.args, launch.grid, observers=(log.observer,))
    steps = log.blocks()[0]
    without = [step for step in steps if not (step.kind == "barrier" and step.pipe == "V")]
    assert not unordered_pairs(steps) and unordered_pairs(without)
