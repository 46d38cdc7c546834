"""C++ libraries built at first use with this machine's compiler, and kept in the user's cache."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from .errors import AnychipError


@dataclass(frozen=True)
class CppLibrary:
    """What a library is built from: every `*.cpp` in `sources`, each compiled with `flags`, joined with `link`.

    `failed(text)` makes the error that is raised where the compiler refuses or the cache cannot be used.
    """

    name: str
    sources: Path
    compiler: tuple[str, ...]
    flags: tuple[str, ...]
    failed: Callable[[str], AnychipError]
    link: tuple[str, ...] = ()

    def load(self) -> ctypes.CDLL:
        """Return the library, built now if the cache has none of these sources, flags, compiler and processor."""
        try:
            version = self._run([*self.compiler, "--version"])
            texts = [f"{path.name}\n{path.read_text()}" for path in sorted(self.sources.glob("*.[ch]*"))]
            path = cache_folder() / f"{self.name}-{self._digest(version, *self.link, *texts)}.so"
            if not path.is_file():
                self._build_once(version, path)
            return ctypes.CDLL(str(path))
        except OSError as error:
            raise self.failed(f"the library could not be written or loaded in {cache_folder()} ({error}); make the "
                              "folder writable") from error

    def _build_once(self, version: str, path: Path) -> None:
        """Build, unless another process does so now: then wait for it and use what it built."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with (path.parent / f"{self.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the system frees it with the process
            if not path.is_file():
                self._build(version, path)

    def _build(self, version: str, path: Path) -> None:
        """Compile each source that changed, in parallel, link, and move the library into place in one step."""
        folder = path.parent / self.name
        folder.mkdir(parents=True, exist_ok=True)
        sources = sorted(self.sources.glob("*.cpp"), key=lambda source: -source.stat().st_size)
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            objects = list(pool.map(lambda source: self._object(version, source, folder), sources))
        with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
            built = Path(temporary, path.name)
            self._run([*self.compiler, "-shared", *map(str, objects), "-o", str(built), *self.link])
            os.replace(built, path)

    def _object(self, version: str, source: Path, folder: Path) -> Path:
        """Compile one source, unless the object file of the same text and headers is in the cache."""
        path = folder / f"{source.stem}-{self._digest(version, *_texts(source, {}).values())}.o"
        if not path.is_file():
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                built = Path(temporary, path.name)
                self._run([*self.compiler, *self.flags, "-c", str(source), "-o", str(built)])
                os.replace(built, path)
        return path

    def _digest(self, *parts: str) -> str:
        whole = [*self.compiler, *self.flags, *_processor(), *parts]
        return hashlib.sha256("\0".join(whole).encode()).hexdigest()[:20]

    def _run(self, command: Sequence[str]) -> str:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise self.failed(f"$ {' '.join(command)}\n{done.stderr.strip()[-2000:]}")
        return done.stdout


def cache_folder() -> Path:
    """Return the folder that holds built libraries."""
    return Path(platformdirs.user_cache_dir("anychip"))


def _texts(source: Path, seen: dict[str, str]) -> dict[str, str]:
    """The text of a source and of the headers that it includes, each once."""
    seen[source.name] = source.read_text()
    for name in re.findall(r'^#include "([\w.]+)"', seen[source.name], re.MULTILINE):
        if name not in seen:
            _texts(source.parent / name, seen)
    return seen


def _processor() -> list[str]:
    """What -march=native depends on: a library from another processor's cache must not be loaded."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else [platform.processor()]
    wanted = ("model name", "flags", "Features", "CPU part")
    return [platform.machine(), *sorted({line for line in lines if line.startswith(wanted)})]
