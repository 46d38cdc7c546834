"""The native path: a compiled kernel's linalg module as machine code of this processor, for running whole models.

It shares Triton's front end and the adapter with the chip's compilation, and nothing of what comes after: it is fast,
and an independent check of the interpreter (`run_kernel`), which runs what the chip would run. Legal differences: sums
and products of matrices add in another order, exp and log differ by an ulp or two. It checks nothing: an access
outside a tensor is an access to this process's memory.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.metadata
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor

from ..errors import InputError, NotSupported
from ..kernels.example import TYPES
from . import cache
from .native_build import ENTRY, build_object, target_machine
from .native_lower import lower
from .toolchain import INSTALL, find_toolchain

if TYPE_CHECKING:
    from .compile import CompiledKernel

_ENTRY_TYPE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int32, ctypes.c_int32,
                               ctypes.c_int32)
_DTYPES = {f"*{name}": dtype for dtype, name in TYPES.items()}
_PACKED = {"fp32": "f", "fp64": "d", "i1": "?", "i8": "b", "u8": "B", "i16": "h", "i32": "i", "u32": "I", "i64": "q",
           "u64": "Q"}
_FEW_BLOCKS = 2  # fewer are not worth a second thread


@dataclass(frozen=True)
class Native:
    """A kernel as machine code. Call it with arguments by name and a grid; outputs are written in place.

    `alone` says that blocks may touch the same memory (atomics), so they run one after the other.
    """

    name: str
    signature: Mapping[str, str]
    alone: bool
    _entry: Any
    _engine: Any  # holds the code

    def __call__(self, args: Mapping[str, Any], grid: tuple[int, ...], *, threads: int | None = None) -> None:
        """Run every block of `grid` (1-3 sizes). Tensors or NumPy arrays on the host, contiguous, of the signature's
        types. `threads` (default: torch's) share the blocks. Raises InputError for arguments that do not fit.
        """
        slots, kept = self._slots(args)
        x, y, z = (*grid, 1, 1)[:3]
        count = x * y * z
        workers = 1 if self.alone or count < _FEW_BLOCKS else min(threads or torch.get_num_threads(), count)
        edges = [count * worker // workers for worker in range(workers + 1)]
        address = ctypes.addressof(slots)
        others = [threading.Thread(target=self._entry, args=(address, low, high, x, y, z))
                  for low, high in zip(edges[1:], edges[2:], strict=False)]
        for other in others:
            other.start()
        self._entry(address, 0, edges[1], x, y, z)
        for other in others:
            other.join()
        del kept

    def _slots(self, args: Mapping[str, Any]) -> tuple[Any, list[Tensor]]:
        """Eight bytes an argument, and the tensors whose addresses they hold."""
        kept: list[Tensor] = []
        faults = [f"{name!r} is missing" for name in self.signature if name not in args]
        faults += [f"{name!r} is no argument" for name in args if name not in self.signature]
        packed = b""
        for name, kind in self.signature.items():
            if name not in args:
                continue
            try:
                packed += self._packed(args[name], kind, kept).ljust(8, b"\0")
            except (InputError, struct.error, TypeError) as error:
                faults.append(f"{name!r}: {error}")
        if faults:
            raise InputError(f"arguments of kernel {self.name!r}: {'; '.join(faults)}. It takes "
                             f"{', '.join(f'{name}: {kind}' for name, kind in self.signature.items())}")
        return ctypes.create_string_buffer(packed or b"\0" * 8, max(len(packed), 8)), kept

    @staticmethod
    def _packed(value: Any, kind: str, kept: list[Tensor]) -> bytes:
        if not kind.startswith("*"):
            return struct.pack(_PACKED[kind], value)
        tensor = torch.from_numpy(value) if isinstance(value, numpy.ndarray) else value
        if not isinstance(tensor, Tensor) or tensor.dtype is not _DTYPES[kind] or tensor.device.type != "cpu":
            what = f"{tensor.dtype} on {tensor.device}" if isinstance(tensor, Tensor) else type(value).__name__
            raise InputError(f"it must be a {_DTYPES[kind]} tensor on the host, and is {what}")
        if not tensor.is_contiguous():
            raise InputError("it is not contiguous: call .contiguous()")
        kept.append(tensor)
        return struct.pack("q", tensor.data_ptr())


def native(kernel: CompiledKernel) -> Native:
    """Return the kernel for this processor; its object file is kept in the user's cache, by content.

    Raises NotSupported without the `[ascend]` extra, KernelError where the kernel cannot be lowered.
    """
    from llvmlite import binding

    _check_installed()
    path = cache.cache_folder("native") / f"{kernel.name}-{_key(kernel)}.o"
    code = cache.read(path)
    if not code:
        dialect = lower(kernel.linalg, find_toolchain().binaries / "bishengir-opt")
        code = build_object(dialect, kernel.name, len(kernel.signature))
        cache.keep(path, code)
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), target_machine())
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    entry = _ENTRY_TYPE(engine.get_function_address(ENTRY))
    return Native(kernel.name, dict(kernel.signature), "GenericAtomic" in kernel.linalg, entry, engine)


def _check_installed() -> None:
    find_toolchain()
    try:
        importlib.metadata.version("llvmlite")
    except importlib.metadata.PackageNotFoundError:
        raise NotSupported(f"running a kernel natively needs llvmlite: {INSTALL}") from None


@functools.cache
def _builder() -> str:
    """What an object depends on besides its kernel: this lowering, the tools, the processor."""
    from llvmlite import binding

    sources = [path.read_text() for path in sorted(Path(__file__).parent.glob("native_*.py"))]
    return "\0".join([*sources, find_toolchain().versions, importlib.metadata.version("llvmlite"),
                      binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()])


def _key(kernel: CompiledKernel) -> str:
    parts = (_builder(), kernel.name, repr(dict(kernel.signature)), kernel.linalg)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
