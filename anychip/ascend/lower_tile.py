"""Lowers HIVM's tile ops and synchronisation ops."""

from __future__ import annotations

import re
from collections.abc import Callable

from .lower_view import memref_type, segments
from .memref import element, flag, integers, name_of, number
from .mlir import Op
from .opcodes import PIPES, enumeration
from .program import Builder, unknown

_ELEMENTWISE = set(
    "vadd vsub vmul vdiv vmax vmin vmod vmodui vpow vldexp vand vor vxor vnot vshl vshr vmulext vmulextui vexp vexp2 "
    "vexpm1 vln vlog2 vlog10 vlog1p vsqrt vrsqrt vrec vabs vrelu vtanh vsin vcos vtan vatan verf vilogb visinf visnan "
    "vcmp vsel".split())
_ROUND = {"truncwithoverflow": "trunc_overflow"}
_REDUCE = {"max_with_index_left": "max_left", "max_with_index_right": "max_right", "max_with_index": "max_left",
           "min_with_index_left": "min_left", "min_with_index_right": "min_right", "min_with_index": "min_left"}
_ATOMIC = {"and": "bit_and", "or": "bit_or", "xor": "bit_xor"}
NOTHING = {"hivm.hir.set_mask_norm", "hivm.hir.set_ffts_base_addr", "hivm.hir.set_ctrl", "hivm.hir.anchor",
           "hivm.hir.debug", "hivm.hir.dcci", "hivm.hir.sync_block_lock", "hivm.hir.sync_block_unlock",
           "hivm.hir.free_lock_var", "hivm.hir.init_debug", "hivm.hir.finish_debug", "annotation.mark"}
Tile = Callable[[Builder, Op, str], None]


def tile(builder: Builder, op: Op) -> None:
    """Lower one `hivm.hir` op that works on tiles. Raises NotSupported for one that the machine lacks."""
    name = op.name.removeprefix("hivm.hir.")
    if name in _ELEMENTWISE:
        _elementwise(builder, op, name)
    elif name in _OPS:
        _OPS[name](builder, op, name)
    else:
        raise unknown(op)


def _parts(op: Op, inputs: int = 1, outputs: int = 1) -> tuple[list[str], list[str], list[str]]:
    """Inputs, outputs and scratch buffers of an op; by position where it has no segment sizes."""
    found = segments(op)
    if len(found) == 1:
        names = found[0]
        return names[:inputs], names[inputs:inputs + outputs], names[inputs + outputs:]
    return found[0], found[1], [name for part in found[2:] for name in part]


def _elementwise(builder: Builder, op: Op, name: str) -> None:
    inputs = 3 if name == "vsel" else 2 if name in ("vcmp", "vpow", "vldexp") else 1
    signed = all(flag(op.attributes, key, True) for key in ("is_signed", "isSigned")) and not name.endswith("ui")
    mode = enumeration("Compare")[name_of(op.attributes.get("compare_mode", "<eq>"))]
    order = integers(op.attributes.get("transpose"))
    builder.tile(op, name, _parts(op, inputs), [int(signed), mode, *order])


def _cast(builder: Builder, op: Op, name: str) -> None:
    mode = name_of(op.attributes.get("round_mode", "<rint>"))
    how = name_of(op.attributes.get("cast", "<cast_signed>"))
    if how == "bitcast":
        raise unknown(op, "a cast of bits is not known to the virtual Ascend")
    builder.tile(op, name, _parts(op), [int(how == "cast_signed"), enumeration("Round")[_ROUND.get(mode, mode)],
                                        *integers(op.attributes.get("transpose"))])


def _reduce(builder: Builder, op: Op, name: str) -> None:
    source, outputs, scratch, *rest = segments(op)
    if rest and rest[0]:
        raise unknown(op, "a reduction with given indices is not known to the virtual Ascend")
    kind = name_of(op.attributes["arith"])
    builder.tile(op, name, (source, outputs, scratch), [
        enumeration("Reduce")[_REDUCE.get(kind, kind)], int(flag(op.attributes, "unsigned_src", False)),
        int(flag(op.attributes, "tie_break_left", True)), *integers(op.attributes["reduce_dims"])])


