"""Builds the machine at first use with a C++17 compiler, and keeps the library in the user's cache."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import platformdirs

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
    path = Path(platformdirs.user_cache_dir("anychip")) / f"machine-{_key(compiler)}.so"
    try:
        if not path.is_file():
            build(compiler, path)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NotSupported(f"the virtual Ascend's library {path} could not be written or loaded ({error}); make its "
                           "folder writable") from error


def find_compiler() -> tuple[str, ...]:
    """Return the command of a C++ compiler: g++, else clang++, else the one of the package `ziglang`."""
    for name in ("g++", "clang++"):
        if found := shutil.which(name):
            return (found,)
    if importlib.util.find_spec("ziglang"):
        return (sys.executable, "-m", "ziglang", "c++")
    raise NotSupported("the virtual Ascend's machine is built with a C++ compiler, and there is neither g++, clang++ "
                       "nor ziglang. Install one: pip install 'anychip[ascend]', or apt-get install g++")


def build(compiler: Sequence[str], path: Path) -> None:
    """Compile each source that changed, in parallel, link, and move the library into place in one step."""
    folder = path.parent / "machine"
    folder.mkdir(parents=True, exist_ok=True)
    sources = sorted(MACHINE.glob("*.cpp"), key=lambda source: -source.stat().st_size)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        objects = list(pool.map(lambda source: _object(compiler, source, folder), sources))
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        built = Path(temporary, path.name)
        _run([*compiler, "-shared", *map(str, objects), "-o", str(built)])
        os.replace(built, path)


def _object(compiler: Sequence[str], source: Path, folder: Path) -> Path:
    """Compile one source, unless the object file of the same text and headers is in the cache."""
    flags = (*FLAGS, *(GNU_FLAGS if _is_gnu(compiler) else ()))
    path = folder / f"{source.stem}-{_digest(*compiler, *flags, *_texts(source, {}).values(), *_processor())}.o"
    if not path.is_file():
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            built = Path(temporary, path.name)
            _run([*compiler, *flags, "-c", str(source), "-o", str(built)])
            os.replace(built, path)
    return path


def _texts(source: Path, seen: dict[str, str]) -> dict[str, str]:
    """The text of a source and of the headers that it includes, each once."""
    seen[source.name] = source.read_text()
    for name in re.findall(r'^#include "([\w.]+)"', seen[source.name], re.MULTILINE):
        if name not in seen:
            _texts(source.parent / name, seen)
    return seen


def _is_gnu(compiler: Sequence[str]) -> bool:
    return Path(compiler[0]).name == "g++"


def _key(compiler: Sequence[str]) -> str:
    """Hash of everything that the library depends on: sources, flags, compiler, processor."""
    texts = [f"{path.name}\n{path.read_text()}" for path in sorted(MACHINE.glob("*.[ch]*"))]
    return _digest(_run([*compiler, "--version"]), *_processor(), *FLAGS, *GNU_FLAGS, *texts)


def _processor() -> list[str]:
    """What -march=native depends on: a library from another processor's cache must not be loaded."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else [platform.processor()]
    wanted = ("model name", "flags", "Features", "CPU part")
    return [platform.machine(), *sorted({line for line in lines if line.startswith(wanted)})]


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NotSupported(f"the virtual Ascend's machine could not be built:\n$ {' '.join(command)}\n"
                           f"{done.stderr.strip()[-2000:]}")
    return done.stdout
