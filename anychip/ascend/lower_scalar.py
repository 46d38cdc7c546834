"""Lowers scalar ops (arith, math, affine) to the machine's scalar instructions."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

from . import lower_vector
from .memref import element, number
from .mlir import Op
from .opcodes import TYPE_BITS, TYPES, enumeration
from .program import Builder, unknown

_INTEGER = {"addi": "add", "subi": "sub", "muli": "mul", "andi": "bit_and", "ori": "bit_or", "xori": "bit_xor",
            "shli": "shl", "shrsi": "shr_s", "shrui": "shr_u", "divsi": "div_s", "remsi": "rem_s", "divui": "div_u",
            "remui": "rem_u", "floordivsi": "floor_div", "ceildivsi": "ceil_div", "maxsi": "max_s", "minsi": "min_s",
            "maxui": "max_u", "minui": "min_u"}
_FLOAT = {"addf": "fadd", "subf": "fsub", "mulf": "fmul", "divf": "fdiv", "maximumf": "fmax", "maxnumf": "fmax",
          "minimumf": "fmin", "minnumf": "fmin", "remf": "frem"}
_MATH = {"absf": "abs", "sqrt": "sqrt", "rsqrt": "rsqrt", "exp": "exp", "exp2": "exp2", "log": "log", "log2": "log2",
         "sin": "sin", "cos": "cos", "tanh": "tanh", "erf": "erf", "floor": "floor", "ceil": "ceil",
         "roundeven": "round_even", "trunc": "trunc", "log1p": "log1p", "expm1": "expm1"}
_FOLD: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "max_s": max, "min_s": min,
    "floor_div": lambda a, b: a // b, "ceil_div": lambda a, b: -(-a // b), "floor_mod": lambda a, b: a % b}


def bits(kind: str) -> int:
    """Width of an integer type (index: 64)."""
    return TYPE_BITS[element(kind)]


def type_number(kind: str) -> int:
    """The machine's number of a scalar type."""
    return TYPES.index(element(kind))


def integer_op(builder: Builder, code: str, a: int, b: int, width: int = 64) -> int:
    """Emit an integer instruction on two registers and return the result's; constants are folded."""
    by_zero = builder.known.get(b) == 0 and code in ("floor_div", "ceil_div", "floor_mod")
    if a in builder.known and b in builder.known and code in _FOLD and not by_zero:
        return builder.integer(_FOLD[code](builder.known[a], builder.known[b]))
    out = builder.slot()
    builder.emit(code, out, a, b, width)
    return out


def constant(builder: Builder, op: Op) -> None:
    """arith.constant of an integer or a float."""
    text, _, kind = op.attributes["value"].rpartition(":")
    text, kind = (text.strip(), kind.strip()) if text else (kind.strip(), "i1")
    if "dense" in text:
        lower_vector.constant(builder, op, text)
        return
    if kind in ("f16", "bf16", "f32", "f64"):
        register = builder.real(_float(text, kind))
    else:
        value = int(text == "true") if text in ("true", "false") else int(text, 0)
        register = builder.integer(value & 1 if kind == "i1" else value)
    builder.bind(op.results[0], op.result_types[0], register)


def _float(text: str, kind: str) -> float:
    if not text.startswith("0x"):
        return float(text)
    raw = int(text, 16)
    if kind == "f32":
        return float(struct.unpack("<f", struct.pack("<I", raw))[0])
    if kind == "f16":
        return float(struct.unpack("<e", struct.pack("<H", raw))[0])
    return float(struct.unpack("<f", struct.pack("<I", raw << 16))[0])


def arith(builder: Builder, op: Op) -> None:
    """Any other op of the dialects arith and math. Raises NotSupported for one that the machine lacks."""
    name, kind = op.name.split(".")[1], op.result_types[0]
    operands = [builder.use(value) for value in op.operands]
    if name in _INTEGER:
        width = bits(kind)
        if builder.known.keys() >= set(operands) and width == 64:
            builder.bind(op.results[0], kind, integer_op(builder, _INTEGER[name], *operands))
            return
        builder.emit(_INTEGER[name], builder.define(op.results[0], kind), *operands, width)
    elif name in ("index_cast", "index_castui", "extsi", "trunci", "extui"):
        _resize(builder, op, operands[0])
    elif name in _FLOAT:
        builder.emit(_FLOAT[name], builder.define(op.results[0], kind), *operands, type_number(kind))
    elif name in _MATH or name == "negf":
        function = enumeration("Math")["neg" if name == "negf" else _MATH[name]]
        builder.emit("fmath", builder.define(op.results[0], kind), operands[0], function, type_number(kind))
    elif name == "powf":
        builder.emit("fpow", builder.define(op.results[0], kind), *operands, type_number(kind))
    else:
        _other(builder, op, operands)


