"""Reads MLIR in its generic form (`mlir-print-op-generic`, with or without locations): ops, regions, attributes, types.

Only the text's structure is known here, no dialect. A module of 1,000 ops takes about 15 ms.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field

from ..errors import KernelError

_NAME = re.compile(r'"([^"]+)"\(')
_RESULTS = re.compile(r"%([\w$.-]+)(?::(\d+))?(?:\s*,\s*|\s*=\s*)")
_VALUE = re.compile(r"%[\w$.-]+(?:#\d+)?")
_BLOCK = re.compile(r"\^[\w$.-]+\s*(\()?")
_KEY = re.compile(r'\s*,?\s*([\w.$]+|"[^"]*")\s*')
_SPACE = re.compile(r"(?:\s+|//[^\n]*)*")
_ALIAS = re.compile(r"#([\w.$]+)\s*=\s*([^\n]*)\n")
_LOCATION = re.compile(r"\s*loc\(")
_BRACKETS = re.compile(r'[<({\[>)}\],"\n]|->')
_FILE_LINE = re.compile(r'"((?:[^"\\]|\\.)*)":(\d+):\d+')


@dataclass(frozen=True)
class Location:
    """A line of a source file; `line` 0 where it is not known."""

    file: str = ""
    line: int = 0


UNKNOWN = Location()


@dataclass
class Region:
    """A block of ops with its arguments (name, type). Regions of several blocks do not occur in final HIVM."""

    arguments: list[tuple[str, str]]
    ops: list[Op]


@dataclass
class Op:
    """One operation. Values are named without `%`; attributes are text, parsed by whoever knows them."""

    name: str
    results: list[str]
    operands: list[str]
    attributes: dict[str, str]
    regions: list[Region]
    operand_types: list[str]
    result_types: list[str]
    location: Location = UNKNOWN


@dataclass
class Module:
    """A parsed module: its top op, and attribute aliases (`map3` -> `affine_map<...>`)."""

    top: Op
    aliases: dict[str, str] = field(default_factory=dict)

    def functions(self) -> list[Op]:
        """Return the `func.func` ops that have a body, those of nested modules too."""
        found: list[Op] = []
        stack = [self.top]
        while stack:
            op = stack.pop()
            for region in op.regions:
                if op.name == "func.func":
                    if region.ops:
                        found.append(op)
                else:
                    stack += reversed(region.ops)
        return found


def parse(text: str) -> Module:
    """Parse a module. Raises KernelError where the text is not MLIR's generic form."""
    reader = _Reader(text)
    reader.read_aliases()
    top = reader.op()
    reader.read_aliases()
    for op, name in reader.waiting:
        op.location = _locate(name, reader.aliases)
    return Module(top, reader.aliases)


@functools.lru_cache(maxsize=8192)
def _attributes(text: str) -> tuple[tuple[str, str], ...]:
    """Split `a = 1 : i32, unit, b = <x>` into pairs; a unit attribute has the value `unit`."""
    found, at = [], 0
    while match := _KEY.match(text, at):
        at = match.end()
        if at < len(text) and text[at] == "=":
            end = _balanced(text, at + 1, ",")
            found.append((match[1].strip('"'), text[at + 1:end].strip()))
            at = end
        else:
            found.append((match[1].strip('"'), "unit"))
    return tuple(found)


def _balanced(text: str, at: int, stops: str) -> int:
    """Position of the first character of `stops` outside brackets and strings, or of a bracket that closes more."""
    depth = 0
    while match := _BRACKETS.search(text, at):
        token, at = match[0], match.end()
        if token == '"':
            at = _string_end(text, at)
        elif token == "->":
            continue
        elif depth == 0 and token in stops:
            return match.start()
        elif token in "<({[":
            depth += 1
        elif token in ">)}]":
            if depth == 0:
                return match.start()
            depth -= 1
    return len(text)


def _string_end(text: str, at: int) -> int:
    while text[at] != '"':
        at += 2 if text[at] == "\\" else 1
    return at + 1


@functools.lru_cache(maxsize=8192)
def _types(text: str) -> tuple[str, ...]:
    """Split a list of types at its top-level commas."""
    found, at = [], 0
    while at < len(text):
        end = _balanced(text, at, ",")
        if part := text[at:end].strip():
            found.append(part)
        at = end + 1
    return tuple(found)


