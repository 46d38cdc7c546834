"""From a `@triton.jit` function to MLIR that Huawei's compiler takes: Triton's front end, then triton-adapter-opt."""

from __future__ import annotations

import re
from typing import Any

from ..errors import KernelError, NotSupported
from ..kernels.example import is_constexpr, is_jit, parameters
from .diagnose import definition, from_adapter, from_triton, functions
from .targets import Target
from .toolchain import Toolchain, run


def content(fn: Any) -> str:
    """Return the text that decides what a kernel compiles to: its source and that of all that it calls, with places.

    Places (file and line) belong to it because the compiled module names them. Raises KernelError for a function
    that Triton's interpreter holds.
    """
    _check_compilable(fn)
    parts = []
    for function in functions(fn):
        parts += [function.cache_key, str(definition(function))]  # cache_key collects the globals that it reads
        parts += sorted(f"{name}={value!r}" for (name, _), (value, _) in function.used_global_vals.items())
    return "\n".join(parts)


def check_arguments(fn: Any, signature: dict[str, str], constants: dict[str, Any]) -> dict[str, str]:
    """Return the signature in parameter order. Raises KernelError where it and constants do not cover them exactly."""
    _check_compilable(fn)
    wanted = parameters(fn)
    given = [*signature, *constants]
    missing = [n for n in wanted if n not in given]
    unknown = [n for n in given if n not in wanted]
    faults = [f"{n!r} is missing" for n in missing] + [f"{n!r} is no parameter" for n in unknown]
    faults += [f"{n!r} is constexpr and belongs in constants" for n in signature
               if n in wanted and is_constexpr(wanted[n])]
    faults += [f"{n!r} stands in both" for n in signature if n in constants]
    if faults:
        raise KernelError(f"kernel {fn.fn.__name__!r}: signature and constants do not fit its parameters "
                          f"({', '.join(wanted)}): {'; '.join(faults)}")
    return {name: signature[name] for name in wanted if name in signature}


def triton_ir(fn: Any, signature: dict[str, str], constants: dict[str, Any], target: Target) -> str:
    """Return Triton's own IR of a kernel, optimised as triton-ascend does it, with source places.

    Raises KernelError with the place in the Triton source.
    """
    from triton._C.libtriton import ir
    from triton.backends.ascend.compiler import AscendBackend, make_ttir
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    backend = AscendBackend(GPUTarget("npu", target.name, 0))
    options = backend.parse_options({"compile_on_910_95": target.is_950})
    try:
        context = ir.context()
        ir.load_dialects(context)
        backend.load_dialects(context)
        source = ASTSource(fn=fn, signature=signature, constants=constants)
        module = source.make_ir(options, backend.get_codegen_implementation(), backend.get_module_map(), context)
        return str(make_ttir(module, {"hash": ""}, options))
    except Exception as error:
        raise from_triton(error, fn, target) from error


def linalg(toolchain: Toolchain, ttir: str, name: str, target: Target) -> str:
    """Return the kernel in MLIR's linalg, memref, arith and scf dialects, which is what bishengir-compile takes.

    Raises KernelError where the adapter refuses the kernel or falls over.
    """
    on_950 = f"compile-on-910-95={target.is_950}"
    # The order and the options of triton-ascend 3.2.0 for each generation.
    passes = [f"--discrete-mask-access-conversion={on_950} force-simt-template=False", "--triton-to-annotation",
              f"--triton-to-unstructure={on_950} force-simt-template=False", "--triton-to-hivm", "--triton-to-hfusion",
              "--triton-to-llvm", "--bubble-up-operation",
              "--triton-to-linalg=global-kernel=false named-ops=True enable-nd2nz-on-vector=False "
              f"enable-select-analysis={target.is_950} {on_950}"]
    output = run([str(toolchain.adapter), *passes, "--mlir-print-debuginfo"], ttir)
    if output.code != 0 or "func.func" not in output.stdout:
        raise from_adapter(output, name, target)
    return re.sub(r', mix_mode\s*=\s*"[^"]*"', "", output.stdout)


def _check_compilable(fn: Any) -> None:
    if not is_jit(fn):
        raise KernelError(f"{getattr(fn, '__name__', fn)!r} is not a @triton.jit function, and only those compile")
    if type(fn).__name__ == "InterpretedFunction":
        raise NotSupported(f"kernel {fn.fn.__name__!r} is held by Triton's interpreter and cannot be compiled: "
                           "unset TRITON_INTERPRET and start again")
