"""A gap bundle: all that one chip's run says, in one safetensors file that travels between machines.

Format 3: tensors by name (`ops/<n>`, `layers/<name>`, `model/nll`, ...), and four metadata strings: `format`
("anychip-gap"), `version`, `about` (JSON: chip, kinds, versions, digests, settings) and `tables` (JSON rows).
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import BundleError, InputError

FORMAT, VERSION = "anychip-gap", 3


@dataclass
class Bundle:
    """One chip's run. `about` says what ran where, `tables` hold rows of numbers, `tensors` the samples."""

    about: dict[str, Any]
    tables: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write the bundle whole or not at all. Raises InputError where the place cannot be written."""
        metadata = {"format": FORMAT, "version": str(VERSION), "about": json.dumps(self.about),
                    "tables": json.dumps(self.tables)}
        tensors = {name: tensor.contiguous().cpu() for name, tensor in self.tensors.items()}
        write_whole(Path(path), save(tensors, metadata))

    @classmethod
    def load(cls, path: str | Path) -> Bundle:
        """Read a bundle. Raises BundleError for a file that is missing, corrupt, foreign or too new."""
        if not Path(path).is_file():
            raise BundleError(f"there is no bundle at {str(path)!r}; record one with `anychip gap --record`")
        try:
            with safe_open(str(path), "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        except (SafetensorError, OSError) as error:
            raise BundleError(f"{path} is not a whole bundle ({error}); copy or record it again") from error
        if metadata.get("format") != FORMAT:
            raise BundleError(f"{path} is a safetensors file but not a gap bundle; make one with "
                              "`anychip gap --record`")
        if metadata.get("version") != str(VERSION):
            raise BundleError(f"{path} has bundle version {metadata.get('version')}; this anychip reads version "
                              f"{VERSION}: record and compare with the same anychip")
        return cls(json.loads(metadata["about"]), json.loads(metadata["tables"]), tensors)


def check_writable(path: Path) -> None:
    """Raise InputError where a file cannot be written at `path`; leaves nothing behind."""
    handle, temporary = _temporary(path)
    os.close(handle)
    os.unlink(temporary)


def _temporary(path: Path) -> tuple[int, str]:
    if path.is_dir():
        raise InputError(f"cannot write {str(path)!r}: it is a folder; give the name of a file")
    try:
        return tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror}; choose a folder that exists and is "
                         "yours") from error


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it appears complete or not at all. Raises InputError naming what is wrong."""
    handle, temporary = _temporary(path)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        os.unlink(temporary)
        raise InputError(f"cannot write {str(path)!r}: {error.strerror}; choose another place") from error
