"""From the adapter's linalg module to MLIR's LLVM dialect, for the processor: the passes, and what they lack.

1. On tensors: calls get definitions, a product with a transposed right side is named so, named elementwise ops
   become generic and are fused, one-shot bufferization gives buffers.
2. On buffers: sums may be taken in any order (so that they vectorise), copies become loops, products become calls of
   `native_matmul`; then loops, branches, LLVM.
Rounding to bf16 and fp16 is to nearest even at every op; no multiply-add is contracted but in products.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..errors import KernelError
from .native_calls import define_calls
from .native_matmul import TYPES, matmul_functions, matmul_name, operand_type

_GENERALISE = """
module attributes {transform.with_named_sequence} {
  transform.named_sequence @__transform_main(%root: !transform.any_op {transform.readonly}) {
    %named = transform.structured.match ops{["linalg.fill", "linalg.broadcast", "linalg.reduce", "linalg.transpose",
      "linalg.map"]} in %root : (!transform.any_op) -> !transform.any_op
    %generic = transform.structured.generalize %named : (!transform.any_op) -> !transform.any_op
    transform.yield
  }
}
"""
_ON_TENSORS = (
    "--transform-interpreter", "--convert-elementwise-to-linalg", "--linalg-fuse-elementwise-ops", "--canonicalize",
    "--cse", "--eliminate-empty-tensors", "--empty-tensor-to-alloc-tensor",
    "--one-shot-bufferize=bufferize-function-boundaries=1 allow-return-allocs-from-loops=1", "--canonicalize", "--cse",
    "--buffer-loop-hoisting",
)
_ON_BUFFERS = (
    "--promote-buffers-to-stack=max-alloc-size-in-bytes=64", "--ownership-based-buffer-deallocation",
    "--canonicalize", "--buffer-deallocation-simplification", "--bufferization-lower-deallocations",
    "--convert-linalg-to-loops", "--math-legalize-to-f32",
    "--arith-emulate-unsupported-floats=source-types=bf16 target-type=f32",
)
_TO_LLVM = (
    "--arith-expand=include-bf16=true", "--expand-strided-metadata", "--lower-affine", "--convert-scf-to-cf",
    "--canonicalize", "--cse", "--convert-vector-to-llvm", "--convert-math-to-llvm", "--convert-math-to-libm",
    "--convert-index-to-llvm", "--finalize-memref-to-llvm", "--convert-arith-to-llvm", "--convert-func-to-llvm",
    "--convert-cf-to-llvm", "--reconcile-unrealized-casts", "--canonicalize",
)
_TRANSPOSED = re.compile(r"(%\S+) = linalg\.transpose ins\((%\S+) : (tensor<\S+>)\) .*permutation = \[1, 0\]")
_MATMUL = re.compile(r"linalg\.matmul (\{.*?\} )?ins\((%\S+), (%\S+) : (tensor<\S+>), (tensor<\S+>)\)")
_PRODUCT = re.compile(r"^( *)linalg\.matmul(_transpose_b)? (?:\{.*?\} )?ins\((%\S+), (%\S+) : (memref<.*>), "
                      r"(memref<.*>)\) outs\((%\S+) : (memref<.*>)\)$", re.M)
_COPY = re.compile(r"memref\.copy (%\S+), (%\S+) : (memref<.*>) to (memref<.*>)$", re.M)
_REDUCTION = re.compile(r'linalg\.generic \{[^\n]*"reduction"[^\n]*\n(?:.*\n)*?.*linalg\.yield (%\S+) : \w+')


def lower(linalg: str, optimiser: Path) -> str:
    """Return the LLVM-dialect module of a kernel's linalg module. `optimiser` is bishengir-opt.

    Raises KernelError with the optimiser's message where a step fails.
    """
    plain = _run(optimiser, (), linalg)  # one known layout, and no source places
    buffers = _run(optimiser, _ON_TENSORS, _named_transposes(define_calls(plain)), generalise=True)
    loops = _run(optimiser, _ON_BUFFERS, _with_products(_with_free_sums(_COPY.sub(_copied, buffers))))
    return _run(optimiser, _TO_LLVM, loops.replace(" fastmath<contract>", ""))  # no rounding between ops is dropped


def _run(optimiser: Path, passes: Sequence[str], module: str, *, generalise: bool = False) -> str:
    with tempfile.TemporaryDirectory() as folder:
        first: tuple[str, ...] = ()
        if generalise:
            script = Path(folder, "generalise.mlir")
            script.write_text(_GENERALISE)
            first = (f"--transform-preload-library=transform-library-paths={script}",)
        command = [str(optimiser), "-", "--allow-unregistered-dialect", *first, *passes]
        done = subprocess.run(command, input=module, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if "error:" in line), done.stderr[-500:])
        raise KernelError(f"the kernel's linalg module cannot be lowered for this processor: {reason.strip()}")
    return done.stdout


def _named_transposes(module: str) -> str:
    """Let a product read a transposed right side in place: `matmul(a, transpose(b))` is `matmul_transpose_b(a, b)`.

    A name may be used again in another region; the last definition above a use is the one that it sees.
    """
    transposes = list(_TRANSPOSED.finditer(module))

    def renamed(match: re.Match[str]) -> str:
        above = [t for t in transposes if t.start() < match.start() and t.group(1) == match.group(3)]
        defined = module.rfind(f" {match.group(3)} = ", 0, match.start())
        if not above or above[-1].start() < defined:  # the last definition is something else
            return match.group(0)
        source, kind = above[-1].group(2), above[-1].group(3)
        return f"linalg.matmul_transpose_b ins({match.group(2)}, {source} : {match.group(4)}, {kind})"

    return _MATMUL.sub(renamed, module)


def _copied(match: re.Match[str]) -> str:
    """A strided copy as a loop nest, not as a call into a run-time library; whole buffers stay one memcpy."""
    source, target, kind, other = match.groups()
    if "strided" not in kind and "strided" not in other:
        return match.group(0)
    return f"linalg.copy ins({source} : {kind}) outs({target} : {other})"


def _with_free_sums(module: str) -> str:
    """Mark the sum or product at the end of a reduction as reassociable: the chip sums in an order of its own too."""

    def freed(match: re.Match[str]) -> str:
        result = re.escape(match.group(1))
        return re.sub(rf"({result} = arith\.(?:addf|mulf) \S+, \S+)( :)", r"\1 fastmath<reassoc>\2", match.group(0))

    return _REDUCTION.sub(freed, module)


def _with_products(module: str) -> str:
    """Make each floating product a call of `native_matmul`'s function, and add the functions that are called."""
    elements: set[str] = set()

    def called(match: re.Match[str]) -> str:
        indent, transposed, a, b, a_type, b_type, c, c_type = match.groups()
        element = _element(a_type)
        if element not in TYPES or _element(c_type) != "f32":
            return match.group(0)
        elements.add(element)
        number, anything = match.start(), operand_type(element)
        lines = [f"%a{number} = memref.cast {a} : {a_type} to {anything}",
                 f"%c{number} = memref.cast {c} : {c_type} to {operand_type('f32')}",
                 f"%b{number} = memref.cast {b} : {b_type} to {anything}"]
        right = f"%b{number}"
        if transposed:
            right = f"%t{number}"
            lines.append(f"{right} = memref.transpose %b{number} (d0, d1) -> (d1, d0) : {anything} to {anything}")
        lines.append(f"func.call @{matmul_name(element)}(%a{number}, {right}, %c{number}) : "
                     f"({anything}, {anything}, {operand_type('f32')}) -> ()")
        return "\n".join(indent + line for line in lines)

    module = _PRODUCT.sub(called, module)
    at = module.rstrip().rindex("}")
    return module[:at] + matmul_functions(elements) + module[at:]


def _element(memref: str) -> str:
    return re.split(r"[,>]", memref.removeprefix("memref<"), maxsplit=1)[0].rsplit("x", 1)[-1]
