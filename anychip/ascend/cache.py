"""Compiled kernels on disk, in the user's cache, named by the hash of all that decides them."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zlib
from pathlib import Path
from typing import Any

import platformdirs

FORMAT = 1  # raise it when what is stored changes its meaning


def cache_folder() -> Path:
    """Return the folder that holds compiled kernels."""
    return Path(platformdirs.user_cache_dir("anychip")) / "ascend"


def digest(*parts: str) -> str:
    """Return the name of an entry: the hash of every text that decides its content."""
    return hashlib.sha256("\0".join([str(FORMAT), *parts]).encode()).hexdigest()[:40]


def load(folder: Path, name: str) -> dict[str, Any] | None:
    """Return the entry, or None where there is none or a half-written disk left it unreadable."""
    try:
        return json.loads(zlib.decompress((folder / f"{name}.kernel").read_bytes()))
    except (OSError, zlib.error, ValueError):
        return None


def store(folder: Path, name: str, entry: dict[str, Any]) -> None:
    """Write an entry in one step: another process sees all of it or nothing. A full or read-only disk is no error."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, suffix=".part")
    except OSError:
        return
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(zlib.compress(json.dumps(entry).encode(), 1))
        os.replace(temporary, folder / f"{name}.kernel")
    except OSError:
        Path(temporary).unlink(missing_ok=True)
