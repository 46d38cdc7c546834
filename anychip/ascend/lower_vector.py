"""Lowers the 950's vector functions (`ave.hir`: operations on vector registers)."""

from __future__ import annotations

import re
from collections.abc import Callable

from .memref import element, name_of
from .mlir import Op
from .opcodes import TYPES, enumeration
from .program import Builder, unknown

_VECTOR = re.compile(r"vector<(?:\d+x)*([a-z]\w*)>")
_PLAIN = {"vadd": "add", "vsub": "sub", "vmul": "mul", "vdiv": "div", "vdivf": "div", "vdivfhp": "div", "vmax": "max",
          "vmin": "min", "vsmax": "max", "vsmin": "min", "vumax": "max", "vumin": "min", "vmod": "mod", "vmodui": "mod",
          "vand": "bit_and", "vor": "bit_or", "vxor": "bit_xor", "vnot": "bit_not", "vneg": "neg", "vabs": "abs",
          "vexp": "exp", "vexpdif": "exp_difference", "vln": "ln", "vsqrt": "sqrt", "vrsqrt": "rsqrt", "vrelu": "relu",
          "vadds": "add", "vmuls": "mul", "vmaxs": "max", "vmins": "min", "vsmaxs": "max", "vsmins": "min",
          "vumaxs": "max", "vumins": "min", "vshl": "shl", "vshr": "shr", "vshls": "shl", "vshrs": "shr"}
_CONVERT = {"vextf", "vtruncf", "vextsi", "vextui", "vtrunci", "vsitofp", "vuitofp", "vfptosi", "vfptoui"}
_COMPARE = {"ULE": "le", "UGE": "ge", "ULT": "lt", "UGT": "gt"}
_LOAD = {"NORM": "norm", "BRC": "brc", "UNPK": "unpack2", "UNPK4": "unpack4", "DINTLV": "deinterleave",
         "US": "upsample", "DS": "downsample"}
_STORE = {"NORM": "norm", "ONEPT": "one", "PK": "pack2", "PK4": "pack4"}
_REDUCE = {"add": "sum", "max": "max", "min": "min", "umax": "max", "umin": "min", "xori": "xori"}
_MASK = {"ALL": "all", "ALLF": "none", "H": "half", "Q": "quarter", "M3": "third", "M4": "fourth"}
_TRUNC = "truncwithoverflow"


def vector(builder: Builder, op: Op) -> None:
    """Lower one op of a vector function. Raises NotSupported for one that the machine lacks."""
    name = op.name.removeprefix("ave.hir.")
    if name in _PLAIN:
        _plain(builder, op, name)
    elif name in _CONVERT:
        _convert(builder, op, name)
    elif name in _OTHERS:
        _OTHERS[name](builder, op)
    else:
        raise unknown(op)


def lane(op: Op, kind: str) -> int:
    """Number of the element type of a vector type."""
    match = _VECTOR.match(kind)
    if match is None:
        raise unknown(op, f"a vector is expected, not {kind}")
    return TYPES.index(element(match[1]))


def _emit(builder: Builder, op: Op, code: str, *, inputs: list[str], mask: str | None = None, scalar: str | None = None,
          types: tuple[int, int] | None = None, mode: int = 0, extra: int = 0) -> None:
    results = [builder.define(name, kind) for name, kind in zip(op.results, op.result_types, strict=True)]
    sources = [register(builder, op, name) for name in inputs] + [-1] * (3 - len(inputs))
    from_, to = types or (lane(op, op.result_types[0]),) * 2
    mask_register = register(builder, op, mask) if mask else -1
    builder.emit("reg_op", builder.instruction(op), enumeration("Reg")[code], *(results + [-1])[:2], *sources,
                 mask_register, builder.use(scalar) if scalar else -1, from_, to, mode, extra)


def register(builder: Builder, op: Op, name: str) -> int:
    """The vector register of a value. Raises NotSupported where it lies elsewhere."""
    if name not in builder.vectors:
        raise unknown(op, "a vector register is expected")
    return builder.registers[name]


def _split(op: Op) -> tuple[list[str], str | None]:
    """Source vectors, and the mask where the last vector operand is one."""
    kinds = dict(zip(op.operands, op.operand_types, strict=True))
    vectors = [name for name in op.operands if kinds[name].startswith("vector")]
    if len(vectors) > 1 and kinds[vectors[-1]].endswith("xi1>"):
        return vectors[:-1], vectors[-1]
    return vectors, None


