"""Small HIVM programs for tests of the virtual Ascend's machine, as text, and their runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from anychip.ascend.lower import lower
from anychip.ascend.machine import Launch, Memory, RawRun, run_program

TYPES = {
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
}
CHIP = {"ub": 192 << 10, "l1": 512 << 10, "l0a": 64 << 10, "l0b": 64 << 10, "l0c": 128 << 10}
Value = Tensor | int | float


def memref(value: Tensor, space: str, dims: bool = True) -> str:
    sizes = "x".join(map(str, value.shape)) + "x" if dims else "?x"
    return f"memref<{sizes}{TYPES[value.dtype]}, #hivm.address_space<{space}>>"


def function(body: str, arguments: Sequence[str], core: str = "AIV", name: str = "kernel") -> str:
    names = ", ".join(f"%arg{i}: {kind}" for i, kind in enumerate([*arguments, "i32", "i32", "i32"]))
    return (
        f'"func.func"() <{{sym_name = "{name}"}}> ({{\n^bb0({names}):\n{body}\n"func.return"() : () -> ()\n}}) '
        f"{{hacc.entry, hivm.func_core_type = #hivm.func_core_type<{core}>}} : () -> ()\n"
    )


def module(*functions: str) -> str:
    return '"builtin.module"() ({\n' + "".join(functions) + "}) : () -> ()\n"


def run(text: str, arguments: Sequence[Value], blocks: int = 1) -> RawRun:
    memories = [Memory(a.data_ptr(), a.nbytes) if isinstance(a, Tensor) else a for a in arguments]
    return run_program(lower(text), Launch(memories, (blocks, 1, 1), range(blocks), CHIP))


def view(name: str, source: str, tensor: Tensor) -> str:
    """A global-memory argument as a memref of the tensor's shape."""
    sizes, strides = (", ".join(map(str, part)) for part in (tensor.shape, tensor.stride()))
    return (
        f'%{name} = "memref.reinterpret_cast"(%{source}) <{{operandSegmentSizes = array<i32: 1, 0, 0, 0>, '
        f"static_offsets = array<i64: 0>, static_sizes = array<i64: {sizes}>, static_strides = array<i64: {strides}>}}>"
        f" : ({memref(tensor, 'gm', dims=False)}) -> {memref(tensor, 'gm')}\n"
    )


def pointer(name: str, address: int, kind: str) -> str:
    return (
        f'%{name}_at = "arith.constant"() <{{value = {address} : i64}}> : () -> i64\n'
        f'%{name} = "hivm.hir.pointer_cast"(%{name}_at) <{{operandSegmentSizes = array<i32: 1, 0>}}> : '
        f'(i64) -> {kind}\n'
    )


def constant(name: str, value: float, kind: str) -> str:
    return f'%{name} = "arith.constant"() <{{value = {value} : {kind}}}> : () -> {kind}\n'


def tile(
    op: str,
    inputs: Sequence[Value],
    outputs: Sequence[Tensor],
    attributes: str = "",
    scalar: str = "f32",
    segments: bool = True,
) -> tuple[Tensor, ...]:
    """Run one tile op: inputs are loaded to UB (scalars of type `scalar`), outputs come back as new tensors."""
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    results = [torch.zeros_like(value) for value in outputs]
    body, names, kinds, at = "", [], [], 0
    for i, value in enumerate([*inputs, *outputs]):
        names.append(f"%t{i}")
        if not isinstance(value, Tensor):
            body += constant(f"t{i}", value, scalar)
            kinds.append(scalar)
            continue
        kinds.append(memref(value, "ub"))
        body += pointer(f"t{i}", at, kinds[-1])
        at += -(-value.nbytes // 32) * 32
    place = [i for i, value in enumerate(inputs) if isinstance(value, Tensor)]
    for k, i in enumerate(place):
        body += view(f"g{i}", f"arg{k}", tensors[k])
        body += f'"hivm.hir.load"(%g{i}, %t{i}) : ({memref(tensors[k], "gm")}, {kinds[i]}) -> ()\n'
    sizes = f"operandSegmentSizes = array<i32: {len(inputs)}, {len(outputs)}, 0>" if segments else ""
    inside = ", ".join(part for part in (attributes, sizes) if part)
    body += f'"hivm.hir.{op}"({", ".join(names)}) <{{{inside}}}> : ({", ".join(kinds)}) -> ()\n'
    for k, result in enumerate(results):
        i = len(inputs) + k
        body += view(f"g{i}", f"arg{len(tensors) + k}", result)
        body += f'"hivm.hir.store"(%t{i}, %g{i}) : ({kinds[i]}, {memref(result, "gm")}) -> ()\n'
    arguments = [*tensors, *results]
    found = run(module(function(body, [memref(a, "gm", dims=False) for a in arguments])), arguments)
    assert not found.error, found.error
    return tuple(results)


def flag(op: str, from_: str, to: str, event: int = 0) -> str:
    return (
        f'"hivm.hir.{op}"() <{{set_pipe = #hivm.pipe<PIPE_{from_}>, static_event_id = #hivm.event<EVENT_ID{event}>, '
        f"wait_pipe = #hivm.pipe<PIPE_{to}>}}> : () -> ()\n"
    )


def cross(op: str, core: str, number: int) -> str:
    sizes = "operandSegmentSizes = array<i32: 0, 0>, " if op == "set" else ""
    return (
        f'"hivm.hir.sync_block_{op}"() <{{{sizes}pipe = #hivm.pipe<PIPE_S>, static_flag_id = {number} : i64, '
        f"tcore_type = #hivm.tcore_type<{core}>, tpipe = #hivm.pipe<PIPE_MTE3>}}> : () -> ()\n"
    )
