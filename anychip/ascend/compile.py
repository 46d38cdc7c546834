"""A Triton kernel through Huawei's own compiler, for any Ascend chip, with no chip at hand."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import AnychipError, KernelError
from . import cache
from .diagnose import definition, from_bishengir, notes, of_doubles
from .frontend import check_arguments, content, linalg, triton_ir
from .memory import MemoryUse, memory_uses
from .targets import Target, find_target
from .toolchain import Toolchain, find_toolchain, run

LAST_STAGE = "convert-hivm-to-std"  # what comes before it is the final HIVM program
DUMP = re.compile(r"^// -----// IR Dump Before .*//----- //\n", re.MULTILINE)
END_OF_DUMP = re.compile(r"^\[|^loc\(.*\): (?:error|warning|note)", re.MULTILINE)


@dataclass(frozen=True)
class CompileOptions:
    """What triton-ascend's launch options would pass on. None: its default for the chip's generation.

    multi_buffer: double-buffer tiles in loops (default on 910B and 910C, off on 950). bind_sub_block: split a mixed
    kernel's vector work over the two vector cores of each cube core (same defaults). flags: further options of
    bishengir-compile, as it spells them.
    """

    multi_buffer: bool | None = None
    bind_sub_block: bool | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel as the chip would run it, with the stages on the way there.

    core_type: `AIV` (vector cores), `AIC` (cube cores) or `MIX` (one cube and two vector cores together).
    signature: Triton's type of each run-time argument, in order; constants: the constexpr values.
    ttir, linalg, hivm: the module in Triton's IR, in linalg, and as the final HIVM program (MLIR's generic form), all
    with the places in the source. memory: on-chip memory of one core by name (`ub`, `l1`, `l0a`, `l0b`, `l0c`).
    notes: what the compiler changed on its own to make it fit. source_file: where the kernel is written.
    """

    name: str
    target: Target
    core_type: str
    signature: dict[str, str]
    constants: dict[str, Any]
    ttir: str
    linalg: str
    hivm: str
    memory: dict[str, MemoryUse]
    source_file: str
    notes: tuple[str, ...] = ()


def compile_kernel(fn: Any, signature: dict[str, str], constants: dict[str, Any], target: str | Target,
                   options: CompileOptions | None = None, *, folder: Path | None = None) -> CompiledKernel:
    """Compile a `@triton.jit` function for an Ascend chip; what was compiled before comes from the cache.

    signature: parameter -> Triton type (`*bf16`, `i32`, `fp32`, ...); constants: its constexpr parameters.
    folder: where compiled kernels are kept (default: the user's cache). Takes 0.1 to 0.5 s, a few ms from the cache.
    Raises KernelError with one message, NotSupported where the compilers are not installed, ChipError for an
    unknown chip.
    """
    toolchain = find_toolchain()
    chip = find_target(target) if isinstance(target, str) else target
    signature = check_arguments(fn, signature, constants)
    options = options or CompileOptions()
    folder = folder or cache.cache_folder()
    key = cache.digest(toolchain.versions, _content(fn, signature, constants, chip), repr(signature),
                       repr(sorted(constants.items())), repr(options), chip.name)
    entry = cache.load(folder, key)
    if entry is None:
        entry = _stages(toolchain, fn, signature, constants, chip, options)
        cache.store(folder, key, entry)
    memory = {space: MemoryUse(**use) for space, use in entry["memory"].items()}
    return CompiledKernel(name=fn.fn.__name__, target=chip, signature=signature, constants=dict(constants),
                          memory=memory, source_file=definition(fn)[0], notes=tuple(entry["notes"]),
                          **{k: entry[k] for k in ("core_type", "ttir", "linalg", "hivm")})


def _content(fn: Any, signature: dict[str, str], constants: dict[str, Any], target: Target) -> str:
    try:
        return content(fn)
    except AnychipError:
        raise
    except Exception:  # a name that does not resolve, without its place: Triton's front end says it with the place
        triton_ir(fn, signature, constants, target)
        raise


def _stages(toolchain: Toolchain, fn: Any, signature: dict[str, str], constants: dict[str, Any], target: Target,
            options: CompileOptions) -> dict[str, Any]:
    name = fn.fn.__name__
    ttir = triton_ir(fn, signature, constants, target)
    try:
        lowered = linalg(toolchain, ttir, name, target)
        hivm, stderr = _hivm(toolchain, lowered, name, (target, options, constants))
    except KernelError as error:
        raise of_doubles(error, ttir, name, target) from error
    return {"ttir": ttir, "linalg": lowered, "hivm": hivm, "core_type": _core_type(hivm, name),
            "memory": {space: asdict(use) for space, use in memory_uses(ttir, hivm, target).items()},
            "notes": notes(stderr)}


def _hivm(toolchain: Toolchain, lowered: str, name: str,
          asked: tuple[Target, CompileOptions, dict[str, Any]]) -> tuple[str, str]:
    """The final HIVM program, and what the compiler said. Raises KernelError."""
    target, options, constants = asked
    command = [str(toolchain.binaries / target.compiler), *_flags(target, options)]
    # The compiler's last step, the external hivmc, is not public: it "fails" there, and a5 would then try again with
    # other options. Everything before it has succeeded by then.
    output = run(command, lowered, stop=("IR Dump Before", "Cannot find hivmc"))
    hivm = _dumped(output.stderr)
    if hivm is None:
        raise from_bishengir(output, name, target, constants)
    return hivm, output.stderr


def _flags(target: Target, options: CompileOptions) -> list[str]:
    """The flags of triton-ascend 3.2.0: multi-buffering and sub-block binding on for 910B and 910C, unsaid for 950."""
    flags = [f"--target={target.name}", "--enable-hivm-compile=true", "--enable-hfusion-compile=true",
             "--enable-triton-kernel-compile=true", "--hivmc-version=1.2.0", "-o", "kernel.o",
             f"--mlir-print-ir-before={LAST_STAGE}", "--mlir-print-op-generic", "--mlir-print-debuginfo"]
    for flag, asked in (("--enable-auto-multi-buffer", options.multi_buffer),
                        ("--enable-auto-bind-sub-block", options.bind_sub_block)):
        value = (None if target.is_950 else True) if asked is None else asked
        if value is not None:
            flags.append(f"{flag}={value}")
    return [*flags, *options.flags]


def _dumped(stderr: str) -> str | None:
    """The module printed before the last stage, or None where the compiler did not get through to `hivmc`."""
    match = DUMP.search(stderr)
    if match is None or "Cannot find hivmc" not in stderr[match.end():]:
        return None
    rest = stderr[match.end():]
    end = END_OF_DUMP.search(rest)
    return rest[: end.start()].rstrip() + "\n" if end else rest


def _core_type(hivm: str, name: str) -> str:
    found = re.search(r"hivm\.module_core_type<(\w+)>", hivm)
    if found is None or found[1] not in ("AIV", "AIC", "MIX"):
        raise KernelError(f"kernel {name!r}: the compiled module does not say which cores it runs on")
    return found[1]