def _plain(builder: Builder, op: Op, name: str) -> None:
    sources, mask = _split(op)
    scalar = next((value for value, kind in zip(op.operands, op.operand_types, strict=True)
                   if not kind.startswith("vector")), None)
    kind = lane(op, op.result_types[0])
    unsigned = name.startswith(("vum", "vmodui")) or "cast_unsigned" in op.attributes.get("cast", "")
    if name.startswith("vsh") and op.operand_types[-1] == "i1":
        unsigned = builder.known.get(builder.use(op.operands[-1]), 1) == 0
    _emit(builder, op, _PLAIN[name], inputs=sources, mask=mask, scalar=scalar, types=(_unsigned(kind, unsigned),) * 2)


def _unsigned(kind: int, unsigned: bool) -> int:
    return TYPES.index("u" + TYPES[kind][1:]) if unsigned and TYPES[kind].startswith("i") else kind


def _convert(builder: Builder, op: Op, name: str) -> None:
    sources, mask = _split(op)
    from_, to = lane(op, op.operand_types[0]), lane(op, op.result_types[0])
    from_, to = _unsigned(from_, name in ("vextui", "vuitofp")), _unsigned(to, name == "vfptoui")
    mode = name_of(op.attributes.get("rnd", "<rint>")).lower()
    part = op.attributes.get("part", op.attributes.get("pp", "0"))
    number = 1 if "odd" in part else int(re.search(r"(\d)>?$", part)[1]) if "pp" in part else 0  # type: ignore[index]
    saturates = op.attributes.get("sat", "false").startswith("true")
    _emit(builder, op, "convert", inputs=sources, mask=mask, types=(from_, to), extra=2 * number + saturates,
          mode=enumeration("Round")["trunc_overflow" if mode == _TRUNC else mode])


def _compare(builder: Builder, op: Op) -> None:
    mode = name_of(op.attributes["cmp"])
    kind = _unsigned(lane(op, op.operand_types[0]), mode in _COMPARE)
    scalar = op.operands[1] if not op.operand_types[1].startswith("vector") else None
    sources, mask = _split(op)
    _emit(builder, op, "compare", inputs=sources, mask=mask, scalar=scalar, types=(kind, kind),
          mode=enumeration("Compare")[_COMPARE.get(mode, mode.lower())])


def _select(builder: Builder, op: Op) -> None:
    _emit(builder, op, "select", inputs=op.operands[1:3], mask=op.operands[0])


def _reduce(builder: Builder, op: Op) -> None:
    kind = name_of(op.attributes["kind"])
    sources, mask = _split(op)
    type_ = _unsigned(lane(op, op.operand_types[0]), kind.startswith("u"))
    _emit(builder, op, "reduce", inputs=sources, mask=mask, mode=enumeration("Reduce")[_REDUCE[kind]],
          types=(type_, type_))


def _iota(builder: Builder, op: Op) -> None:
    falling = "DECREASE" in op.attributes.get("increase_p", "")
    _emit(builder, op, "iota", inputs=[], scalar=op.operands[0], extra=int(falling))


def _interleave(builder: Builder, op: Op) -> None:
    _emit(builder, op, "deinterleave" if op.name.endswith("vdintlv") else "interleave", inputs=op.operands[:2])


def _first_lane(builder: Builder, op: Op) -> None:
    if not op.attributes.get("low", "true").startswith("true"):
        raise unknown(op, "a broadcast of the last lane is not known to the virtual Ascend")
    _emit(builder, op, "first_lane", inputs=op.operands[:1], mask=op.operands[1])


def _multiply_add(builder: Builder, op: Op) -> None:
    sources, mask = _split(op)
    _emit(builder, op, "multiply_add", inputs=[sources[1], sources[2], sources[0]], mask=mask)


def _round(builder: Builder, op: Op) -> None:
    sources, mask = _split(op)
    _emit(builder, op, "rounded", inputs=sources, mask=mask,
          mode=enumeration("Round")[name_of(op.attributes.get("rnd", "<rint>"))])


def _predicates(builder: Builder, op: Op) -> None:
    code = {"and": "bit_and", "or": "bit_or", "xor": "bit_xor", "not": "bit_not"}[op.name.rpartition(".")[2]]
    _emit(builder, op, code, inputs=op.operands[:-1], mask=op.operands[-1])


def _fill(builder: Builder, op: Op) -> None:
    mask = register(builder, op, op.operands[1]) if len(op.operands) > 1 else -1
    out = builder.define(op.results[0], op.result_types[0])
    builder.emit("reg_fill", builder.instruction(op), out, builder.use(op.operands[0]), lane(op, op.result_types[0]),
                 mask)


def lane_bytes(op: Op) -> int:
    """Width of the lanes that a mask is made for."""
    dist = re.search(r"<pb(\d+)>", op.attributes.get("functionType", ""))
    width = dist[1] if dist else op.attributes.get("element_alignment_bit_width", "32").split(":")[0]
    return int(width) // 8


