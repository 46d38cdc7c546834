"""Lowers ops on memrefs: pointers, views, single elements."""

from __future__ import annotations

from .memref import DYNAMIC, Memref, groups, integers, memref
from .mlir import Op
from .opcodes import SPACES, TYPES
from .program import Builder, unknown


def segments(op: Op) -> list[list[str]]:
    """Operands by `operandSegmentSizes`; all in one list where the op has none."""
    sizes = integers(op.attributes.get("operandSegmentSizes"))
    if not sizes:
        return [list(op.operands)]
    found, at = [], 0
    for size in sizes:
        found.append(op.operands[at:at + size])
        at += size
    return found


def memref_type(op: Op, text: str) -> Memref:
    """The memref type of an operand or result. Raises NotSupported where it is another type."""
    found = memref(text)
    if found is None:
        raise unknown(op, f"a memref is expected, not {text}")
    return found


def mixed(builder: Builder, static: tuple[int, ...], dynamic: list[str]) -> list[int]:
    """Registers of sizes that are partly constants, partly values."""
    values = iter(dynamic)
    return [builder.use(next(values)) if size == DYNAMIC else builder.integer(size) for size in static]


def _shape(builder: Builder, kind: Memref, dynamic: list[str]) -> list[int]:
    return mixed(builder, tuple(DYNAMIC if size is None else size for size in kind.shape), dynamic)


def pointer_cast(builder: Builder, op: Op) -> None:
    """hivm.hir.pointer_cast: a byte address as a memref."""
    kind = memref_type(op, op.result_types[0])
    addresses, dynamic = segments(op)
    if len(addresses) != 1:
        raise unknown(op, "a pointer of several buffers should be resolved by this stage")
    sizes = _shape(builder, kind, dynamic)
    out = builder.define(op.results[0], op.result_types[0])
    builder.emit("pointer", out, SPACES.index(kind.space), TYPES.index(kind.element), builder.use(addresses[0]),
                 len(sizes), *sizes)


def reinterpret_cast(builder: Builder, op: Op) -> None:
    """memref.reinterpret_cast."""
    source, offsets, sizes, strides = segments(op)
    get = op.attributes
    (offset,) = mixed(builder, integers(get["static_offsets"]), offsets)
    size = mixed(builder, integers(get["static_sizes"]), sizes)
    stride = mixed(builder, integers(get["static_strides"]), strides)
    out = builder.define(op.results[0], op.result_types[0])
    builder.emit("reinterpret", out, builder.use(source[0]), offset, len(size), *size, *stride)


def subview(builder: Builder, op: Op) -> None:
    """memref.subview, also where it drops dimensions of size 1."""
    source, offsets, sizes, strides = segments(op)
    static = integers(op.attributes["static_sizes"])
    result = memref_type(op, op.result_types[0]).shape
    parts = [mixed(builder, integers(op.attributes[f"static_{name}"]), values)
             for name, values in (("offsets", offsets), ("sizes", sizes), ("strides", strides))]
    kept = _kept(static, result)
    out = builder.define(op.results[0], op.result_types[0])
    builder.emit("subview", out, builder.use(source[0]), builder.instruction(op), len(static), *parts[0], *parts[1],
                 *parts[2], kept)


def _kept(static: tuple[int, ...], result: tuple[int | None, ...]) -> int:
    """Bit mask of the dimensions that a subview keeps: as MLIR does, the first that match the result's in order."""
    kept, at = 0, 0
    for dim, size in enumerate(static):
        if at < len(result) and result[at] == (None if size == DYNAMIC else size):
            kept |= 1 << dim
            at += 1
    return kept


def byte_view(builder: Builder, op: Op) -> None:
    """memref.view: bytes at a shift as a memref of another type."""
    kind = memref_type(op, op.result_types[0])
    sizes = _shape(builder, kind, op.operands[2:])
    out = builder.define(op.results[0], op.result_types[0])
    builder.emit("byte_view", out, builder.use(op.operands[0]), builder.use(op.operands[1]),
                 TYPES.index(kind.element), len(sizes), *sizes)


def retype(builder: Builder, op: Op) -> None:
    """hivm.hir.bitcast of a memref: the same bytes as another element type of the same width."""
    kind = memref_type(op, op.result_types[0])
    out = builder.define(op.results[0], op.result_types[0])
    builder.emit("retype", out, builder.use(op.operands[0]), TYPES.index(kind.element))


def same(builder: Builder, op: Op) -> None:
    """memref.cast and the like: the same view under another type."""
    builder.bind(op.results[0], op.result_types[0], builder.use(op.operands[0]))


def collapse(builder: Builder, op: Op) -> None:
    """memref.collapse_shape."""
    lengths = [len(group) for group in groups(op.attributes["reassociation"])]
    out = builder.define(op.results[0], op.result_types[0])
    builder.emit("collapse", out, builder.use(op.operands[0]), builder.instruction(op), len(lengths), *lengths)


def expand(builder: Builder, op: Op) -> None:
    """memref.expand_shape."""
    lengths = [len(group) for group in groups(op.attributes["reassociation"])]
    lengths = lengths or [len(integers(op.attributes["static_output_shape"]))]  # a single element as a view of size 1
    sizes = mixed(builder, integers(op.attributes["static_output_shape"]), op.operands[1:])
    out = builder.define(op.results[0], op.result_types[0])
    builder.emit("expand", out, builder.use(op.operands[0]), len(lengths), *lengths, *sizes)


def metadata(builder: Builder, op: Op) -> None:
    """memref.extract_strided_metadata: base, offset, sizes, strides."""
    rank = len(memref_type(op, op.operand_types[0]).shape)
    source = builder.use(op.operands[0])
    base = builder.define(op.results[0], op.result_types[0])
    numbers = [builder.define(name, "index") for name in op.results[1:]]
    builder.emit("metadata", base, source, rank, *numbers)


def dim(builder: Builder, op: Op) -> None:
    """memref.dim."""
    out = builder.define(op.results[0], "index")
    builder.emit("size_of", out, builder.use(op.operands[0]), builder.use(op.operands[1]))


def load(builder: Builder, op: Op) -> None:
    """memref.load by the scalar unit."""
    source = builder.use(op.operands[0])
    index = [builder.use(value) for value in op.operands[1:]]
    out = builder.define(op.results[0], op.result_types[0])
    builder.emit("load_element", out, source, builder.instruction(op), len(index), *index)


def store(builder: Builder, op: Op) -> None:
    """memref.store by the scalar unit."""
    value, target, *index = (builder.use(name) for name in op.operands)
    builder.emit("store_element", value, target, builder.instruction(op), len(index), *index)
