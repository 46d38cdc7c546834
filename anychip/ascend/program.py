"""The machine's program: flat code, register files, and what each instruction came from."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from ..errors import NotSupported
from .memref import element, memref
from .mlir import Location, Op
from .opcodes import TYPES, codes, tile_ops

ARGUMENTS = {"zero": -1, "lock": -2, "workspace": -3, "grid_x": -4, "grid_y": -5, "grid_z": -6}


@dataclass(frozen=True)
class Instruction:
    """Where an instruction of the program came from: the op's name, the line, its function."""

    name: str
    location: Location
    function: str


@dataclass(frozen=True)
class Parameter:
    """A parameter of a function: an argument of the kernel (0, 1, ..) or one of ARGUMENTS, its register, its type."""

    source: int
    register: int
    element: int  # number of the element type of a memref; -1: a scalar


@dataclass
class Function:
    """One core's function: where its code begins, how many registers it needs, its constants and parameters."""

    name: str
    cube: bool
    entry: int
    slots: int = 0
    views: int = 0
    registers: int = 0
    constants: list[tuple[int, int]] = field(default_factory=list)  # register, 64 bits
    parameters: list[Parameter] = field(default_factory=list)


@dataclass
class Program:
    """A kernel for the machine. `workspace_bytes`: global memory that a block needs for itself."""

    code: list[int] = field(default_factory=list)
    functions: list[Function] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    locked: list[int] = field(default_factory=list)  # instructions that one block at a time executes
    workspace_bytes: int = 0
    num_arguments: int = 0  # of the user


class Builder:
    """Builds the code of one function: registers by value name, constants shared, labels patched later."""

    def __init__(self, program: Program, name: str, cube: bool) -> None:
        self.program = program
        self.code = program.code
        self.function = Function(name, cube, len(program.code))
        self.registers: dict[str, int] = {}
        self.known: dict[int, int] = {}  # constant registers of integers
        self.types: dict[str, str] = {}
        self.vectors: set[str] = set()  # values that lie in vector registers
        self.in_lock = False
        self._constants: dict[int, int] = {}
        program.functions.append(self.function)

    def slot(self) -> int:
        """A new scalar register."""
        self.function.slots += 1
        return self.function.slots - 1

    def view(self) -> int:
        """A new view register."""
        self.function.views += 1
        return self.function.views - 1

    def vector(self) -> int:
        """A new vector register."""
        self.function.registers += 1
        return self.function.registers - 1

    def define(self, name: str, kind: str) -> int:
        """Give a value a register that suits its type."""
        new = self.view if kind.startswith("memref") else self.vector if kind.startswith("vector") else self.slot
        register = new()
        self.bind(name, kind, register)
        return register

    def bind(self, name: str, kind: str, register: int) -> None:
        """Let a value stand for a register that exists."""
        self.registers[name], self.types[name] = register, kind
        if kind.startswith("vector"):
            self.vectors.add(name)

    def use(self, name: str) -> int:
        """The register of a value; of a scalar that lies in a vector register's first lane, a scalar register."""
        if name in self.vectors and not self.types[name].startswith("vector"):
            out = self.slot()
            self.emit("reg_lane", out, self.registers[name], TYPES.index(element(self.types[name])))
            return out
        return self.registers[name]

    def integer(self, value: int) -> int:
        """A register that holds an integer constant."""
        register = self._constant(value & (1 << 64) - 1)
        self.known[register] = value
        return register

    def real(self, value: float) -> int:
        """A register that holds a floating constant."""
        return self._constant(struct.unpack("<Q", struct.pack("<d", value))[0])

    def _constant(self, bits: int) -> int:
        if bits not in self._constants:
            self._constants[bits] = self.slot()
            self.function.constants.append((self._constants[bits], bits))
        return self._constants[bits]

    def emit(self, code: str, *numbers: int) -> int:
        """Append an instruction; return its position."""
        at = len(self.code)
        self.code.append(codes()[code])
        self.code += numbers
        return at

    def here(self) -> int:
        """Position of the next instruction: the target of a jump."""
        return len(self.code)

    def patch(self, at: int) -> None:
        """Let the jump at `at` lead here (its target is the last number that was emitted with it)."""
        lengths = {"jump": 1, "jump_if_not": 2, "jump_if": 2, "loop_test": 3}
        name = next(name for name in lengths if codes()[name] == self.code[at])
        self.code[at + lengths[name]] = self.here()

    def instruction(self, op: Op) -> int:
        """Number of a new instruction of the program that came from `op`."""
        name = op.name.removeprefix("hivm.hir.")
        self.program.instructions.append(Instruction(name, op.location, self.function.name))
        at = len(self.program.instructions) - 1
        if self.in_lock:
            self.program.locked.append(at)
        return at

    def tile(self, op: Op, name: str, operands: tuple[list[str], list[str], list[str]], attributes: list[int]) -> None:
        """Append a tile op. operands: names of inputs, outputs, scratch buffers. Raises NotSupported."""
        if name not in tile_ops():
            raise unknown(op)
        at = self.instruction(op)
        described: list[int] = []
        for value in (*operands[0], *operands[1], *operands[2]):
            described += [self.scalar_type(value), self.use(value)]
        self.emit("tile", tile_ops()[name], at, *map(len, operands), *described, len(attributes), *attributes)

    def scalar_type(self, value: str) -> int:
        """Number of a scalar's type; -1 for a memref."""
        kind = self.types[value]
        return -1 if memref(kind) else TYPES.index(element(kind))


def unknown(op: Op, why: str = "the virtual Ascend does not know this op") -> NotSupported:
    """The error for an op that the machine cannot run, with its place in the kernel's source."""
    place = f" ({op.location.file}:{op.location.line})" if op.location.line else ""
    return NotSupported(f"{op.name}{place}: {why}")
