"""Lowers a parsed HIVM module to the machine's program: functions, arguments and control flow."""

from __future__ import annotations

import re
from collections.abc import Callable

from ..errors import KernelError
from . import lower_scalar, lower_tile, lower_vector, lower_view
from .memref import memref, number
from .mlir import Module, Op, Region, parse
from .opcodes import TYPES
from .program import ARGUMENTS, Builder, Parameter, Program, unknown

Handler = Callable[[Builder, Op], None]
_ARGUMENT = re.compile(r"arg_type<(\w+)>")
_SPECIAL = {"ffts_base_address": "zero", "sync_block_lock": "lock", "workspace": "workspace"}
_HANDLERS: dict[str, Handler] = {
    "arith.constant": lower_scalar.constant,
    "memref.subview": lower_view.subview, "memref.reinterpret_cast": lower_view.reinterpret_cast,
    "memref.cast": lower_view.same, "memref.collapse_shape": lower_view.collapse,
    "memref.expand_shape": lower_view.expand, "memref.view": lower_view.byte_view, "memref.dim": lower_view.dim,
    "memref.memory_space_cast": lower_view.same, "builtin.unrealized_conversion_cast": lower_vector.cast,
    "vector.bitcast": lower_vector.cast,
    "memref.extract_strided_metadata": lower_view.metadata,
    "hivm.hir.pointer_cast": lower_view.pointer_cast, "hivm.hir.bitcast": lower_view.retype,
    "hivm.hir.set_flag": lower_tile.flags, "hivm.hir.wait_flag": lower_tile.flags,
    "hivm.hir.pipe_barrier": lower_tile.barrier, "hivm.hir.sync_block_set": lower_tile.cross_core,
    "hivm.hir.sync_block_wait": lower_tile.cross_core, "hivm.hir.create_sync_block_lock": lower_tile.lock}
_IDENTITIES = {"hivm.hir.get_block_idx": "block_index", "hivm.hir.get_sub_block_idx": "sub_block_index",
               "hivm.hir.get_block_num": "num_blocks"}


def lower(text: str) -> Program:
    """Lower the text of a final HIVM module (generic form) to a program.

    Raises NotSupported for an op that the machine lacks, with the op's name and source line; KernelError for text
    that is no HIVM module.
    """
    module = parse(text)
    program = Program()
    for function in module.functions():
        if "<HOST>" in function.attributes.get("hacc.function_kind", ""):
            _host(program, function)
        elif "hacc.entry" in function.attributes:
            _Function(program, module, function).lower()
    if not program.functions:
        raise KernelError("the compiled module holds no kernel function")
    return program


def _host(program: Program, function: Op) -> None:
    """Take the workspace's size from the host function that returns it."""
    if "infer_workspace_shape_function" in function.attributes.get("hacc.host_func_type", ""):
        values = {op.results[0]: op for op in function.regions[0].ops if op.name == "arith.constant"}
        program.workspace_bytes = number(values[function.regions[0].ops[-1].operands[0]].attributes["value"])