def _locate(name: str, aliases: dict[str, str]) -> Location:
    """The first file and line that a location names, through aliases and call sites (innermost first)."""
    seen: set[str] = set()
    queue = [name]
    while queue:
        text = queue.pop(0)
        if match := _FILE_LINE.search(text):
            return Location(match[1], int(match[2]))
        for alias in re.findall(r"#(loc\w*)", text):
            if alias not in seen:
                seen.add(alias)
                queue.append(aliases.get(alias, ""))
    return UNKNOWN


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.aliases: dict[str, str] = {}
        self.waiting: list[tuple[Op, str]] = []

    def skip(self) -> None:
        match = _SPACE.match(self.text, self.at)
        if match:
            self.at = match.end()

    def eat(self, token: str) -> bool:
        self.skip()
        if self.text.startswith(token, self.at):
            self.at += len(token)
            return True
        return False

    def need(self, token: str) -> None:
        if not self.eat(token):
            line = self.text.count("\n", 0, self.at) + 1
            raise KernelError(f"line {line} of the compiled module is not MLIR's generic form: {token!r} expected at "
                              f"{self.text[self.at:self.at + 60]!r}")

    def read_aliases(self) -> None:
        self.skip()
        while match := _ALIAS.match(self.text, self.at):
            self.aliases[match[1]] = match[2]
            self.at = match.end()
            self.skip()

    def op(self) -> Op:
        self.skip()
        results: list[str] = []
        while match := _RESULTS.match(self.text, self.at):
            results += [match[1]] if match[2] is None else [f"{match[1]}#{i}" for i in range(int(match[2]))]
            self.at = match.end()
        match = _NAME.match(self.text, self.at)
        if match is None:
            self.need('"an op"')
        assert match is not None
        self.at = match.end()
        end = self.text.index(")", self.at)
        operands = [v[1:] for v in _VALUE.findall(self.text, self.at, end)]
        self.at = end + 1
        attributes: dict[str, str] = {}
        if self.eat("<{"):
            attributes.update(self.dictionary())
            self.need("}>")
        regions: list[Region] = []
        if self.eat("("):
            regions.append(self.region())
            while self.eat(","):
                regions.append(self.region())
            self.need(")")
        if self.eat("{"):
            attributes.update(self.dictionary())
            self.need("}")
        self.need(":")
        operand_types, result_types = self.signature()
        op = Op(match[1], results, operands, attributes, regions, operand_types, result_types)
        self.location(op)
        return op

    def dictionary(self) -> tuple[tuple[str, str], ...]:
        end = _balanced(self.text, self.at, "}")
        text, self.at = self.text[self.at:end], end
        return _attributes(text)

    def signature(self) -> tuple[list[str], list[str]]:
        self.need("(")
        end = _balanced(self.text, self.at, ")")
        operand_types = list(_types(self.text[self.at:end]))
        self.at = end + 1
        self.need("->")
        if self.eat("("):
            end = _balanced(self.text, self.at, ")")
            result_types = list(_types(self.text[self.at:end]))
            self.at = end + 1
            return operand_types, result_types
        self.skip()
        end = _balanced(self.text, self.at, "\n,")
        location = self.text.find(" loc(", self.at, end)
        result_types = [self.text[self.at:end if location < 0 else location].strip()]
        self.at = end if location < 0 else location
        return operand_types, result_types

    def location(self, op: Op) -> None:
        if match := _LOCATION.match(self.text, self.at):
            end = _balanced(self.text, match.end(), ")")
            self.waiting.append((op, self.text[match.end():end]))
            self.at = end + 1

    def region(self) -> Region:
        self.need("{")
        arguments: list[tuple[str, str]] = []
        self.skip()
        if match := _BLOCK.match(self.text, self.at):
            self.at = match.end()
            if match[1]:
                end = _balanced(self.text, self.at, ")")
                arguments = [self.argument(part) for part in _types(self.text[self.at:end])]
                self.at = end + 1
            self.need(":")
        ops: list[Op] = []
        while not self.eat("}"):
            ops.append(self.op())
        return Region(arguments, ops)

    @staticmethod
    def argument(text: str) -> tuple[str, str]:
        name, _, kind = text.partition(":")
        location = kind.find(" loc(")
        return name.strip()[1:], (kind if location < 0 else kind[:location]).strip()
