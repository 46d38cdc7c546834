"""The CPU kernels' library: which compiler, which flags, which thread pool."""

from __future__ import annotations

import ctypes
import functools
import shutil
from pathlib import Path

import torch

from ....cpp import CppLibrary
from ....errors import ChipError

# No -ffast-math: a NaN must stay a NaN. Contraction to fused multiply-adds is allowed.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math",
         "-ffp-contract=fast", "-Wall", "-Wextra", "-Wno-psabi", "-Wno-unknown-pragmas")
COMPILERS = ("g++",)  # the kernels use GCC's vector extension; clang lacks its shuffles


@functools.cache
def load_library() -> ctypes.CDLL:
    """Return the kernels' library, built now if it is not in the cache (about ten seconds, once).

    Raises ChipError where no compiler is found or it fails, with what to do.
    """
    return CppLibrary("cpu", Path(__file__).parent, (find_compiler(),), FLAGS, _failed, _link_flags()).load()


def find_compiler() -> str:
    """Return the path of a C++ compiler. Raises ChipError where there is none."""
    for name in COMPILERS:
        if found := shutil.which(name):
            return found
    raise ChipError(
        f"the chip 'cpu' builds its kernels with a C++ compiler, and none of {', '.join(COMPILERS)} is installed. "
        "Install it (Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++), or use the "
        "chip 'cpu:reference' (plain torch, slower)"
    )


def _link_flags() -> tuple[str, ...]:
    """Link torch's own OpenMP runtime: a second one would bring a second pool of spinning threads."""
    own = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return (str(own[0]),) if own else ("-fopenmp",)


def _failed(text: str) -> ChipError:
    return ChipError(f"the CPU kernels could not be built; use the chip 'cpu:reference', or mend this: {text}")
