"""exp, exp2, log and log2 in fp32 without branches or calls, as LLVM IR, so that loops around them are vectorised.

Argument reduction and polynomials are those of the Cephes library's single-precision functions (S. L. Moshier,
netlib.org/cephes), with fused multiply-adds; errors stay within 2 ulp. NaN, infinities, zeros and denormals are
as in C.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy

NAMES = {"llvm.exp.f32": "anychip_exp", "llvm.exp2.f32": "anychip_exp2",
         "llvm.log.f32": "anychip_log", "llvm.log2.f32": "anychip_log2"}
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_LOG = (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
        2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4  # ln 2 in two parts: n * high is exact


def math_module() -> str:
    """Return the text of an LLVM module that defines every function of `NAMES`, to be inlined."""
    from llvmlite import ir

    module = ir.Module("anychip_math")
    for name, build in (("anychip_exp", _exp), ("anychip_exp2", _exp2), ("anychip_log", _log), ("anychip_log2", _log2)):
        function = ir.Function(module, ir.FunctionType(ir.FloatType(), [ir.FloatType()]), name)
        function.attributes.add("alwaysinline")
        maths = _Maths(module, ir.IRBuilder(function.append_basic_block()))
        maths.builder.ret(build(maths, function.args[0]))
    return str(module)


class _Maths:
    """A few float operations over llvmlite's builder."""

    def __init__(self, module: Any, builder: Any) -> None:
        from llvmlite import ir

        self.ir, self.builder = ir, builder
        self.f32, self.i32 = ir.FloatType(), ir.IntType(32)
        self._rint = module.declare_intrinsic("llvm.rint", [self.f32])

    def number(self, value: float) -> Any:
        """A float constant, rounded to fp32."""
        return self.ir.Constant(self.f32, float(numpy.float32(value)))

    def whole(self, value: int) -> Any:
        """An i32 constant."""
        return self.ir.Constant(self.i32, value)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c, rounded once."""
        return self.builder.fma(a, b, c)

    def rint(self, x: Any) -> Any:
        """x rounded to the nearest whole number, ties to even."""
        return self.builder.call(self._rint, [x])

    def polynomial(self, x: Any, coefficients: Sequence[float]) -> Any:
        """Horner's rule, the highest power first."""
        result = self.number(coefficients[0])
        for coefficient in coefficients[1:]:
            result = self.fma(result, x, self.number(coefficient))
        return result

    def limited(self, x: Any, low: float, high: float) -> Any:
        """x between two bounds; NaN stays NaN."""
        build = self.builder
        x = build.select(build.fcmp_ordered("<", x, self.number(low)), self.number(low), x)
        return build.select(build.fcmp_ordered(">", x, self.number(high)), self.number(high), x)

    def power_of_two(self, exponent: Any) -> Any:
        """2 ** exponent for an i32 within the normal range."""
        bits = self.builder.shl(self.builder.add(exponent, self.whole(127)), self.whole(23))
        return self.builder.bitcast(bits, self.f32)

    def scaled(self, x: Any, exponent: Any) -> Any:
        """x * 2 ** exponent in two steps, so that results may be denormal or infinite."""
        first = self.builder.ashr(exponent, self.whole(1))
        x = self.builder.fmul(x, self.power_of_two(first))
        return self.builder.fmul(x, self.power_of_two(self.builder.sub(exponent, first)))


def _exp(m: _Maths, x: Any) -> Any:
    x = m.limited(x, -104.0, 89.0)
    count = m.rint(m.builder.fmul(x, m.number(1 / math.log(2))))
    rest = m.fma(count, m.number(-_LN2_LOW), m.fma(count, m.number(-_LN2_HIGH), x))
    return m.scaled(_exp_near_zero(m, rest), _as_whole(m, count))


def _exp2(m: _Maths, x: Any) -> Any:
    x = m.limited(x, -151.0, 129.0)
    count = m.rint(x)
    rest = m.builder.fmul(m.builder.fsub(x, count), m.number(math.log(2)))
    return m.scaled(_exp_near_zero(m, rest), _as_whole(m, count))


def _as_whole(m: _Maths, count: Any) -> Any:
    """The i32 of a whole float; a NaN gives 0, since the conversion of a NaN is undefined."""
    finite = m.builder.select(m.builder.fcmp_ordered("ord", count, count), count, m.number(0.0))
    return m.builder.fptosi(finite, m.i32)


def _exp_near_zero(m: _Maths, x: Any) -> Any:
    squared = m.builder.fmul(x, x)
    return m.builder.fadd(m.fma(m.polynomial(x, _EXP), squared, x), m.number(1.0))


def _log(m: _Maths, x: Any) -> Any:
    mantissa, tail, exponent = _log_parts(m, x)
    tail = m.fma(exponent, m.number(_LN2_LOW), tail)
    return _log_specials(m, x, m.fma(exponent, m.number(_LN2_HIGH), m.builder.fadd(mantissa, tail)))


def _log2(m: _Maths, x: Any) -> Any:
    mantissa, tail, exponent = _log_parts(m, x)
    per_ln2 = 1 / math.log(2) - 1  # log2(e) in two parts: 1 and the rest
    small = m.builder.fmul(m.builder.fadd(mantissa, tail), m.number(per_ln2))
    return _log_specials(m, x, m.builder.fadd(exponent, m.builder.fadd(mantissa, m.builder.fadd(tail, small))))


def _log_parts(m: _Maths, x: Any) -> tuple[Any, Any, Any]:
    """Return mantissa, tail, exponent of x = (1 + mantissa) * 2 ** exponent; log1p(mantissa) = mantissa + tail.

    1 + mantissa lies in [sqrt(1/2), sqrt(2)).
    """
    build = m.builder
    tiny = build.fcmp_ordered("<", x, m.number(1.17549435e-38))
    bits = build.bitcast(build.select(tiny, build.fmul(x, m.number(2.0 ** 23)), x), m.i32)
    exponent = build.sub(build.ashr(bits, m.whole(23)), build.select(tiny, m.whole(126 + 23), m.whole(126)))
    half_bits = build.or_(build.and_(bits, m.whole(0x7FFFFF)), m.whole(0x3F000000))
    half = build.bitcast(half_bits, m.f32)
    low = build.fcmp_ordered("<", half, m.number(math.sqrt(0.5)))
    mantissa = build.fsub(build.select(low, build.fadd(half, half), half), m.number(1.0))
    exponent = build.sitofp(build.select(low, build.sub(exponent, m.whole(1)), exponent), m.f32)
    squared = build.fmul(mantissa, mantissa)
    tail = build.fmul(build.fmul(m.polynomial(mantissa, _LOG), mantissa), squared)
    return mantissa, m.fma(squared, m.number(-0.5), tail), exponent


def _log_specials(m: _Maths, x: Any, result: Any) -> Any:
    """log(0) = -inf, log(inf) = inf, log of a negative number or NaN = NaN."""
    build = m.builder
    result = build.select(build.fcmp_ordered("==", x, m.number(math.inf)), x, result)
    result = build.select(build.fcmp_unordered("<", x, m.number(0.0)), m.number(math.nan), result)
    return build.select(build.fcmp_ordered("==", x, m.number(0.0)), m.number(-math.inf), result)