def _mask(builder: Builder, op: Op) -> None:
    pattern = name_of(op.attributes["pattern"])
    count = int(pattern[2:]) if pattern.startswith("VL") else 0
    number = enumeration("MaskPattern")["first" if count else _MASK[pattern]]
    out = builder.define(op.results[0], op.result_types[0])
    builder.emit("reg_mask", out, number | count << 4, lane_bytes(op))


def _count(builder: Builder, op: Op) -> None:
    mask, left = (builder.define(name, kind) for name, kind in zip(op.results, op.result_types, strict=True))
    builder.emit("reg_count", mask, left, builder.use(op.operands[0]), lane_bytes(op))


def _address(builder: Builder, op: Op, values: list[str], kind: str) -> list[int]:
    index = [builder.use(value) for value in values]
    return [builder.use(op.operands[0]), enumeration_of(op, kind), _element(op), len(index), *index]


def enumeration_of(op: Op, kind: str) -> int:
    """Number of a load's or store's pattern. Raises NotSupported for one that the machine lacks."""
    loads = kind == "LoadPattern"
    if "pb" in op.attributes.get("functionType", "") and "xi1" in op.operand_types[0]:
        return enumeration(kind)["mask"] | lane_bytes(op) << 4
    pattern = name_of(op.attributes["pattern"])
    stem = re.sub(r"_B\d+$", "", pattern)
    stem = "UNPK4" if pattern == "UNPK4_B8" else stem
    if loads and stem.startswith("UNPK") and "ave.unaligned_ub_access" in op.attributes:
        stem = "NORM"  # unaligned loads do not unpack: the compiler interleaves after them
    names = _LOAD if loads else _STORE
    if stem not in names:
        raise unknown(op, f"the pattern {pattern} is not known to the virtual Ascend")
    return enumeration(kind)[names[stem]]


def _element(op: Op) -> int:
    match = re.match(r"memref<(?:[\d?]+x)*(\w+)", op.operand_types[0])
    if match is None:
        raise unknown(op, "a memref is expected")
    return TYPES.index(element(match[1]))


def _load(builder: Builder, op: Op) -> None:
    results = [builder.define(name, kind) for name, kind in zip(op.results, op.result_types, strict=True)]
    builder.emit("reg_load", builder.instruction(op), *(results + [-1])[:2],
                 *_address(builder, op, op.operands[1:], "LoadPattern"))


def _store(builder: Builder, op: Op) -> None:
    *index, mask, value = op.operands[1:]
    builder.emit("reg_store", builder.instruction(op), register(builder, op, value), register(builder, op, mask),
                 *_address(builder, op, index, "StorePattern"))


def cast(builder: Builder, op: Op) -> None:
    """builtin.unrealized_conversion_cast, vector.bitcast: the same register; a scalar fills one."""
    source, kind = op.operands[0], op.result_types[0]
    if source in builder.vectors:
        builder.bind(op.results[0], kind, builder.registers[source])
        builder.vectors.add(op.results[0])
    elif kind.startswith("vector"):
        out = builder.define(op.results[0], kind)
        builder.emit("reg_fill", builder.instruction(op), out, builder.use(source), lane(op, kind), -1)
    else:
        builder.bind(op.results[0], kind, builder.use(source))


def constant(builder: Builder, op: Op, value: str) -> None:
    """arith.constant of a vector whose lanes are equal."""
    match = re.match(r"dense<([^>\[]*)>", value)
    if match is None:
        raise unknown(op, "a constant vector of different lanes is not known to the virtual Ascend")
    kind = lane(op, op.result_types[0])
    text = match[1].strip()
    if text in ("true", "false"):
        source = builder.integer(int(text == "true"))
    else:
        source = builder.real(float(text)) if TYPES[kind] in ("f16", "bf16", "f32") else builder.integer(int(text))
    out = builder.define(op.results[0], op.result_types[0])
    builder.emit("reg_fill", builder.instruction(op), out, source, kind, -1)


_OTHERS: dict[str, Callable[[Builder, Op], None]] = {
    "vcmp": _compare, "vcmps": _compare, "vsel": _select, "reduction": _reduce, "vci": _iota, "vintlv": _interleave,
    "vdintlv": _interleave, "vector_broadcast": _first_lane, "vmula": _multiply_add, "vtrc": _round,
    "preg.and": _predicates, "preg.or": _predicates, "preg.xor": _predicates, "preg.not": _predicates,
    "broadcast": _fill, "scalar_broadcast": _fill, "pge": _mask, "plt": _count, "vload": _load, "masked_store": _store}
