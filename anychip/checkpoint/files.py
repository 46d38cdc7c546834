"""Reading a checkpoint folder: sharded safetensors and their index, one tensor at a time.

The headers are read once; tensors are mapped from disk when they are asked for, so a folder of any size opens in
the memory of its names. Mapped pages count as this process's memory while their shard is open, so a shard is mapped
anew after every 64 MiB read, and at most two are open.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError
from .problems import Problems

INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
_OPEN_SHARDS = 2  # a weight and its scale may lie in different shards
_MAPPED_BYTES = 64 * 2**20


@dataclass(frozen=True)
class TensorInfo:
    """A stored tensor as its header states it: safetensors' dtype name (F32, BF16, F8_E4M3, I8, ...) and shape."""

    dtype: str
    shape: tuple[int, ...]
    shard: str


class CheckpointFolder:
    """A folder's tensors by name. What is wrong with its shards or index is in `problems`, not raised.

    `tensors` are those that can be read; `unreadable` are names that the index has in a lost or corrupt shard.
    `complete` is False where a shard is unreadable and no index says which names it held.
    Raises CheckpointError where there is no folder or no safetensors file in it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.problems: list[tuple[str, str]] = []
        self.tensors: dict[str, TensorInfo] = {}
        self._open: dict[str, Any] = {}
        self._mapped: dict[str, int] = {}  # bytes read from each open shard
        shards = _list_shards(self.folder)
        index = self._read_index(shards)
        lost = {shard for shard in sorted(set(shards) | set(index.values())) if not self._read_header(shard)}
        self.unreadable = {name for name, shard in index.items() if shard in lost}
        self.complete = not lost or bool(index)
        self._compare(index, lost)

    def read(self, name: str, index: tuple[int | slice, ...] = ()) -> Tensor:
        """Return one tensor (or its `index`ed part), mapped from disk. Raises CheckpointError where it cannot."""
        shard = self.tensors[name].shard
        try:
            handle = self._handle(shard)
            tensor: Tensor = handle.get_slice(name)[index] if index else handle.get_tensor(name)
            self._mapped[shard] += tensor.numel() * tensor.element_size()
            return tensor
        except (SafetensorError, OSError, RuntimeError) as error:
            raise CheckpointError(f"{name} in {self.folder / shard} cannot be read: {error}") from error

    def close(self) -> None:
        """Close the shards that are held open."""
        for shard in list(self._open):
            self._close(shard)

    def raise_if_damaged(self) -> None:
        """Raise CheckpointError naming every problem of the shards and the index."""
        Problems(self.problems).raise_if_any(f"checkpoint {self.folder} is damaged")

    def _handle(self, shard: str) -> Any:
        if self._mapped.get(shard, 0) > _MAPPED_BYTES:
            self._close(shard)
        if shard not in self._open:
            while len(self._open) >= _OPEN_SHARDS:
                self._close(next(iter(self._open)))
            self._open[shard], self._mapped[shard] = safe_open(self.folder / shard, framework="pt"), 0
        return self._open[shard]

    def _close(self, shard: str) -> None:
        del self._mapped[shard]
        self._open.pop(shard).__exit__(None, None, None)

    def _read_index(self, shards: list[str]) -> dict[str, str]:
        """Return name -> shard; empty without an index, which only a single shard can do without."""
        path = self.folder / INDEX
        if not path.is_file():
            if len(shards) > 1:
                self.problems.append(("index", f"{len(shards)} shards but no {INDEX}: download it too"))
            return {}
        try:
            weight_map = json.loads(path.read_text())["weight_map"]
            if not isinstance(weight_map, dict) or not all(
                isinstance(shard, str) for shard in weight_map.values()
            ):
                raise ValueError("weight_map must map names to files")
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.problems.append(("index", f"{path} cannot be read: {error!r}; download it again"))
            return {}
        outside = {shard for shard in weight_map.values() if Path(shard).name != shard}
        self.problems += [
            ("index", f"{shard!r} is not a file name in this folder") for shard in sorted(outside)
        ]
        return {name: shard for name, shard in weight_map.items() if shard not in outside}

    def _read_header(self, shard: str) -> bool:
        """Note the shard's tensors. False, with the problem noted, where it is missing, truncated or corrupt."""
        path = self.folder / shard
        if not path.is_file():
            self.problems.append(("missing shard", f"{shard}, which {INDEX} names: download it"))
            return False
        try:
            with safe_open(path, framework="pt") as handle:
                headers = [(name, handle.get_slice(name)) for name in handle.keys()]  # noqa: SIM118 - not a dict
                found = {name: TensorInfo(s.get_dtype(), tuple(s.get_shape()), shard) for name, s in headers}
        except (SafetensorError, OSError, RuntimeError) as error:
            size = path.stat().st_size
            self.problems.append(
                (
                    "corrupt shard",
                    f"{shard} ({size} bytes) is truncated or corrupt ({error}): download it again",
                )
            )
            return False
        for name in found.keys() & self.tensors.keys():
            self.problems.append(("index", f"{name} lies both in {self.tensors[name].shard} and in {shard}"))
        self.tensors |= found
        return True

    def _compare(self, index: Mapping[str, str], lost: set[str]) -> None:
        """Note where the index and the shards' own headers disagree."""
        if not index:
            return
        for name, shard in index.items():
            if shard not in lost and name not in self.tensors:
                self.problems.append(("index", f"{name} should be in {shard} but is not there"))
            elif shard not in lost and self.tensors[name].shard != shard:
                self.problems.append(
                    ("index", f"{name} should be in {shard} but is in {self.tensors[name].shard}")
                )
        for name in self.tensors.keys() - index.keys():
            self.problems.append(("index", f"{name} of {self.tensors[name].shard} is not in {INDEX}"))


def _list_shards(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise CheckpointError(
            f"there is no checkpoint folder {folder}; give a folder with config.json and safetensors"
        )
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    if not shards and not (folder / INDEX).is_file():
        raise CheckpointError(
            f"{folder} holds no *.safetensors file; give a folder with config.json and safetensors"
        )
    return shards
