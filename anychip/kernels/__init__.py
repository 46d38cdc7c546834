"""The suite of kernels in Triton: one source for NVIDIA and Ascend, and the seam's ops on top of them."""

from .example import Example, Kernel, Launch, example, find_kernels

__all__ = ["Example", "Kernel", "Launch", "example", "find_kernels"]
