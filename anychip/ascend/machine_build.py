"""The machine's library: which compiler, which flags."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import shutil
import sys
from pathlib import Path

from ..cpp import CppLibrary
from ..errors import NotSupported
from .opcodes import MACHINE

# No -ffast-math: NaN marks uninitialised memory. -O2 with vector loops builds in seconds and runs as fast as -O3.
FLAGS = ("-std=c++17", "-O2", "-march=native", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra")
GNU_FLAGS = ("-ftree-vectorize", "-fvect-cost-model=dynamic")


@functools.cache
def load_library() -> ctypes.CDLL:
    """Return the machine's library, built now if it is not in the cache (about 15 s on two cores, once).

    Raises NotSupported where no compiler is found or it fails, with what to do.
    """
    compiler = find_compiler()
    flags = (*FLAGS, *(GNU_FLAGS if Path(compiler[0]).name == "g++" else ()))
    return CppLibrary("machine", MACHINE, compiler, flags, _failed).load()


def find_compiler() -> tuple[str, ...]:
    """Return the command of a C++ compiler: g++, else clang++, else the one of the package `ziglang`."""
    for name in ("g++", "clang++"):
        if found := shutil.which(name):
            return (found,)
    if importlib.util.find_spec("ziglang"):
        return (sys.executable, "-m", "ziglang", "c++")
    raise NotSupported("the virtual Ascend's machine is built with a C++ compiler, and there is neither g++, clang++ "
                       "nor ziglang. Install one: pip install 'anychip[ascend]', or apt-get install g++")


def _failed(text: str) -> NotSupported:
    return NotSupported(f"the virtual Ascend's machine could not be built: {text}")
