"""From MLIR's LLVM dialect to machine code of this processor: LLVM IR, a driver over blocks, optimisation, an object.

triton-ascend's own MLIR translates the dialect to LLVM IR, llvmlite optimises it for the processor at hand.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from ..errors import KernelError
from .native_math import NAMES, math_module

ENTRY = "anychip_blocks"
_SIZES = {"i1": 1, "i8": 1, "i16": 2, "bfloat": 2, "half": 2, "i32": 4, "float": 4, "i64": 8, "double": 8, "ptr": 8}
_TYPE = "|".join(_SIZES)
_SIZE_OF = re.compile(rf"ptrtoint \(ptr getelementptr \(({_TYPE}), ptr null, i32 (\d+)\) to i64\)")
_PRODUCT_OF = re.compile(r"mul \(i64 (\d+), i64 (\d+)\)")


def build_object(dialect: str, name: str, num_arguments: int) -> bytes:
    """Return an object file whose `ENTRY` runs blocks of the kernel `name` with so many arguments of its own.

    `ENTRY(slots, first, last, grid_x, grid_y, grid_z)` runs the blocks first..last-1, x fastest. `slots` holds eight
    bytes an argument: an address, or a number in the low bytes. Raises KernelError for IR that LLVM refuses.
    """
    ir = _llvm_ir(dialect)
    for intrinsic, function in NAMES.items():
        ir = ir.replace(f"@{intrinsic}(", f"@{function}(")
    try:
        return _compiled(ir + _driver(ir, name, num_arguments))
    except RuntimeError as error:
        raise KernelError(f"kernel {name!r}: LLVM refuses its module: {error}") from error


def target_machine() -> Any:
    """Return llvmlite's description of this processor, with all that it can do."""
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_default_triple()
    return target.create_target_machine(cpu=binding.get_host_cpu_name(),
                                        features=binding.get_host_cpu_features().flatten(), opt=3, jit=True,
                                        reloc="default", codemodel="jitdefault")


def _llvm_ir(dialect: str) -> str:
    """Translate the dialect; sizes of types become numbers, which every LLVM reads."""
    from triton._C.libtriton import ir, llvm

    context = ir.context()
    ir.load_dialects(context)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.mlir")
        path.write_text(dialect)
        text = str(llvm.to_module(ir.parse_mlir_module(str(path), context), llvm.context()))
    text = _SIZE_OF.sub(lambda match: str(_SIZES[match.group(1)] * int(match.group(2))), text)
    return _PRODUCT_OF.sub(lambda match: str(int(match.group(1)) * int(match.group(2))), text)


def _driver(ir: str, name: str, num_arguments: int) -> str:
    """The function that loads the arguments from their slots and calls the kernel for each block.

    The kernel takes two buffers that only the chip uses, its own arguments, the grid and the block's place in it.
    A buffer is five values: its address twice, an offset, a size, a stride.
    """
    found = re.search(rf"define void @{name}\(([^)]*)\)", ir)
    types = [part.split()[0] for part in found.group(1).split(",")] if found else []
    loads: list[str] = []
    values: list[str] = []
    at = slot = 0
    while at < len(types) - 6:
        if types[at] == "ptr":
            value = "null" if slot < 2 else f"%v{slot}"
            values += [f"ptr {value}", f"ptr {value}", "i64 0", "i64 9223372036854775807", "i64 1"]
            at += 5
        else:
            values.append(f"{types[at]} %v{slot}")
            at += 1
        if slot >= 2:
            kind = types[at - 1] if values[-1].startswith(types[at - 1] + " %") else "ptr"
            loads += [f"  %s{slot} = getelementptr i64, ptr %slots, i64 {slot - 2}",
                      f"  %v{slot} = load {kind}, ptr %s{slot}"]
        slot += 1
    if slot != num_arguments + 2 or types[-6:] != ["i32"] * 6:
        raise KernelError(f"kernel {name!r} has {num_arguments} arguments, but its compiled form takes "
                          f"({', '.join(types)}): this version of triton-ascend passes them in another way")
    return _DRIVER.format(entry=ENTRY, name=name, loads="\n".join(loads), values=", ".join(values))


_DRIVER = """
define void @{entry}(ptr %slots, i64 %first, i64 %last, i32 %gx, i32 %gy, i32 %gz) {{
entry:
{loads}
  %wide_x = zext i32 %gx to i64
  %wide_y = zext i32 %gy to i64
  %any = icmp slt i64 %first, %last
  br i1 %any, label %block, label %done
block:
  %id = phi i64 [ %first, %entry ], [ %next, %block ]
  %x = urem i64 %id, %wide_x
  %line = udiv i64 %id, %wide_x
  %y = urem i64 %line, %wide_y
  %z = udiv i64 %line, %wide_y
  %ix = trunc i64 %x to i32
  %iy = trunc i64 %y to i32
  %iz = trunc i64 %z to i32
  call void @{name}({values}, i32 %gx, i32 %gy, i32 %gz, i32 %ix, i32 %iy, i32 %iz)
  %next = add i64 %id, 1
  %more = icmp slt i64 %next, %last
  br i1 %more, label %block, label %done
done:
  ret void
}}
"""


def _compiled(ir: str) -> bytes:
    from llvmlite import binding

    machine = target_machine()
    module = binding.parse_assembly(ir)
    module.link_in(binding.parse_assembly(math_module()))
    for function in module.functions:  # so that what is inlined everywhere is dropped
        if not function.is_declaration and function.name != ENTRY:
            function.linkage = "internal"
    module.verify()
    options = binding.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = options.slp_vectorization = options.loop_interleaving = True
    options.loop_unrolling = False  # with it builds take 2-20 times as long, and loops run 10-20 % faster
    passes = binding.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    return bytes(machine.emit_object(module))
