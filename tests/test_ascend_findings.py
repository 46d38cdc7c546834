"""The checker's rules one by one, on kernels a few lines long, and the words of a finding."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="needs the extra 'ascend'")
pytest.importorskip("ascendnpuir", reason="needs the extra 'ascend'")

from finding_cases import add_all, copy_rows, exchange, partial_sum, share_a_row

from anychip.ascend import CompiledKernel, compile_kernel
from anychip.ascend.run import Run, run_kernel

TARGET = "ascend910b"


def compiled(fn, types: dict[str, str], **constants: int) -> CompiledKernel:
    return compile_kernel(fn, types, constants, TARGET)


def copied(rows: int, given: int, block: int = 64) -> Run:
    kernel = compiled(copy_rows, {"x": "*fp32", "y": "*fp32", "n": "i32"}, BLOCK=block)
    return run_kernel(kernel, {"x": torch.ones(given), "y": torch.zeros(rows), "n": rows}, (2,))


def test_a_good_kernel_has_no_findings() -> None:
    assert copied(100, 100).findings == ()


def test_a_read_past_the_end_names_line_bytes_and_argument() -> None:
    (found,) = copied(100, 99).findings
    assert found.kind == "outside_read" and found.place.line.startswith("finding_cases.py:") and found.block == 1
    assert found.place.pipe == "MTE2" or found.place.pipe == "scalar"
    assert "argument x, which has 396 bytes" in found.seen and "clamp the indices" in found.advice


def test_two_programs_that_write_the_same_bytes_race() -> None:
    kernel = compiled(share_a_row, {"x": "*fp32", "y": "*fp32"}, BLOCK=64)
    run = run_kernel(kernel, {"x": torch.ones(256), "y": torch.zeros(256)}, (4,))
    assert [f.kind for f in run.findings] == ["block_race"] and "tl.atomic_add" in run.findings[0].advice


def test_one_program_alone_does_not_race() -> None:
    kernel = compiled(share_a_row, {"x": "*fp32", "y": "*fp32"}, BLOCK=64)
    assert run_kernel(kernel, {"x": torch.ones(64), "y": torch.zeros(64)}, (1,)).findings == ()


def test_atomic_adds_of_several_programs_do_not_race() -> None:
    kernel = compiled(add_all, {"x": "*fp32", "y": "*fp32"}, BLOCK=64)
    args = {"x": torch.ones(256), "y": torch.zeros(64)}
    assert run_kernel(kernel, args, (4,)).findings == () and torch.equal(args["y"], torch.full((64,), 4.0))


def test_what_the_compiler_does_under_a_lock_does_not_race() -> None:
    kernel = compiled(exchange, {"x": "*i32", "y": "*i32"}, BLOCK=64)
    assert "sync_block_lock" in kernel.hivm
    args = {"x": torch.arange(256, dtype=torch.int32), "y": torch.zeros(64, dtype=torch.int32)}
    assert run_kernel(kernel, args, (4,)).findings == ()


def without(kernel: CompiledKernel, op: str) -> CompiledKernel:
    """The kernel with every instruction `op` left out of its program."""
    lines = [line for line in kernel.hivm.splitlines() if f'"hivm.hir.{op}"' not in line]
    return replace(kernel, hivm="\n".join(lines) + "\n")


def test_garbage_that_reaches_an_output_is_found() -> None:
    kernel = compiled(partial_sum, {"x": "*fp32", "y": "*fp32", "n": "i32"}, BLOCK=64)
    args = {"x": torch.ones(40), "y": torch.zeros(1), "n": 40}
    assert run_kernel(kernel, args, (1,)).findings == () and args["y"].item() == 40
    (found,) = run_kernel(without(kernel, "vbrc"), args, (1,)).findings
    assert found.kind == "uninitialised" and "argument y depends on byte 160 of UB" in found.seen


def test_garbage_in_lanes_that_no_output_sees_is_no_fault() -> None:
    kernel = without(compiled(copy_rows, {"x": "*fp32", "y": "*fp32", "n": "i32"}, BLOCK=64), "vbrc")
    run = run_kernel(kernel, {"x": torch.ones(40), "y": torch.zeros(40), "n": 40}, (1,))
    assert run.findings == ()


@pytest.mark.parametrize(("op", "kind"), [("set_flag", "wait_without_set"), ("wait_flag", "flag_left")])
def test_a_missing_half_of_a_flag_is_named(op: str, kind: str) -> None:
    kernel = compiled(copy_rows, {"x": "*fp32", "y": "*fp32", "n": "i32"}, BLOCK=64)
    lines = kernel.hivm.splitlines()
    at = max(i for i, line in enumerate(lines) if f'"hivm.hir.{op}"' in line)
    broken = replace(kernel, hivm="\n".join(lines[:at] + lines[at + 1:]) + "\n")
    run = run_kernel(broken, {"x": torch.ones(64), "y": torch.zeros(64), "n": 64}, (1,))
    assert kind in {f.kind for f in run.findings}


def test_the_same_fault_is_listed_once_with_its_count() -> None:
    kernel = compiled(copy_rows, {"x": "*fp32", "y": "*fp32", "n": "i32"}, BLOCK=64)
    run = run_kernel(kernel, {"x": torch.ones(64), "y": torch.zeros(256), "n": 256}, (4,))
    assert [(f.kind, f.count) for f in run.findings] == [("outside_read", 3)]
    assert "3 times" in run.findings[0].text() and run.findings[0].to_json()["kernel"] == "copy_rows"
