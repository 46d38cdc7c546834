"""Compiled kernels on disk, in the user's cache, named by the hash of all that decides them.

What was not used for longest goes first once a folder holds more than LIMIT_BYTES.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import zlib
from pathlib import Path
from typing import Any

from .. import cpp

FORMAT = 1  # raise it when what is stored changes its meaning
LIMIT_BYTES = 2**28  # of each folder; the suite on one chip takes 2 MB
UNFINISHED = ".part"


def cache_folder(kind: str = "ascend") -> Path:
    """Return the folder that holds kernels compiled for Ascend, or those built for this processor (`native`)."""
    return cpp.cache_folder() / kind


def digest(*parts: str) -> str:
    """Return the name of an entry: the hash of every text that decides its content."""
    return hashlib.sha256("\0".join([str(FORMAT), *parts]).encode()).hexdigest()[:40]


def load(folder: Path, name: str) -> dict[str, Any] | None:
    """Return the entry, or None where there is none or a half-written disk left it unreadable."""
    try:
        return json.loads(zlib.decompress(read(folder / f"{name}.kernel")))
    except (zlib.error, ValueError):
        return None


def store(folder: Path, name: str, entry: dict[str, Any]) -> None:
    """Keep an entry, as `keep` does."""
    keep(folder / f"{name}.kernel", zlib.compress(json.dumps(entry).encode(), 1))


def read(path: Path) -> bytes:
    """Return a file's bytes, none where there is no such file, and note that it was used now."""
    try:
        data = path.read_bytes()
        os.utime(path)
    except OSError:
        return b""
    return data


def keep(path: Path, data: bytes, limit_bytes: int = LIMIT_BYTES) -> None:
    """Write a file in one step: another process sees all of it or nothing. Then prune its folder.

    A full or read-only disk is no error: nothing is kept.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=UNFINISHED)
    except OSError:
        return
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
        prune(path.parent, limit_bytes)
    except OSError:
        Path(temporary).unlink(missing_ok=True)


def prune(folder: Path, limit_bytes: int) -> None:
    """Remove the files used least recently until what is left fits in `limit_bytes`. Folders inside stay.

    Safe beside other processes: a file that one of them has removed is none to remove; one that is being written is
    left alone.
    """
    found = []
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):
            if entry.is_file() and not entry.name.endswith(UNFINISHED):
                found.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
    too_many = sum(size for _, size, _ in found) - limit_bytes
    for _, size, path in sorted(found):
        if too_many <= 0:
            return
        Path(path).unlink(missing_ok=True)
        too_many -= size
