"""The virtual Ascend: Triton kernels through Huawei's own compiler, executed, checked and timed without a chip."""

from .compile import CompiledKernel, CompileOptions, compile_kernel
from .memory import MemoryUse
from .targets import Target, find_target, list_targets

__all__ = ["CompileOptions", "CompiledKernel", "MemoryUse", "Target", "compile_kernel", "find_target", "list_targets"]
