"""Is every kernel of the suite right on this GPU, and how fast are the seam's ops by kernels, beside plain torch?

Limits: each output's relative rms error from the float64 reference at most half a unit in the last place of its format
times four (fp32: 1e-5, for long sums); no time limit. Every kernel's examples are checked and timed, then seven ops at
the sizes of v4-flash in bf16, by kernels and by torch. Rows go to results/cuda.jsonl; the last line
printed is one JSON object; the exit code is 1 where an output is wrong, 2 without a GPU.

Run it with `python -m benchmarks.gpu`. Fixed seeds; the first launch compiles; times are medians of `REPEATS` launches
between device events, with the smallest and the largest.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from anychip.chips.torch_device import cuda_ops, missing_cuda
from anychip.errors import AnychipError, KernelError
from anychip.kernels.example import Example, Kernel
from anychip.kernels.launch import Launcher
from anychip.kernels.ops import KernelOps
from anychip.ops import HyperRule, HyperWeights, Keys, Ops, Ranges
from anychip.ops.trees import map_tensors

from .rows import append, row

REPEATS = 20
ALLOWED = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 1e-5}
Timer = Callable[[Callable[[], object]], Sequence[float]]


def main() -> int:
    """Run all checks and timings; see the module."""
    if reason := missing_cuda():
        print(f"benchmarks.gpu needs an NVIDIA GPU: {reason}", file=sys.stderr)
        return 2
    from anychip.kernels.suite import suite

    ops = cuda_ops(torch.cuda.get_device_properties(0).multi_processor_count)
    if not isinstance(ops, KernelOps):
        print("benchmarks.gpu needs triton: pip install triton", file=sys.stderr)
        return 2
    device = torch.device("cuda", 0)
    rows = [*kernel_rows(suite(), ops.launch, device, event_times), *op_rows(ops, device, event_times)]
    about = {"chip": "cuda", "device": torch.cuda.get_device_name(0), "cuda": str(torch.version.cuda)}
    append([{**line, **about} for line in rows], "cuda")
    wrong = [line["what"] for line in rows if line.get("wrong")]
    print(json.dumps({**about, "rows": len(rows), "wrong": wrong}))
    return 1 if wrong else 0


def event_times(call: Callable[[], object]) -> list[float]:
    """Return seconds of REPEATS calls by the device's own events, after one that is not counted."""
    call()
    times = []
    for _ in range(REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3)
    return times


def kernel_rows(kernels: Sequence[Kernel], launch: Launcher, device: torch.device, timer: Timer) -> Iterator[
        dict[str, Any]]:
    """Yield two rows an example: the largest error of its outputs with whether it is too large, and its time."""
    for kernel in kernels:
        for example in kernel.examples:
            name = f"{kernel.name}/{example.name}"
            try:
                yield from _example_rows(kernel, example, (launch, device, timer))
            except AnychipError as error:
                yield {**row("gpu", f"{name} error", [float("nan")], "", ""), "wrong": True, "reason": str(error)}


def _example_rows(kernel: Kernel, example: Example, on: tuple[Launcher, torch.device, Timer]) -> Iterator[
        dict[str, Any]]:
    launch, device, timer = on
    made, name = kernel.launch(example), f"{kernel.name}/{example.name}"
    args = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in made.args.items()}
    launch(kernel.fn, made.grid, args, made.constants)
    got = {n: value.cpu() for n, value in args.items() if n in made.outputs and isinstance(value, Tensor)}
    error, wrong = _error(example, made.args, got, made.constants)
    shape = ", ".join(f"{n}{list(v.shape)}" for n, v in args.items() if isinstance(v, Tensor))
    yield {**row("gpu", f"{name} error", [error], "relative rms", shape), "wrong": wrong}
    times = timer(partial(launch, kernel.fn, made.grid, args, made.constants))
    yield row("gpu", f"{name} time", [1e6 * t for t in times], "us", shape)


