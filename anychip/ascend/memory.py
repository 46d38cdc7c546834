"""How much of each on-chip memory a compiled kernel takes, read from the addresses of its buffers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from .targets import Target

NAMES = {"ub": "ub", "cbuf": "l1", "cc": "l0c", "ca": "l0a", "cb": "l0b"}
CONSTANT = re.compile(r'(%\w+) = "arith\.constant"\(\) <\{value = (\d+) : i64\}>')
CAST = re.compile(r'"hivm\.hir\.pointer_cast"\(([^)]*)\).*? -> memref<((?:[\d?]+x)*)(\w+)'
                  r"(?:, strided<\[([^\]]*)\].*?>)?, #hivm\.address_space<(\w+)>>")
DOT = re.compile(r"tt\.dot .*: tensor<((?:\d+x)+)(\w+)> \* tensor<((?:\d+x)+)(\w+)>")
BITS = {"i1": 1, "i4": 4, "i8": 8, "f8E4M3FN": 8, "f8E5M2": 8, "i16": 16, "f16": 16, "bf16": 16, "i32": 32, "f32": 32,
        "i64": 64, "f64": 64}


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of one on-chip memory of one core that a kernel takes, and what the chip has."""

    used_bytes: int
    limit_bytes: int


def memory_uses(ttir: str, hivm: str, target: Target) -> dict[str, MemoryUse]:
    """Return the use of every memory that the module touches: `ub`, `l1`, `l0a`, `l0b`, `l0c`.

    ub, l1, l0c: the end of the highest buffer (they overlap where their lives do not). l0a, l0b: the operand tile of
    the largest tl.dot; the chip's matmul macro cuts K where a tile is larger, so never more than the limit.
    """
    ends: dict[str, int] = {}
    buffers = [pair for function in re.split(r'\n  "func\.func"', hivm) for pair in _buffers(function)]
    for space, end in (*buffers, *_operands(ttir)):
        ends[space] = max(ends.get(space, 0), end)
    sizes = {space: target.memory_bytes(space) for space in ends}
    return {space: MemoryUse(min(ends[space], sizes[space]) if space in ("l0a", "l0b") else ends[space], sizes[space])
            for space in ("ub", "l1", "l0a", "l0b", "l0c") if space in ends}


def _buffers(function: str) -> Iterator[tuple[str, int]]:
    """Each buffer's memory and end; the %names of constants are a function's own."""
    constants = {name: int(value) for name, value in CONSTANT.findall(function)}
    for operands, shape, element, strides, space in CAST.findall(function):
        addresses = [constants[name] for name in operands.split(", ") if name in constants]
        if addresses and "?" not in shape and space in NAMES:
            yield NAMES[space], max(addresses) + _bytes(shape, element, strides)


def _operands(ttir: str) -> Iterator[tuple[str, int]]:
    for left, left_type, right, right_type in DOT.findall(ttir):
        yield "l0a", _bytes(left, left_type, "")
        yield "l0b", _bytes(right, right_type, "")


def _bytes(shape: str, element: str, strides: str) -> int:
    sizes = [int(n) for n in shape.split("x") if n]
    if strides and "?" not in strides:
        count = 1 + sum((n - 1) * int(s) for n, s in zip(sizes, strides.split(","), strict=True))
    else:
        count = math.prod(sizes)
    return -(-count * BITS[element] // 8)
