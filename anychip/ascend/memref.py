"""Types of values in HIVM: memrefs, their element types and address spaces; attribute values in text."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from ..errors import NotSupported
from .opcodes import TYPES

_MEMREF = re.compile(r"memref<((?:[\d?]+x)*)([\w!.]+)(.*)>$", re.DOTALL)
_SPACES = {"gm": "gm", "zero": "gm", "ub": "ub", "cbuf": "l1", "ca": "l0a", "cb": "l0b", "cc": "l0c"}
_ELEMENTS = {name: name for name in TYPES} | {
    "i1": "bit", "index": "i64", "ui8": "u8", "ui16": "u16", "ui32": "u32", "ui64": "u64",
    "si8": "i8", "si16": "i16", "si32": "i32", "si64": "i64"}
DYNAMIC = -(1 << 63)


@dataclass(frozen=True)
class Memref:
    """A memref type: sizes (None: known at run time), element type and memory by the machine's names."""

    shape: tuple[int | None, ...]
    element: str
    space: str


@functools.lru_cache(maxsize=4096)
def memref(text: str) -> Memref | None:
    """Read a memref type; None for any other type. Raises NotSupported for an element type the machine lacks."""
    match = _MEMREF.match(text)
    if match is None:
        return None
    shape = tuple(None if size == "?" else int(size) for size in match[1].split("x")[:-1])
    space = re.search(r"address_space<(\w+)>", match[3])
    return Memref(shape, element(match[2]), _SPACES[space[1]] if space else "gm")


def element(text: str) -> str:
    """The machine's name of a scalar type. Raises NotSupported for one that it lacks."""
    if text not in _ELEMENTS:
        raise NotSupported(f"the virtual Ascend has no arithmetic for the type {text!r} (it has {', '.join(TYPES)})")
    return _ELEMENTS[text]


@functools.lru_cache(maxsize=4096)
def integers(text: str | None) -> tuple[int, ...]:
    """Numbers of an attribute `array<i64: 1, 2>` or `dense<..>`; () for none."""
    if text is None:
        return ()
    match = re.search(r"array<i\d+(?::([^>]*))?>", text)
    return tuple(int(n) for n in match[1].split(",")) if match and match[1] else ()


def name_of(text: str) -> str:
    """The name in an attribute `#hivm.pipe<PIPE_V>`, `#hivm.compare_mode<eq>` or `#hivm.cast<cast_signed>`."""
    match = re.search(r"<\s*<?\s*(\w+)\s*>?\s*>\s*$", text)
    return match[1] if match else text.strip()


def number(text: str) -> int:
    """The number in an attribute `3 : i64`."""
    return int(text.split(":")[0])


def flag(attributes: dict[str, str], name: str, default: bool) -> bool:
    """A boolean attribute, `default` where it is left out."""
    return attributes[name].startswith(("true", "unit")) if name in attributes else default


def groups(text: str) -> list[list[int]]:
    """Groups of dimensions of an attribute `[[0, 1], [2]]`."""
    return [[int(n) for n in part.split(",")] for part in re.findall(r"\[([\d, ]+)\]", text)]