def _error(example: Example, given: dict[str, Any], got: dict[str, Tensor], constants: dict[str, Any]) -> tuple[
        float, bool]:
    """The largest relative rms error of the outputs, and whether one is beyond its format or tolerance."""
    if example.reference is None:
        return float("nan"), False
    wide = {n: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in given.items()}
    exact, worst, wrong = example.reference({**wide, **constants}), 0.0, False
    for name, tensor in got.items():
        a, b = tensor.double(), exact[name].double().reshape(tensor.shape)
        if name in example.tolerance:
            wrong |= not float((a - b).abs().max()) <= example.tolerance[name]
        elif not tensor.is_floating_point():
            wrong |= not torch.equal(a, b)
        else:
            finite = b.isfinite()
            scale = float(b[finite].square().mean().sqrt()) or 1.0
            error = float((a - b)[finite].square().mean().sqrt()) / scale
            worst, wrong = max(worst, error), wrong or not error <= ALLOWED[tensor.dtype]
    return worst, wrong


def op_rows(ops: KernelOps, device: torch.device, timer: Timer, tokens: int = 4096) -> Iterator[dict[str, Any]]:
    """Yield the time of each op by kernels and by torch, or why it has none."""
    for name, arguments in op_calls(tokens):
        given = map_tensors(arguments, partial(_moved, device))
        try:
            result = ops.attempt(name, *given)
        except KernelError as error:
            yield {**row("gpu", f"{name} by kernels", [float("nan")], "us", ""), "wrong": True, "reason": str(error)}
            continue
        if result is NotImplemented:
            yield {**row("gpu", f"{name} by kernels", [float("nan")], "us", ""), "reason": ops.kernels()[name]}
            continue
        by_kernels, by_torch = (timer(partial(getattr(side, name), *given)) for side in (ops, Ops()))
        shape = str([list(t.shape) for t in given if isinstance(t, Tensor)])
        yield row("gpu", f"{name} by kernels", [1e6 * t for t in by_kernels], "us", shape)
        yield row("gpu", f"{name} by torch", [1e6 * t for t in by_torch], "us", shape)


def _moved(device: torch.device, tensor: Tensor) -> Tensor:
    return tensor.to(device)


def op_calls(tokens: int, experts: int = 32) -> list[tuple[str, tuple[Any, ...]]]:
    """Return ops with v4-flash's sizes in bf16 (a part of its 256 experts) for so many tokens."""
    g = torch.Generator().manual_seed(0)

    def some(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return (torch.randn(*shape, generator=g) * 0.05).to(dtype)

    wide = torch.float32
    count = torch.arange(1, tokens + 1).clamp(max=128).int()
    window = Ranges((torch.arange(tokens) - count + 1).int(), count, int(count.sum()), 128)
    keys = Keys(some(tokens, 512), window)
    angles = torch.rand(tokens, 32, generator=g) * 6.283
    ids = torch.arange(tokens * 6).view(tokens, 6) % experts
    banks = some(experts, 4096, 4096), some(experts, 4096, 2048)
    mixing = HyperWeights(some(24, 16384, dtype=wide), some(24, dtype=wide), some(3, dtype=wide))
    return [
        ("linear", (some(tokens, 4096), some(4096, 4096))), ("rms_norm", (some(tokens, 4096), some(4096), 1e-6)),
        ("norm_rope", (some(tokens, 64, 512), None, 1e-6, angles.cos(), angles.sin())),
        ("attention", (some(tokens, 64, 512), keys, some(64, dtype=wide))),
        ("experts", (some(tokens, 4096), ids, torch.full((tokens, 6), 1 / 6), banks, 10.0)),
        ("hc_pre", (some(tokens, 4, 4096), mixing, HyperRule(20, 1e-6, 1e-6))),
        ("hc_post", (some(tokens, 4096), some(tokens, 4, 4096), some(tokens, 4, dtype=wide),
                     some(tokens, 4, 4, dtype=wide))),
    ]


if __name__ == "__main__":
    sys.exit(main())
