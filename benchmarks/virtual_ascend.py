"""How fast does the virtual Ascend execute kernels, against its prototype in NumPy, on the prototype's own kernels?

Limit: at least 4 times, geometric mean, with all checks on. The prototype is a folder with `kernels.py` (K: name ->
function, signature, constants), `tool.py` (kernel -> HIVM text) and `sim.py` (Program); it needs the extra `ascend`
and `ml_dtypes`. Both sides execute the same HIVM text on the same inputs, in turn, and both outputs are held to a
float64 reference. The prototype's runs include its timeline; so do ours (`recorded`), and `checked` is without it.

    python -m benchmarks.virtual_ascend FOLDER [--rounds 5] [--only matmul,..] [--record]
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anychip.ascend.compile import CompiledKernel, compile_kernel
from anychip.ascend.machine import library
from anychip.ascend.recording import Recording
from anychip.ascend.run import Run, run_kernel

from .rows import append, row
from .virtual_ascend_cases import Case, cases

LIMIT = 4.0
TOLERANCE = 8e-3  # of the largest value: two units in the last place of bf16


def main() -> None:
    """Run the benchmark and print one JSON object last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the prototype's folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="kernels, separated by commas")
    parser.add_argument("--record", action="store_true", help="append rows to results/cpu.jsonl")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    prototype = _Prototype(asked.folder.resolve())
    wanted = asked.only.split(",") if asked.only else list(cases())
    results = [_measure(name, prototype, asked.rounds) for name in wanted]
    ratio = {key: math.exp(statistics.mean(math.log(r["prototype_s"] / r[key]) for r in results))
             for key in ("checked_s", "recorded_s", "plain_s")}
    if asked.record:
        command = f"python -m benchmarks.virtual_ascend FOLDER --rounds {asked.rounds} --record"
        append([{**row("virtual_ascend", f"times faster than the prototype, {key.removesuffix('_s')}",
                        [r["prototype_s"] / r[key] for r in results], "x", f"{len(results)} kernels"),
                 "command": command} for key in ratio])
    print(json.dumps({"kernels": len(results), "right": sum(r["right"] for r in results),
                      "geometric_mean": ratio, "limit": LIMIT, "held": ratio["checked_s"] >= LIMIT}))


class _Prototype:
    """The prototype's modules, imported from its folder; its scratch files go to a temporary folder."""

    def __init__(self, folder: Path) -> None:
        sys.path.insert(0, str(folder))
        self.scratch = tempfile.TemporaryDirectory()
        here = Path.cwd()
        os.chdir(self.scratch.name)  # it writes to ./out when it is imported
        self.kernels, self.tool, self.sim = (importlib.import_module(name) for name in ("kernels", "tool", "sim"))
        os.chdir(here)
        vars(self.tool)["OUT"] = Path(self.scratch.name)

    def hivm(self, name: str) -> str:
        """The kernel's final HIVM for Ascend910B1, without locations (the prototype cannot read them)."""
        function, signature, constants = self.kernels.K[name]
        path, _ = self.tool.linalg(function, signature, constants, name)
        here = Path.cwd()
        os.chdir(self.scratch.name)
        text, errors, *_ = self.tool.hivm(path, extra=self.tool.A2, generic=True)
        os.chdir(here)
        if text is None:
            raise SystemExit(f"{name} does not compile: {errors}")
        return str(text)


def _measure(name: str, prototype: _Prototype, rounds: int) -> dict[str, Any]:
    """Median seconds of each side, and whether both outputs are right."""
    case = cases()[name](torch.Generator().manual_seed(len(name)))
    text = prototype.hivm(name)
    function, signature, constants = prototype.kernels.K[name]
    kernel = replace(compile_kernel(function, signature, constants, "Ascend910B1"), hivm=text)
    program = prototype.sim.Program(text)
    sides: dict[str, Callable[[dict[str, Any]], Any]] = {
        "prototype_s": lambda args: _theirs(program, args, case[1]),
        "checked_s": lambda args: run_kernel(kernel, args, case[1]),
        "recorded_s": lambda args: _recorded(kernel, args, case[1]),
        "plain_s": lambda args: run_kernel(kernel, args, case[1], check=False)}
    times: dict[str, list[float]] = {side: [] for side in sides}
    right, steps = True, 0
    for turn in range(rounds + 1):
        for side, run in sides.items():
            args = _copy(case[0])
            start = time.perf_counter()
            done = run(args)
            if turn:  # the first turn warms up
                times[side].append(time.perf_counter() - start)
            right = right and _is_right(case, args)
            steps = done.steps if isinstance(done, Run) else steps
    result: dict[str, Any] = {side: statistics.median(values) for side, values in times.items()}
    print(f"{name:20} {steps:6} tile ops; tile ops/s: prototype {steps / result['prototype_s']:9,.0f}, checked "
          f"{steps / result['checked_s']:9,.0f} ({result['prototype_s'] / result['checked_s']:6.1f}x), recorded "
          f"{result['prototype_s'] / result['recorded_s']:6.1f}x, plain "
          f"{result['prototype_s'] / result['plain_s']:6.1f}x{'' if right else '  WRONG'}", flush=True)
    return {**result, "right": right}


def _recorded(kernel: CompiledKernel, args: dict[str, Any], grid: tuple[int, ...]) -> Run:
    recording = Recording(library())
    return run_kernel(kernel, args, grid, observers=[recording.observer])


def _theirs(program: Any, args: dict[str, Any], grid: tuple[int, ...]) -> Any:
    return program.run([_array(value) if isinstance(value, torch.Tensor) else value for value in args.values()], grid)


def _array(tensor: torch.Tensor) -> np.ndarray:
    import ml_dtypes

    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _copy(args: dict[str, Any], wide: bool = False) -> dict[str, Any]:
    return {name: (value.double() if wide and value.is_floating_point() else value.clone())
            if isinstance(value, torch.Tensor) else value for name, value in args.items()}


def _is_right(case: Case, args: dict[str, Any]) -> bool:
    for name, wanted in case[2](_copy(case[0], wide=True)).items():
        error = (args[name].double().reshape(-1) - wanted.double().reshape(-1)).abs().max()
        if not error <= TOLERANCE * wanted.double().abs().max():
            return False
    return True


if __name__ == "__main__":
    main()
