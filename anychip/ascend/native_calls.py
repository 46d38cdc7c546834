"""The tensor functions that a kernel calls by name (cumsum, cumprod, sort, gather, flip), defined in MLIR.

Triton's adapter for Ascend leaves them to the compiler's library: `func.func private @triton_cumsum_0(tensor<..>, i32,
i1) -> tensor<..>`, the axis and the direction being constants of the call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import KernelError

_DECLARED = re.compile(r"^ *func\.func private @(triton_\w+?)(_\d+)?\((.*?)\) -> (tensor<\S+>)[^{\n]*$", re.M)
_PRINTED = re.compile(r"^ *func\.func private @(triton_print\w*|triton_assert\w*)\(.*$", re.M)
_SILENT = re.compile(r"^ *((func\.)?call @triton_(print|assert)\w*\(|annotation\.mark ).*$", re.M)
_HISTOGRAM = re.compile(r"(%\S+) = hfusion\.histogram (%\S+), (\d+) : (tensor<(\d+)xi32>) -> (tensor<\d+xi32>)")


@dataclass(frozen=True)
class _Call:
    """A called function: its name, the tensor it returns (dims, element), the source's dims, constant arguments."""

    name: str
    dims: tuple[int, ...]
    element: str
    source_dims: tuple[int, ...]
    arguments: tuple[str, ...]
    constants: tuple[int, ...]

    @property
    def axis(self) -> int:
        """The constant argument that names the dimension."""
        return self.constants[0] % len(self.dims)

    @property
    def flag(self) -> bool:
        """The second constant argument: reverse, or descending."""
        return bool(self.constants[1])

    def memref(self) -> str:
        """The result's type in memory."""
        return _memref(self.dims, self.element)


def define_calls(linalg: str) -> str:
    """Return the module with a definition in place of each declared function; prints, asserts and
    hints to the chip's compiler are dropped.

    Raises KernelError for a function that is not known here, naming it.
    """
    linalg = _SILENT.sub("", _PRINTED.sub("", linalg))
    linalg = _HISTOGRAM.sub(r"\1 = func.call @triton_histogram(\2) : (\4) -> \6", linalg)
    if found := re.search(r"call @triton_histogram\(\S+\) : \((tensor<(\d+)xi32>)\) -> (tensor<(\d+)xi32>)", linalg):
        linalg = _before_end(linalg, _histogram(int(found.group(2)), int(found.group(4))))
    return _DECLARED.sub(lambda match: _definition(match, linalg), linalg)


def _before_end(module: str, text: str) -> str:
    at = module.rindex("}")
    return module[:at] + text + module[at:]


def _definition(match: re.Match[str], linalg: str) -> str:
    kind, number, arguments, result = match.group(1), match.group(2) or "", match.group(3), match.group(4)
    body = _BODIES.get(kind)
    if body is None:
        raise KernelError(f"the kernel calls @{kind}{number}, which the native path does not have; it has "
                          f"{', '.join(sorted(_BODIES))}. Run it with the interpreter (run_kernel), or write the "
                          "function with other Triton operations")
    name, types = kind + number, tuple(part.strip() for part in re.split(r",\s*(?![^<]*>)", arguments))
    dims, element = _shape(result)
    call = _Call(name, dims, element, _shape(types[0])[0], types, _constants(name, linalg, types))
    values = ", ".join(f"%arg{i}: {kind}" for i, kind in enumerate(types))
    return (f"  func.func private @{name}({values}) -> {result} {{\n{_indices()}"
            f"    %out = memref.alloc() : {call.memref()}\n{body(call)}"
            f"    %result = bufferization.to_tensor %out restrict writable : {call.memref()}\n"
            f"    return %result : {result}\n  }}")


def _shape(tensor: str) -> tuple[tuple[int, ...], str]:
    *dims, element = tensor.removeprefix("tensor<").removesuffix(">").split("x")
    return tuple(int(dim) for dim in dims), element


def _memref(dims: Sequence[int], element: str) -> str:
    return f"memref<{'x'.join(str(dim) for dim in dims)}x{element}>"


