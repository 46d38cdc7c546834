"""Build the CPU kernels at first use with the machine's C++ compiler, and keep the library in the user's cache."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import platformdirs
import torch

from ...errors import ChipError

SOURCES = Path(__file__).parent
# No -ffast-math: a NaN must stay a NaN. Contraction to fused multiply-adds is allowed.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math",
         "-ffp-contract=fast", "-Wall", "-Wextra", "-Wno-psabi", "-Wno-unknown-pragmas")
COMPILERS = ("g++",)  # the kernels use GCC's vector extension; clang lacks its shuffles


@functools.cache
def load_library() -> ctypes.CDLL:
    """Return the kernels' library, built now if it is not in the cache (about ten seconds, once).

    Raises ChipError where no compiler is found or it fails, with what to do.
    """
    compiler = find_compiler()
    path = cache_folder() / f"cpu-{_key(compiler)}.so"
    try:
        if not path.is_file():
            _build(compiler, path)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise ChipError(f"the CPU kernels' library {path} could not be written or loaded ({error}); make its folder "
                        "writable, or use the chip 'cpu:reference'") from error


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


def cache_folder() -> Path:
    """Return the folder that holds built libraries."""
    return Path(platformdirs.user_cache_dir("anychip"))


def _key(compiler: str) -> str:
    """Hash of everything that the library depends on: sources, flags, compiler, processor, torch's thread library."""
    parts = [_run([compiler, "--version"]), platform.machine(), _processor_features(), repr(FLAGS), repr(_link_flags())]
    parts += [f"{path.name}\n{path.read_text()}" for path in sorted(SOURCES.glob("*.[ch]*"))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def _processor_features() -> str:
    """What -march=native depends on: a library from another processor's cache must not be loaded."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else [platform.processor()]
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _link_flags() -> Sequence[str]:
    """Link torch's own OpenMP runtime: a second one would bring a second pool of spinning threads."""
    own = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return [str(own[0])] if own else ["-fopenmp"]


def _build(compiler: str, path: Path) -> None:
    """Compile each source, in parallel, link, and move the library into place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        sources = sorted(SOURCES.glob("*.cpp"))
        objects = [Path(folder, f"{source.stem}.o") for source in sources]
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            commands = ([compiler, *FLAGS, "-c", str(source), "-o", str(object_)]
                        for source, object_ in zip(sources, objects, strict=True))
            list(pool.map(_run, commands))
        built = Path(folder, path.name)
        _run([compiler, "-shared", *map(str, objects), "-o", str(built), *_link_flags()])
        os.replace(built, path)


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ChipError(f"the CPU kernels could not be built; use the chip 'cpu:reference', or mend this:\n"
                        f"$ {' '.join(command)}\n{done.stderr.strip()[-2000:]}")
    return done.stdout
