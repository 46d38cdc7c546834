"""The numbers of the machine's instructions and tile ops, read from the C++ header that defines them."""

from __future__ import annotations

import functools
import re
from pathlib import Path

MACHINE = Path(__file__).parent / "machine"
TYPES = ("bit", "i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64", "f16", "bf16", "f32")
TYPE_BITS = dict(zip(TYPES, (1, 8, 8, 16, 16, 32, 32, 64, 64, 16, 16, 32), strict=True))
SPACES = ("gm", "ub", "l1", "l0a", "l0b", "l0c")
PIPES = ("S", "V", "M", "MTE1", "MTE2", "MTE3", "FIX", "ALL")
CORES = ("AIC", "AIV0", "AIV1")


@functools.cache
def codes() -> dict[str, int]:
    """Number of each scalar instruction of the machine."""
    return _names("ANYCHIP_CODES")


@functools.cache
def tile_ops() -> dict[str, int]:
    """Number of each tile op (`Step::op`)."""
    return _names("ANYCHIP_TILE_OPS")


def enumeration(name: str) -> dict[str, int]:
    """Number of each name of one of the header's `enum class`es."""
    return _enumerations()[name]


@functools.cache
def _text() -> str:
    return (MACHINE / "opcodes.h").read_text()


@functools.cache
def _enumerations() -> dict[str, dict[str, int]]:
    found = re.findall(r"enum class (\w+) : \w+ \{\s*([\w,\s]+?)\s*\};", _text())
    return {name: {part.strip(): i for i, part in enumerate(body.split(","))} for name, body in found}


def _names(macro: str) -> dict[str, int]:
    body = re.search(rf"#define {macro}\(X\)(.*?)\n\n", _text(), re.DOTALL)
    assert body is not None
    plain = re.sub(r"/\*.*?\*/", "", body[1])
    return {name: i for i, name in enumerate(re.findall(r"X\((\w+)\)", plain))}