class _Function:
    def __init__(self, program: Program, module: Module, function: Op) -> None:
        self.program, self.module, self.op = program, module, function
        name = function.attributes["sym_name"].strip('"')
        self.builder = Builder(program, name, cube="<AIC>" in function.attributes.get("hivm.func_core_type", ""))
        self.called = {f.attributes["sym_name"].strip('"'): f for f in module.functions()}
        self.variables: dict[str, int] = {}
        self.depth = 0
        self.structures: dict[str, Handler] = {
            "func.call": self.call, "memref.alloca": self.variable, "memref.load": self.load,
            "memref.store": self.store, "scf.for": self.loop, "scf.if": self.branch, "scf.while": self.repeat,
            "func.return": self.end}

    def lower(self) -> None:
        self.parameters(self.op.regions[0].arguments)
        self.block(self.op.regions[0])

    def parameters(self, arguments: list[tuple[str, str]]) -> None:
        marks = [_ARGUMENT.search(part) for part in _dictionaries(self.op.attributes.get("arg_attrs", ""))]
        marks += [None] * (len(arguments) - len(marks))
        plain = sum(mark is None or mark[1] not in _SPECIAL for mark in marks)
        users = plain - 3
        at = 0
        for (name, kind), mark in zip(arguments, marks, strict=True):
            if mark is not None and mark[1] in _SPECIAL:
                source = ARGUMENTS[_SPECIAL[mark[1]]]
            else:
                source = at if at < users else ARGUMENTS[("grid_x", "grid_y", "grid_z")[at - users]]
                at += 1
            found = memref(kind)
            register = self.builder.define(name, kind)
            self.builder.function.parameters.append(
                Parameter(source, register, TYPES.index(found.element) if found else -1))
        self.program.num_arguments = users

    def block(self, region: Region) -> None:
        for op in region.ops:
            self.one(op)

    def one(self, op: Op) -> None:
        name = op.name
        if name in _HANDLERS:
            _HANDLERS[name](self.builder, op)
        elif name in self.structures:
            self.structures[name](self.builder, op)
        elif name.startswith("affine."):
            lower_scalar.affine(self.builder, op, self.module.aliases)
        elif name.startswith(("arith.", "math.")):
            lower_scalar.arith(self.builder, op)
        elif name in _IDENTITIES:
            self.builder.emit(_IDENTITIES[name], self.builder.define(op.results[0], op.result_types[0]))
        elif name in lower_tile.NOTHING:
            if name.startswith("hivm.hir.sync_block_"):  # blocks run one after another here: the lock is always free
                self.builder.in_lock = name.endswith("_lock")
        elif name.startswith("hivm.hir."):
            lower_tile.tile(self.builder, op)
        elif name.startswith("ave.hir."):
            lower_vector.vector(self.builder, op)
        else:
            raise unknown(op)

    def end(self, builder: Builder, op: Op) -> None:
        if self.depth == 0:
            builder.emit("halt")

    def call(self, builder: Builder, op: Op) -> None:
        """Lower the called function in place, with names of its own."""
        name = op.attributes["callee"].removeprefix("@")
        called = self.called.get(name)
        if called is None:
            raise unknown(op, f"the function {name} has no body in the compiled module")
        (region,) = called.regions
        outside = builder.registers, builder.types, builder.vectors
        sources = [(builder.registers[value], value in builder.vectors) for value in op.operands]
        builder.registers, builder.types, builder.vectors = {}, {}, set()
        for (argument, kind), (register, is_vector) in zip(region.arguments, sources, strict=True):
            builder.bind(argument, kind, register)
            if is_vector:
                builder.vectors.add(argument)
        self.depth += 1
        self.block(region)
        self.depth -= 1
        last = region.ops[-1].operands
        results = [(builder.registers[value], builder.types[value]) for value in last]
        builder.registers, builder.types, builder.vectors = outside
        for value, (register, kind) in zip(op.results, results, strict=True):
            builder.bind(value, kind, register)

    def variable(self, builder: Builder, op: Op) -> None:
        """memref.alloca of one scalar: a register."""
        found = memref(op.result_types[0])
        if found is None or found.shape:
            raise unknown(op, "only single variables are known to the virtual Ascend")
        self.variables[op.results[0]] = builder.slot()
        builder.types[op.results[0]] = op.result_types[0]

    def load(self, builder: Builder, op: Op) -> None:
        if op.operands[0] in self.variables:
            builder.emit("move", builder.define(op.results[0], op.result_types[0]), self.variables[op.operands[0]])
        else:
            lower_view.load(builder, op)

    def store(self, builder: Builder, op: Op) -> None:
        if op.operands[1] in self.variables:
            builder.emit("move", self.variables[op.operands[1]], builder.use(op.operands[0]))
        else:
            lower_view.store(builder, op)

    def move(self, targets: list[int], values: list[str]) -> None:
        """Copy values to registers as if at once."""
        builder = self.builder
        sources = [builder.use(value) for value in values]
        kinds = ["move_view" if kind.startswith("memref") else "move_register" if kind.startswith("vector") else "move"
                 for kind in (builder.types[value] for value in values)]
        moves = [(kind, to, of) for kind, to, of in zip(kinds, targets, sources, strict=True) if to != of]
        if any(of in targets for _, _, of in moves):
            for i, (kind, to, of) in enumerate(moves):
                held = {"move_view": builder.view, "move_register": builder.vector, "move": builder.slot}[kind]()
                builder.emit(kind, held, of)
                moves[i] = (kind, to, held)
        for kind, to, of in moves:
            builder.emit(kind, to, of)

    def body(self, region: Region, targets: list[int]) -> None:
        """Lower a region whose `scf.yield` writes to `targets`."""
        for op in region.ops:
            if op.name == "scf.yield":
                self.move(targets, op.operands)
            else:
                self.one(op)

    def loop(self, builder: Builder, op: Op) -> None:
        (region,) = op.regions
        (counter, kind), *carried = region.arguments
        lower, upper, step, *initial = op.operands
        registers = [builder.define(name, type_) for name, type_ in carried]
        self.move(registers, initial)
        index = builder.define(counter, kind)
        builder.emit("move", index, builder.use(lower))
        test = builder.emit("loop_test", index, builder.use(upper), 0)
        self.body(region, registers)
        builder.emit("add", index, index, builder.use(step), lower_scalar.bits(kind))
        builder.emit("jump", test)
        builder.patch(test)
        for name, type_, register in zip(op.results, op.result_types, registers, strict=True):
            builder.bind(name, type_, register)

    def branch(self, builder: Builder, op: Op) -> None:
        condition = builder.use(op.operands[0])
        targets = [builder.define(name, kind) for name, kind in zip(op.results, op.result_types, strict=True)]
        to_else = builder.emit("jump_if_not", condition, 0)
        self.body(op.regions[0], targets)
        if len(op.regions) > 1 and op.regions[1].ops:
            to_end = builder.emit("jump", 0)
            builder.patch(to_else)
            self.body(op.regions[1], targets)
            builder.patch(to_end)
        else:
            builder.patch(to_else)

    def repeat(self, builder: Builder, op: Op) -> None:
        before, after = op.regions
        registers = [builder.define(name, kind) for name, kind in before.arguments]
        self.move(registers, op.operands)
        results = [builder.define(name, kind) for name, kind in zip(op.results, op.result_types, strict=True)]
        for (name, kind), register in zip(after.arguments, results, strict=True):
            builder.bind(name, kind, register)
        start = builder.here()
        for inner in before.ops:
            if inner.name != "scf.condition":
                self.one(inner)
                continue
            self.move(results, inner.operands[1:])
            leave = builder.emit("jump_if_not", builder.use(inner.operands[0]), 0)
        self.body(after, registers)
        builder.emit("jump", start)
        builder.patch(leave)


def _dictionaries(text: str) -> list[str]:
    """The dictionaries of `[{..}, {..}]`, one for each argument."""
    return re.findall(r"\{([^{}]*)\}", text)
