"""Are planted bugs found? Each single synchronisation of ten kernels is removed, and bugs of the source are planted.

Limit: at least 90 % found, or shown to be redundant by a second, independent check (`benchmarks/order_proof.py`:
without it, a path still orders every two conflicting accesses, and the outputs are the same bit for bit). A bug of the
source counts as found by a finding or by an output far from the reference. Prints a table and one JSON object last.

    python -m benchmarks.planted_kernel_bugs [--only matmul,..]
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from anychip.ascend.compile import CompiledKernel, compile_kernel
from anychip.ascend.run import run_kernel
from anychip.ascend.steps import StepLog
from anychip.errors import KernelError
from anychip.kernels.example import TYPES, Example, Kernel, Launch, find_kernels, signature

from .order_proof import unordered_pairs

LIMIT = 0.9
TOLERANCE = 0.2  # of an output; a bug of the source that shows there is off by far more
TARGET = "ascend910b"
KERNELS = {  # ten kernels of every core type: module -> names
    "norm": ("rms_norm_forward",), "norm_grad": ("rms_norm_backward",), "rope": ("norm_rope_forward",),
    "swiglu": ("swiglu_backward",), "loss": ("cross_entropy_forward",), "matmul": ("matmul",),
    "experts": ("grouped_matmul",), "attention": ("attention_forward",), "hyper_mix": ("hyper_mix_forward",),
    "compress": ("compress_forward",),
}
SYNC = re.compile(r'"hivm\.hir\.(set_flag|wait_flag|pipe_barrier|sync_block_set|sync_block_wait)"')


@dataclass(frozen=True)
class Planted:
    """One removed synchronisation and its outcome: `found`, `redundant`, `not executed` or `missed`."""

    kernel: str
    op: str
    line: int
    outcome: str
    how: str


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="kernels, separated by commas")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    wanted = set(asked.only.split(",")) if asked.only else set()
    results: list[Planted] = []
    for kernel in kernels():
        if not wanted or kernel.name in wanted:
            of_kernel = list(remove_each_sync(kernel))
            results += of_kernel
            print(table(of_kernel), flush=True)
    of_source = [planted for planted in plant_in_source() if not wanted or planted.kernel in wanted]
    results += of_source
    print(table(of_source))
    counts = Counter(r.outcome for r in results)
    share = (counts["found"] + counts["redundant"]) / max(len(results), 1)
    print(json.dumps({"planted": len(results), **counts, "share": round(share, 4), "limit": LIMIT,
                      "held": share >= LIMIT}))


def kernels() -> Iterator[Kernel]:
    """Yield the ten kernels."""
    for module, names in KERNELS.items():
        for kernel in find_kernels(importlib.import_module(f"anychip.kernels.{module}")):
            if kernel.name in names:
                yield kernel


@dataclass(frozen=True)
class _Case:
    """One example, compiled, with its outputs and the number of its steps when nothing is removed."""

    compiled: CompiledKernel
    launch: Launch
    outputs: dict[str, torch.Tensor]
    steps: int


def remove_each_sync(kernel: Kernel) -> Iterator[Planted]:
    """Remove each synchronisation of a kernel in turn and say what comes of it.

    The program is that of the kernel's first example; all examples that compile to the same program are run.
    """
    cases = [_case(kernel, example) for example in kernel.examples]
    cases = [case for case in cases if case.compiled.hivm == cases[0].compiled.hivm]
    lines = cases[0].compiled.hivm.splitlines()
    for number, line in enumerate(lines):
        if match := SYNC.search(line):
            without = "\n".join(lines[:number] + lines[number + 1:]) + "\n"
            outcome, how = _judged(cases, without)
            yield Planted(kernel.name, match[1], number + 1, outcome, how)


def plant_in_source() -> Iterator[Planted]:
    """Plant each bug of `benchmarks/planted_kernels.py` and say whether it is found."""
    from .planted_kernels import BUGS, cases

    for name, case in cases().items():
        if (clean := run_planted(case, 0))[0]:
            raise KernelError(f"{name} has findings before anything is planted: {clean[0]}")
        for bug in case.bugs:
            kinds, error = run_planted(case, BUGS[bug])
            how = ", ".join(kinds) or (f"output wrong by {error:.3g}" if not error < TOLERANCE else "")
            yield Planted(name, bug, 0, "found" if how else "missed", how)


def run_planted(case: Any, bug: int) -> tuple[tuple[str, ...], float]:
    """Run a case with a bug; return the kinds of its findings and the largest error of its output."""
    args = case.args()
    types = {name: "*" + TYPES[value.dtype] if isinstance(value, torch.Tensor) else "i32"
             for name, value in args.items()}
    reference = case.reference(args)
    ran = run_kernel(compile_kernel(case.fn, types, {**case.constants, "BUG": bug}, TARGET), args, case.grid)
    error = (args[case.output].double() - reference.double()).abs().max().item()
    return tuple(dict.fromkeys(f.kind for f in ran.findings)), error


def _case(kernel: Kernel, example: Example) -> _Case:
    launch = kernel.launch(example)
    compiled = compile_kernel(kernel.fn, signature(launch), launch.constants, TARGET)
    args, log = _copied(launch), StepLog()
    ran = run_kernel(compiled, args, launch.grid, observers=(log.observer,))
    if ran.findings:
        raise KernelError(f"{kernel.name} has findings before anything is planted: {ran.findings[0].text()}")
    return _Case(compiled, launch, {name: args[name] for name in launch.outputs}, sum(map(len, log.blocks())))


def _judged(cases: list[_Case], without: str) -> tuple[str, str]:
    proofs, executed = [], False
    for case in cases:
        broken = replace(case.compiled, hivm=without)
        args, log = _copied(case.launch), StepLog()
        try:
            ran = run_kernel(broken, args, case.launch.grid, observers=(log.observer,))
        except KernelError as error:
            return "found", f"does not run: {error}"
        if ran.findings:
            return "found", ran.findings[0].kind
        blocks = log.blocks()
        executed |= sum(map(len, blocks)) != case.steps
        same = all(_equal(args[name], out) for name, out in case.outputs.items())
        proofs.append(same and not any(unordered_pairs(block) for block in blocks))
    if not executed:
        return "not executed", "the examples' inputs do not lead there"
    return ("redundant", "every conflicting pair is ordered without it") if all(proofs) else ("missed", "")


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def _copied(launch: Launch) -> dict[str, Any]:
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in launch.args.items()}


def table(results: list[Planted]) -> str:
    """Return the outcomes by kernel and op."""
    outcomes = ("found", "redundant", "not executed", "missed")
    lines = [f"{'kernel':24} {'planted or removed':22}" + "".join(f"{o:>13}" for o in outcomes)]
    for kernel, op in dict.fromkeys((r.kernel, r.op) for r in results):
        counts = Counter(r.outcome for r in results if (r.kernel, r.op) == (kernel, op))
        lines.append(f"{kernel:24} {op:22}" + "".join(f"{counts[o]:13}" for o in outcomes))
    lines += [f"{r.outcome}: {r.kernel}, {r.op} in line {r.line}" for r in results
              if r.outcome not in ("found", "redundant")]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