def _range(builder: Builder, op: Op, name: str) -> None:
    outputs, offset, strides = segments(op)
    builder.tile(op, name, (offset + strides, outputs, []), [len(offset)])


def _sort(builder: Builder, op: Op, name: str) -> None:
    axis = number(op.attributes.get("sort_axis", "-1"))
    builder.tile(op, name, _parts(op), [int(flag(op.attributes, "descending", False)), axis])


def _gather(builder: Builder, op: Op, name: str) -> None:
    builder.tile(op, name, _parts(op, inputs=2), [number(op.attributes.get("gather_axis", "-1"))])


def _scan(builder: Builder, op: Op, name: str) -> None:
    dims = integers(op.attributes["cum_dims"])
    if len(dims) != 1:
        raise unknown(op, "a cumulative op over several dimensions is not known to the virtual Ascend")
    builder.tile(op, name, _parts(op), [int(flag(op.attributes, "reverse", False)), *dims])


def _deinterleave(builder: Builder, op: Op, name: str) -> None:
    channel = re.search(r"CHANNEL_(\d)", op.attributes.get("index_mode", ""))
    inputs, outputs, _ = _parts(op, outputs=len(op.operands) - 1)
    builder.tile(op, name, (inputs, outputs, []), [number(op.attributes.get("channel_num", "2")),
                                                   int(channel[1]) if channel else -1])


def _transpose(builder: Builder, op: Op, name: str) -> None:
    builder.tile(op, name, _parts(op), list(integers(op.attributes["permutation"])))


def _flip(builder: Builder, op: Op, name: str) -> None:
    axis = op.attributes.get("flip_axis")
    builder.tile(op, name, _parts(op), [number(axis)] if axis else [])


def _pad(builder: Builder, op: Op, name: str) -> None:
    source, target, value, low, _ = segments(op)
    if low:
        raise unknown(op, "padding by run-time amounts is not known to the virtual Ascend")
    builder.tile(op, name, (source + value, target, []), list(integers(op.attributes["static_low"])))


def _concat(builder: Builder, op: Op, name: str) -> None:
    builder.tile(op, name, (op.operands[:-1], op.operands[-1:], []), [number(op.attributes["dim"])])


def _plain(builder: Builder, op: Op, name: str) -> None:
    builder.tile(op, name, _parts(op), [])


def _gather_mask(builder: Builder, op: Op, name: str) -> None:
    builder.tile(op, name, (op.operands[:2], op.operands[2:], []), [])


def _load(builder: Builder, op: Op, name: str) -> None:
    parts = segments(op)
    if len(parts) == 6 and flag(op.attributes, "init_out_buffer", False):
        raise unknown(op, "a load that also fills its buffer should be split by this stage")
    if len(parts) == 6 and parts[3] and builder.known.get(builder.use(parts[3][0])) not in (0, None):
        raise unknown(op, "padding on the left is not known to the virtual Ascend")
    source, target = (parts[0], parts[1]) if len(parts) > 1 else (parts[0][:1], parts[0][1:2])
    builder.tile(op, name, (source, target, []), [])


def _store(builder: Builder, op: Op, name: str) -> None:
    kind = name_of(op.attributes["atomic_kind"]) if "atomic_kind" in op.attributes else "none"
    builder.tile(op, name, (op.operands[:1], op.operands[1:2], []), [enumeration("Atomic")[_ATOMIC.get(kind, kind)]])


def _copy(builder: Builder, op: Op, name: str) -> None:
    builder.tile(op, name, (op.operands[:1], op.operands[1:2], []), [])


def _atomic(builder: Builder, op: Op, name: str) -> None:
    kind = name_of(op.attributes["atomic_kind"]) if "atomic_kind" in op.attributes else "xchg"
    inputs = 2 if name == "atomic_cas" else 1
    if len(op.operands) > inputs + 1:
        raise unknown(op, "an exchange under a mask is not known to the virtual Ascend")
    builder.tile(op, name, (op.operands[:inputs], op.operands[inputs:], []),
                 [enumeration("Atomic")[_ATOMIC.get(kind, kind)]])