def _constants(name: str, linalg: str, types: Sequence[str]) -> tuple[int, ...]:
    """The values of a call's scalar arguments, which must be constants of the module."""
    found = re.search(rf"call @{name}\((.*?)\)", linalg)
    values = [value.strip() for value in found.group(1).split(",")] if found else []
    result = []
    for value, kind in zip(values, types, strict=False):
        if kind.startswith("tensor"):
            continue
        constant = re.search(rf"{re.escape(value)} = arith\.constant (-?\d+|true|false)\b", linalg)
        if constant is None:
            raise KernelError(f"the call of @{name} takes {value} at run time; the native path needs a constant there")
        result.append({"true": 1, "false": 0}.get(constant.group(1)) if constant.group(1) in ("true", "false")
                      else int(constant.group(1)))
    return tuple(value for value in result if value is not None)


def _indices() -> str:
    return "    %c0 = arith.constant 0 : index\n    %c1 = arith.constant 1 : index\n"


def _loops(dims: Sequence[int], body: str, first: Sequence[int] = ()) -> str:
    """Nest loops %i0, %i1, ... over dims (from `first`, 0 where none is given) around a body."""
    text = body
    for number in reversed(range(len(dims))):
        start = first[number] if first else 0
        text = (f"    %low{number} = arith.constant {start} : index\n"
                f"    %size{number} = arith.constant {dims[number]} : index\n"
                f"    scf.for %i{number} = %low{number} to %size{number} step %c1 {{\n{text}    }}\n")
    return text


def _at(call: _Call, **replaced: str) -> str:
    """Index list %i0, %i1, ... with one axis replaced: _at(call, axis="%k")."""
    names = [f"%i{number}" for number in range(len(call.dims))]
    if "axis" in replaced:
        names[call.axis] = replaced["axis"]
    return ", ".join(names)


def _copy_in(call: _Call) -> str:
    """Put the source into %out."""
    return (f"    bufferization.materialize_in_destination %arg0 in writable %out : ({call.arguments[0]}, "
            f"{call.memref()}) -> ()\n")


def _scan(operation: str) -> Callable[[_Call], str]:
    """A running sum or product along the axis, in place, from the front or from the back."""

    def body(call: _Call) -> str:
        kind, last = "f" if call.element.startswith(("f", "bf")) else "i", call.dims[call.axis] - 1
        here = f"    %k = arith.addi %i{call.axis}, %c0 : index\n    %before = arith.subi %k, %c1 : index\n"
        if call.flag:
            here = (f"    %last = arith.constant {last} : index\n    %k = arith.subi %last, %i{call.axis} : index\n"
                    "    %before = arith.addi %k, %c1 : index\n")
        step = (f"{here}    %a = memref.load %out[{_at(call, axis='%before')}] : {call.memref()}\n"
                f"    %b = memref.load %out[{_at(call, axis='%k')}] : {call.memref()}\n"
                f"    %c = arith.{operation}{kind} %a, %b : {call.element}\n"
                f"    memref.store %c, %out[{_at(call, axis='%k')}] : {call.memref()}\n")
        first = [1 if number == call.axis else 0 for number in range(len(call.dims))]
        return _copy_in(call) + _loops(call.dims, step, first)

    return body


