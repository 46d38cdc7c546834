"""Whether a kernel's output is as exact as its number format allows: the Ascend operator precision standard 2.1.

Three computations are compared: the kernel's, a golden one in float64, and a benchmark of the same number format (the
standard's GPU). Source of the rule: https://gitcode.com/zl_hw/myOpen issue 12; hicann/pypto,
python/tests/st/operator/pg/compare_2_1.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Number format -> below which |golden| a value is small, and the error of a small value that counts.
SMALL = {torch.float16: (2**-11, 2**-16), torch.bfloat16: (2**-8, 2**-16), torch.float32: (2**-14, 2**-30),
         torch.float8_e4m3fn: (2**-4, 2**-6), torch.float8_e5m2: (2**-4, 2**-6)}
# Level -> largest ratio of the kernel's error to the benchmark's: MARE, MERE, RMSE.
LEVELS = {"L0": (10.0, 2.0, 2.0), "L1": (5.0, 1.5, 1.5), "L2": (2.0, 1.2, 1.2)}
SMALL_RATIO = 2.0
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "mv", "dot", "addmv")


@dataclass(frozen=True)
class Precision:
    """One output under the rule. Each ratio is the kernel's error over the benchmark's (or over the format's floor).

    mare, mere: largest and mean relative error of values that are not small; rmse: root mean square error of them;
    small: ratio of the numbers of small values that are off. share: the largest of the four over its limit (of a
    tolerance: the largest difference over it). passed: all within the level. reason: why not.
    exact: whether it is equal to the golden value in the output's own format.
    """

    passed: bool
    exact: bool
    mare: float = 0.0
    mere: float = 0.0
    rmse: float = 0.0
    small: float = 0.0
    share: float = 0.0
    reason: str = ""


def judge(got: Tensor, golden: Tensor, benchmark: Tensor, level: str = "L1") -> Precision:
    """Hold an output to the rule at a level (`L0` ordinary, `L1` important, `L2` key operators).

    got: the kernel's output; golden: float64, same shape; benchmark: the same in the format of `got`. An output of
    integers or bools must be equal. Where golden is not finite, `got` must be the same.
    """
    if got.shape != golden.shape:
        return Precision(False, False, reason=f"has shape {list(got.shape)}, the reference {list(golden.shape)}")
    if not got.is_floating_point():
        wrong = int((got != golden.to(got.dtype)).sum())
        return Precision(not wrong, not wrong, reason=f"{wrong} of {got.numel()} integers differ" if wrong else "")
    exact = torch.equal(got.float().nan_to_num(), golden.to(got.dtype).float().nan_to_num())
    g64, a64, b64 = golden.double(), got.double(), benchmark.double()
    if reason := _non_finite(a64, g64):
        return Precision(False, False, reason=reason)
    finite = g64.isfinite()
    small_below, small_error = SMALL[got.dtype]
    large, small = finite & (g64.abs() >= small_below), finite & (g64.abs() < small_below)
    pairs = zip(_errors(a64, g64, large), _errors(b64, g64, large), strict=True)
    counts = [int(((x - g64).abs()[small] > small_error).sum()) for x in (a64, b64)]
    ratios = (*(_ratio(a, b, small_below) for a, b in pairs), counts[0] / max(counts[1], 1))
    limits = (*LEVELS[level], SMALL_RATIO)
    over = [f"{name} is {value:.3g} times the benchmark's (at most {limit:g})" for name, value, limit in zip(
        ("largest relative error", "mean relative error", "RMS error", "count of small values that are off"), ratios,
        limits, strict=True) if value > limit]
    share = max(ratio / limit for ratio, limit in zip(ratios, limits, strict=True))
    reason = _where(a64, g64, "; ".join(over)) if over else ""
    mare, mere, rmse, count = ratios
    return Precision(not over, exact, mare, mere, rmse, count, share, reason)


def within(got: Tensor, golden: Tensor, limit: float) -> Precision:
    """Hold an output to a largest |difference| instead of the rule."""
    if got.shape != golden.shape:
        return Precision(False, False, reason=f"has shape {list(got.shape)}, the reference {list(golden.shape)}")
    off = (got.double() - golden.double()).abs()
    worst = float(off.max()) if off.numel() else 0.0
    passed = worst <= limit
    reason = "" if passed else _where(got.double(), golden.double(), f"differs by {worst:.3g} (at most {limit:g})")
    return Precision(passed, worst == 0, share=worst / limit if limit else 0.0, reason=reason)


class SameFormat(TorchDispatchMode):
    """Runs a float64 reference as a chip would: each op in fp32, operands of matrix products in the inputs' format.

    Inside this mode float64 tensors hold fp32 values. It makes the standard's benchmark from the reference itself.
    """

    def __init__(self, products: torch.dtype) -> None:
        super().__init__()
        self.products = products

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled inside: torch need not import its compiler (1.4 s) to keep it out."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one op in fp32 and widen its result; views and in-place ops keep their tensor."""
        kwargs = kwargs or {}
        if func.is_view or func._schema.is_mutable or not _has_float64(args):
            result = func(*args, **kwargs)
            if func._schema.is_mutable and isinstance(result, Tensor) and result.dtype == torch.float64:
                result.copy_(result.float())
            return result
        product = func._schema.name.removeprefix("aten::") in PRODUCTS
        narrowed = torch.utils._pytree.tree_map(lambda x: self._narrow(x, product), args)
        result = func(*narrowed, **kwargs)
        widen = "dtype" not in kwargs
        return torch.utils._pytree.tree_map(
            lambda x: x.double() if widen and isinstance(x, Tensor) and x.dtype == torch.float32 else x, result)

    def _narrow(self, value: Any, product: bool) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float64:
            return value
        return value.to(self.products).float() if product else value.float()


def _has_float64(values: Any) -> bool:
    return any(isinstance(x, Tensor) and x.dtype == torch.float64 for x in torch.utils._pytree.tree_leaves(values))


def _errors(values: Tensor, golden: Tensor, where: Tensor) -> tuple[float, float, float]:
    """MARE, MERE and RMSE over some elements; zeros where there are none."""
    if not where.any():
        return 0.0, 0.0, 0.0
    off, size = (values - golden)[where], golden[where].abs()
    relative = off.abs() / (size + 1e-7)
    return float(relative.max()), float(relative.mean()), float(off.square().mean().sqrt())


def _ratio(error: float, benchmark: float, floor: float) -> float:
    if benchmark != benchmark or benchmark == float("inf"):
        return 1.0
    if error != error or error == float("inf"):
        return 1000.0
    return error / max(benchmark, floor)


def _non_finite(got: Tensor, golden: Tensor) -> str:
    same = (got == golden) | (got.isnan() & golden.isnan()) | (got.isfinite() & golden.isfinite())
    wrong = int((~same).sum())
    return _where(got, golden, f"{wrong} of {got.numel()} values are NaN or infinite where they must not be, or the "
                               "other way round", ~same) if wrong else ""


def _where(got: Tensor, golden: Tensor, words: str, among: Tensor | None = None) -> str:
    """Add the place of the worst element: its index, what it is and what it should be."""
    off = (got - golden).abs() / (golden.abs() + 1e-7) if among is None else among.double()
    index = int(off.nan_to_num(nan=float("inf")).argmax())
    place = [int(i) for i in torch.unravel_index(torch.tensor(index), got.shape)] if got.dim() else []
    is_, should = float(got.flatten()[index]), float(golden.flatten()[index])
    return f"{words}; worst at {place}: {is_:.6g}, should be {should:.6g}"