def _resize(builder: Builder, op: Op, source: int) -> None:
    kind = op.result_types[0]
    before, after = bits(op.operand_types[0]), bits(kind)
    unsigned = op.name in ("arith.extui", "arith.index_castui")
    if source in builder.known and not unsigned and after >= before:
        builder.bind(op.results[0], kind, source)
    elif unsigned or before == 1:  # a single bit is held as 0 or 1
        code = "zero_wrap" if unsigned else "sign_wrap"
        out = builder.define(op.results[0], kind)
        if before == 1 and not unsigned:
            builder.emit("sub", out, builder.integer(0), source, 64)
        else:
            builder.emit(code, out, source, before)
    elif after < before:
        builder.emit("sign_wrap", builder.define(op.results[0], kind), source, after)
    else:
        builder.bind(op.results[0], kind, source)


def _other(builder: Builder, op: Op, operands: list[int]) -> None:
    name, kind = op.name.split(".")[1], op.result_types[0]
    if name == "select":
        out = builder.define(op.results[0], kind)
        builder.emit("select_view" if kind.startswith("memref") else "select", out, *operands)
    elif name == "cmpi":
        out = builder.define(op.results[0], kind)
        builder.emit("compare", out, *operands, number(op.attributes["predicate"]), bits(op.operand_types[0]))
    elif name == "cmpf":
        builder.emit("fcompare", builder.define(op.results[0], kind), *operands, number(op.attributes["predicate"]))
    elif name in ("sitofp", "uitofp"):
        code = "int_to_float" if name == "sitofp" else "uint_to_float"
        out = builder.define(op.results[0], kind)
        builder.emit(code, out, *operands, type_number(kind), bits(op.operand_types[0]))
    elif name in ("fptosi", "fptoui"):
        builder.emit("float_to_int", builder.define(op.results[0], kind), *operands, bits(kind))
    elif name in ("extf", "truncf"):
        builder.emit("float_round", builder.define(op.results[0], kind), *operands, type_number(kind))
    elif name == "bitcast":
        _bitcast(builder, op, operands[0])
    elif name == "fma":
        kind_number, product = type_number(kind), builder.slot()
        builder.emit("fmul", product, operands[0], operands[1], TYPES.index("i64"))  # not rounded
        builder.emit("fadd", builder.define(op.results[0], kind), product, operands[2], kind_number)
    else:
        raise unknown(op)


def _bitcast(builder: Builder, op: Op, source: int) -> None:
    before, after = op.operand_types[0], op.result_types[0]
    to_float, from_float = "f" in after, "f" in before
    if to_float == from_float:
        builder.bind(op.results[0], after, source)
    elif to_float:
        builder.emit("bits_float", builder.define(op.results[0], after), source, type_number(after))
    else:
        builder.emit("float_bits", builder.define(op.results[0], after), source, type_number(before))


_TOKEN = re.compile(r"\s*(-?\d+|[a-z]\d+|floordiv|ceildiv|mod|[-+*()])")


def affine(builder: Builder, op: Op, aliases: dict[str, str]) -> None:
    """affine.apply, affine.min, affine.max."""
    text = op.attributes["map"]
    text = aliases.get(text[1:], text) if text.startswith("#") else text
    match = re.match(r"affine_map<\(([^)]*)\)(?:\[([^\]]*)\])? -> \((.*)\)>$", text.strip())
    if match is None:
        raise unknown(op, f"an affine map that cannot be read: {text}")
    names = [name.strip() for part in (match[1], match[2] or "") for name in part.split(",") if name.strip()]
    values = dict(zip(names, (builder.use(value) for value in op.operands), strict=True))
    results = _Expression(builder, match[3], values).all()
    for register in results[1:]:
        results[0] = integer_op(builder, "min_s" if op.name == "affine.min" else "max_s", results[0], register)
    builder.bind(op.results[0], op.result_types[0], results[0])


class _Expression:
    """Emits the expressions of an affine map (recursive descent over its text)."""

    def __init__(self, builder: Builder, text: str, values: dict[str, int]) -> None:
        self.builder, self.values = builder, values
        self.parts = [_TOKEN.findall(part) for part in text.split(",")]
        self.tokens: list[str] = []

    def all(self) -> list[int]:
        found = []
        for part in self.parts:
            self.tokens = part
            found.append(self.sum())
        return found

    def sum(self) -> int:
        left = self.product()
        while self.tokens and (self.tokens[0] in "+-" or re.fullmatch(r"-\d+", self.tokens[0])):
            sign = self.tokens.pop(0) if self.tokens[0] in "+-" else "+"
            left = integer_op(self.builder, "add" if sign == "+" else "sub", left, self.product())
        return left

    def product(self) -> int:
        left = self.atom()
        names = {"*": "mul", "floordiv": "floor_div", "ceildiv": "ceil_div", "mod": "floor_mod"}
        while self.tokens and self.tokens[0] in names:
            code = names[self.tokens.pop(0)]
            left = integer_op(self.builder, code, left, self.atom())
        return left

    def atom(self) -> int:
        token = self.tokens.pop(0)
        if token == "(":
            inside = self.sum()
            self.tokens.pop(0)
            return inside
        if token == "-":
            return integer_op(self.builder, "sub", self.builder.integer(0), self.atom())
        if token in self.values:
            return self.values[token]
        return self.builder.integer(int(token))