def _sort(call: _Call) -> str:
    """A bitonic network along the axis (a power of two long): stages of compare-and-swap."""
    size = call.dims[call.axis]
    stages = [(block, step) for block in _powers(2, size) for step in reversed(_powers(1, block // 2))]
    return _copy_in(call) + "".join(_sort_stage(call, block, step) for block, step in stages)


def _powers(low: int, high: int) -> list[int]:
    return [1 << bit for bit in range(low.bit_length() - 1, high.bit_length()) if low <= 1 << bit <= high]


def _sort_stage(call: _Call, block: int, step: int) -> str:
    """Compare every i that lacks bit `step` with i + step; the direction is that of its block.

    Pairs are counted: pair p stands at i = (p / step) * 2 * step + p % step.
    """
    compare = "arith.cmpf ogt" if call.element.startswith(("f", "bf")) else "arith.cmpi sgt"
    dims = [size // 2 if number == call.axis else size for number, size in enumerate(call.dims)]
    pair = f"%i{call.axis}"
    low, high = _at(call, axis="%low"), _at(call, axis="%high")
    memory, true = call.memref(), int(call.flag)
    body = f"""    %step = arith.constant {step} : index
    %double = arith.constant {2 * step} : index
    %block = arith.constant {block} : index
    %group = arith.divui {pair}, %step : index
    %within = arith.remui {pair}, %step : index
    %start = arith.muli %group, %double : index
    %low = arith.addi %start, %within : index
    %high = arith.addi %low, %step : index
    %masked = arith.andi %low, %block : index
    %odd = arith.cmpi ne, %masked, %c0 : index
    %falling = arith.constant {true} : i1
    %down = arith.xori %odd, %falling : i1
    %a = memref.load %out[{low}] : {memory}
    %b = memref.load %out[{high}] : {memory}
    %above = {compare}, %a, %b : {call.element}
    %below = {compare}, %b, %a : {call.element}
    %swap = arith.select %down, %below, %above : i1
    %first = arith.select %swap, %b, %a : {call.element}
    %second = arith.select %swap, %a, %b : {call.element}
    memref.store %first, %out[{low}] : {memory}
    memref.store %second, %out[{high}] : {memory}
"""
    # a region of its own, so that every stage may use the same names
    return f"    scf.execute_region {{\n{_loops(dims, body)}    scf.yield\n    }}\n"


def _gather(call: _Call) -> str:
    """out[.., i, ..] = source[.., index[.., i, ..], ..]; an index outside is read at the nearest end."""
    index_dims, index_element = _shape(call.arguments[1])
    body = f"""    %at = tensor.extract %arg1[{_at(call)}] : {call.arguments[1]}
    %wide = arith.index_cast %at : {index_element} to index
    %end = arith.constant {call.source_dims[call.axis] - 1} : index
    %not_below = arith.maxsi %wide, %c0 : index
    %k = arith.minsi %not_below, %end : index
    %v = tensor.extract %arg0[{_at(call, axis='%k')}] : {call.arguments[0]}
    memref.store %v, %out[{_at(call)}] : {call.memref()}
"""
    return _loops(index_dims, body)


def _flip(call: _Call) -> str:
    body = f"""    %last = arith.constant {call.dims[call.axis] - 1} : index
    %k = arith.subi %last, %i{call.axis} : index
    %v = tensor.extract %arg0[{_at(call, axis='%k')}] : {call.arguments[0]}
    memref.store %v, %out[{_at(call)}] : {call.memref()}
"""
    return _loops(call.dims, body)


def _histogram(size: int, bins: int) -> str:
    """How often each number 0..bins-1 stands in a tensor; others are not counted."""
    source, out = f"tensor<{size}xi32>", f"memref<{bins}xi32>"
    return f"""  func.func private @triton_histogram(%arg0: {source}) -> tensor<{bins}xi32> {{
{_indices()}    %zero = arith.constant 0 : i32
    %one = arith.constant 1 : i32
    %bins = arith.constant {bins} : i32
    %out = memref.alloc() : {out}
    linalg.fill ins(%zero : i32) outs(%out : {out})
{_loops((size,), f'''    %v = tensor.extract %arg0[%i0] : {source}
    %inside = arith.cmpi ult, %v, %bins : i32
    scf.if %inside {{
      %at = arith.index_cast %v : i32 to index
      %old = memref.load %out[%at] : {out}
      %new = arith.addi %old, %one : i32
      memref.store %new, %out[%at] : {out}
    }}
''')}    %result = bufferization.to_tensor %out restrict writable : {out}
    return %result : tensor<{bins}xi32>
  }}
"""


_BODIES: dict[str, Callable[[_Call], str]] = {
    "triton_cumsum": _scan("add"), "triton_cumprod": _scan("mul"), "triton_sort": _sort,
    "triton_gather": _gather, "triton_flip": _flip,
}
