"""Writing a checkpoint folder, whole or not at all, in the memory of one tensor.

The shards are written at their final offsets in a temporary folder beside the target, which is renamed to the
target at the end. The `safetensors` library can only write a file whose tensors are all in memory; here the header
is laid out first (same order as the library's: by item size, then name) and the tensors follow one by one.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import InputError
from .files import INDEX

SHARD_BYTES = 4 * 10**9
SCALE_SUFFIXES = (".scale", ".weight_scale_inv")
DTYPE_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that will be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its bytes on disk."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass
class _Place:
    shard: int
    start: int  # in the shard's file, header included
    spec: TensorSpec
    written: int = 0


class FolderWriter:
    """Context manager: write every tensor of `specs`, in any order; leaving it renames the folder into place.

    Leaving by an exception removes everything. Raises InputError where the target exists and is not an empty
    folder, or cannot be written (also when the disk fills up).
    """

    def __init__(
        self, target: str | Path, specs: Sequence[TensorSpec], *, shard_bytes: int = SHARD_BYTES
    ) -> None:
        self.target = Path(target).absolute()
        check_target(self.target)
        self._shards = _split(specs, shard_bytes)
        self._total = sum(spec.nbytes for spec in specs)
        self._places: dict[str, _Place] = {}
        self._file: tuple[int, BinaryIO] | None = None
        self.folder = self.target  # until entered

    def __enter__(self) -> FolderWriter:
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self.folder = Path(
                tempfile.mkdtemp(prefix=f".{self.target.name}.", suffix=".partial", dir=self.target.parent)
            )
        except OSError as error:
            raise _cannot_write(self.target, error) from error
        try:
            for number in range(len(self._shards)):
                self._write_header(number)
            if len(self._shards) > 1:
                weight_map = {
                    spec.name: self._shard_name(n) for n, shard in enumerate(self._shards) for spec in shard
                }
                self.write_json(INDEX, {"metadata": {"total_size": self._total}, "weight_map": weight_map})
        except BaseException as error:
            self._abandon(error)
            raise
        return self

    def write(self, name: str, tensor: Tensor) -> None:
        """Write a tensor, or append the next part of it (in row-major order)."""
        place = self._places[name]
        data = raw_bytes(tensor)
        if tensor.dtype is not place.spec.dtype or place.written + len(data) > place.spec.nbytes:
            raise ValueError(f"{name}: {tensor.dtype} {tuple(tensor.shape)} is not part of {place.spec}")
        file = self._open(place.shard)
        file.seek(place.start + place.written)
        file.write(data)
        place.written += len(data)

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON file beside the shards."""
        (self.folder / name).write_text(
            json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            try:
                self._finish()
            except BaseException as failure:
                self._abandon(failure)
                raise
        else:
            self._abandon(error)

    def _finish(self) -> None:
        self._close()
        short = [name for name, place in self._places.items() if place.written != place.spec.nbytes]
        if short:
            raise ValueError(f"{len(short)} tensors were not written, the first is {short[0]}")
        umask = os.umask(0)
        os.umask(umask)
        self.folder.chmod(0o777 & ~umask)  # mkdtemp's folder is the owner's only
        os.replace(self.folder, self.target)

    def _abandon(self, error: BaseException) -> None:
        self._close()
        shutil.rmtree(self.folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise _cannot_write(self.target, error) from error

    def _open(self, shard: int) -> BinaryIO:
        if self._file is None or self._file[0] != shard:
            self._close()
            self._file = shard, (self.folder / self._shard_name(shard)).open("r+b")
        return self._file[1]

    def _close(self) -> None:
        if self._file is not None:
            file, self._file = self._file[1], None
            with file:
                file.flush()
                os.fsync(file.fileno())  # the rename must not reach the disk before the data

    def _shard_name(self, number: int) -> str:
        count = len(self._shards)
        return "model.safetensors" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"

    def _write_header(self, number: int) -> None:
        """Write one shard's header and set its length; offsets are aligned because larger items come first."""
        ordered = sorted(self._shards[number], key=lambda spec: (-spec.dtype.itemsize, spec.name))
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for spec in ordered:
            header[spec.name] = {
                "dtype": DTYPE_NAMES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [offset, offset + spec.nbytes],
            }
            offset += spec.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        for spec in ordered:
            start = 8 + len(text) + header[spec.name]["data_offsets"][0]
            self._places[spec.name] = _Place(number, start, spec)
        with (self.folder / self._shard_name(number)).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + offset)


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return a tensor's bytes in row-major order (of its own memory, where it is contiguous on the CPU)."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def check_target(target: Path) -> None:
    """Raise InputError where a checkpoint cannot be written to this path."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"{target} already exists and is not an empty folder; choose another or remove it")
    parent = target.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(
            f"cannot write {target}: {parent} is not a folder that you may write to; choose another"
        )


def _cannot_write(target: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot write {target}: {error.strerror or error}; nothing was left there. Choose another place"
    )


def _split(specs: Sequence[TensorSpec], shard_bytes: int) -> list[list[TensorSpec]]:
    """Fill shards in order; a weight and its scale stay together."""
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if shards[-1] and size + spec.nbytes > shard_bytes and not spec.name.endswith(SCALE_SUFFIXES):
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.nbytes
    return shards