def _matmul(builder: Builder, op: Op, name: str) -> None:
    parts = segments(op)
    a, b, init, m, k, n, c, events = parts[:8]
    if len(parts) > 9 and parts[9]:
        raise unknown(op, "a bias in the matrix product is not known to the virtual Ascend")
    attributes = [int("a_transpose" in op.attributes), int("b_transpose" in op.attributes),
                  int("enable_HF32" in op.attributes), *(builder.use(event) for event in events)]
    builder.tile(op, name, (a + b + init + m + k + n, c, []), attributes)


def _fixpipe(builder: Builder, op: Op, name: str) -> None:
    source, target, *rest = segments(op)
    relu = name_of(op.attributes.get("pre_relu", "<NO_RELU>"))
    dual = name_of(op.attributes.get("dual_dst_mode", "<NO_DUAL>"))
    half = name_of(op.attributes.get("sub_block_idx", "<SUB_BLOCK_0>"))
    if (relu not in ("NO_RELU", "NORMAL_RELU") or dual not in ("NO_DUAL", "ROW_SPLIT") or half != "SUB_BLOCK_0"
            or flag(op.attributes, "channel_split", False)):
        raise unknown(op, f"a fixpipe with {relu}, {dual}, {half} is not known to the virtual Ascend")
    scale = rest[1] if len(rest) > 1 else []
    builder.tile(op, name, (source + scale, target, []), [int(relu == "NORMAL_RELU"), int(dual == "ROW_SPLIT")])


def pipe(op: Op, key: str) -> int:
    """The machine's number of a pipe attribute. Raises NotSupported for a pipe that it lacks."""
    name = name_of(op.attributes[key]).removeprefix("PIPE_")
    if name not in PIPES:
        raise unknown(op, f"the pipe {name} is not known to the virtual Ascend")
    return PIPES.index(name)


def flags(builder: Builder, op: Op) -> None:
    """set_flag, wait_flag between two pipes of a core."""
    static = re.search(r"EVENT_ID(\d+)", op.attributes.get("static_event_id", ""))
    event = int(static[1]) if static else -1
    register = 0 if static else builder.use(op.operands[0])
    builder.emit(op.name.removeprefix("hivm.hir."), builder.instruction(op), pipe(op, "set_pipe"),
                 pipe(op, "wait_pipe"), event, register)


def barrier(builder: Builder, op: Op) -> None:
    """pipe_barrier."""
    builder.emit("barrier", builder.instruction(op), pipe(op, "pipe"))


def cross_core(builder: Builder, op: Op) -> None:
    """sync_block_set, sync_block_wait between the cores of a block."""
    mode = name_of(op.attributes.get("tsync_instr_mode", "<INTRA_BLOCK_SYNCHRONIZATION>"))
    if mode != "INTRA_BLOCK_SYNCHRONIZATION":
        raise unknown(op, f"{mode} is not known to the virtual Ascend: it runs one block at a time")
    setting = op.name.endswith("set")
    static = op.attributes.get("static_flag_id")
    event, register = (number(static), 0) if static else (-1, builder.use(op.operands[0]))
    builder.emit("sync_set" if setting else "sync_wait", builder.instruction(op),
                 pipe(op, "tpipe" if setting else "pipe"), event, register)


def lock(builder: Builder, op: Op) -> None:
    """create_sync_block_lock: blocks run in turn, so the lock itself does nothing."""
    if op.operands and memref_type(op, op.operand_types[0]).element != element("i64"):
        builder.emit("retype", builder.define(op.results[0], op.result_types[0]), builder.use(op.operands[0]), 7)
    else:
        raise unknown(op)


_OPS: dict[str, Tile] = {
    "vcast": _cast, "vreduce": _reduce, "varange": _range, "vsort": _sort, "vgather": _gather,
    "vgathermask": _gather_mask, "vcumsum": _scan, "vcumprod": _scan, "vcummax": _scan, "vcummin": _scan,
    "vinterleave": _plain, "vdeinterleave": _deinterleave, "vtranspose": _transpose, "vflip": _flip, "vpad": _pad,
    "vconcat": _concat, "vbrc": _plain, "copy": _copy, "load": _load, "store": _store, "nd2nz": _plain,
    "nz2nd": _copy, "mmadL1": _matmul, "fixpipe": _fixpipe, "atomic_cas": _atomic, "atomic_xchg": _atomic,
    "atomic_rmw": _atomic}
