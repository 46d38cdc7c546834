"""The CPU chip's C++ kernels: sources, and the library built from them."""

from .build import load_library

__all__ = ["load_library"]
