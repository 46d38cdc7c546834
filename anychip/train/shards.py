"""One save on disk, as torch.distributed.checkpoint's storage: raw tensors, a checksum each, whole or not there.

    step-00000200/rank-0.bin    the tensors (or parts of them) that rank 0 wrote, one after the other
    step-00000200/index.pickle  where each part lies, with its CRC-32, and the layout of the whole tensors
    step-00000200/save.json     the step, what was skipped, how many ranks wrote it, the index's CRC-32 and its own

A save is written in `step-00000200.partial` and renamed once every byte is on the disk, so a process that is killed
at any instant leaves the saves before it. Any number of ranks can read what any other number wrote.
"""

from __future__ import annotations

import json
import os
import pickle
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from ..errors import CheckpointError

INDEX, RECORD, PARTIAL = "index.pickle", "save.json", ".partial"
DAMAGED = "{path} is damaged: {what}"


@dataclass(frozen=True)
class Span:
    """Where one tensor, or a rank's part of it, lies: file, first byte, bytes, CRC-32, dtype and shape."""

    file: str
    start: int
    num_bytes: int
    crc32: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class ShardWriter(StorageWriter):
    """Writes saves of one run. `record` goes to save.json; `before_commit` runs on the coordinator before a save
    becomes visible, `after_commit` after it. `open_file` is how a rank's file is opened."""

    def __init__(self, before_commit: Callable[[], None], after_commit: Callable[[], None]) -> None:
        self.record: dict[str, Any] = {}
        self.open_file: Callable[[Path], BinaryIO] = lambda path: path.open("xb")
        self._before, self._after = before_commit, after_commit
        self._target = self._partial = Path()

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Take the folder of the next save."""
        assert checkpoint_id is not None
        self._target = Path(checkpoint_id)
        self._partial = self._target.with_name(self._target.name + PARTIAL)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the coordinator makes the folder when all plans are there."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Return the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Make the folder and name each rank's file."""
        self._partial.mkdir(parents=True)
        return [replace(plan, storage_data=f"rank-{rank}.bin") for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's tensors, in the plan's order, and push them to the disk."""
        results, start = [], 0
        if plan.items:
            with self.open_file(self._partial / plan.storage_data) as file:
                for item in plan.items:
                    value = planner.resolve_data(item)
                    assert isinstance(value, torch.Tensor), f"{item.index.fqn}: only tensors are saved"
                    data = _bytes_of(value)
                    file.write(data)
                    span = Span(plan.storage_data, start, len(data), zlib.crc32(data), value.dtype, tuple(value.shape))
                    results.append(WriteResult(item.index, len(data), span))
                    start += len(data)
                file.flush()
                os.fsync(file.fileno())
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write index and record, then make the save visible. On the coordinator, after all ranks have written."""
        written = [result for of_rank in results for result in of_rank]
        metadata.storage_data = {result.index: result.storage_data for result in written}
        index = pickle.dumps(metadata)
        record = self.record | {"num_ranks": len(results), "bytes": sum(result.size_in_bytes for result in written),
                                "index_crc32": zlib.crc32(index)}
        write_synced(self._partial / INDEX, index)
        record["crc32"] = _own_crc32(record)
        write_synced(self._partial / RECORD, (json.dumps(record, indent=1) + "\n").encode())
        sync(self._partial)
        self._before()
        os.replace(self._partial, self._target)
        sync(self._target.parent)
        self._after()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Say no: this storage is always chosen by name."""
        return False


class ShardReader(StorageReader):
    """Reads one save; every part that is read is held against its checksum."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._spans: dict[MetadataIndex, Span] = {}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing to do: one reader reads one save."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the index. Raises CheckpointError where it or the record is damaged."""
        wanted = read_record(self.folder)["index_crc32"]
        data = _read(self.folder / INDEX)
        if zlib.crc32(data) != wanted:
            raise CheckpointError(DAMAGED.format(path=self.folder / INDEX, what="its checksum is another one"))
        return pickle.loads(data)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Take the places of all parts."""
        self._spans = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Return the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Return the plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy what this rank needs into its tensors. Raises CheckpointError naming the first damaged tensor."""
        parts: dict[MetadataIndex, torch.Tensor] = {}
        for item in plan.items:
            if item.storage_index not in parts:
                parts[item.storage_index] = self._load(item.storage_index)
            source = parts[item.storage_index]
            for dim, (offset, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                source = source.narrow(dim, offset, length)
            target = planner.resolve_tensor(item).detach()
            target.copy_(source)
            planner.commit_tensor(item, target)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _load(self, index: MetadataIndex) -> torch.Tensor:
        span = self._spans[index]
        if span.num_bytes == 0:
            return torch.empty(span.shape, dtype=span.dtype)
        data = _read(self.folder / span.file, span.start, span.num_bytes)
        if len(data) != span.num_bytes or zlib.crc32(data) != span.crc32:
            what = (f"{index.fqn} has another checksum" if len(data) == span.num_bytes
                    else f"{index.fqn} is cut off after {len(data)} of {span.num_bytes} bytes")
            raise CheckpointError(DAMAGED.format(path=self.folder / span.file, what=what))
        return torch.frombuffer(data, dtype=torch.uint8).view(span.dtype).view(span.shape)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Say no: this storage is always chosen by name."""
        return False


def read_record(folder: Path) -> dict[str, Any]:
    """Return what save.json says of a save. Raises CheckpointError where it cannot be read."""
    try:
        record = json.loads(_read(folder / RECORD))
    except ValueError as error:  # UnicodeDecodeError too
        raise CheckpointError(DAMAGED.format(path=folder / RECORD, what=f"it is not JSON ({error})")) from error
    if not isinstance(record, dict) or record.get("crc32") != _own_crc32(record):
        raise CheckpointError(DAMAGED.format(path=folder / RECORD, what="its checksum is another one"))
    return record


def _own_crc32(record: dict[str, Any]) -> int:
    rest = {name: value for name, value in record.items() if name != "crc32"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def sync(path: Path) -> None:
    """Push a file's bytes or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file and push it to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _bytes_of(value: torch.Tensor) -> memoryview:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _read(path: Path, start: int = 0, num_bytes: int = -1) -> bytearray:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return bytearray(file.read(num_bytes))
    except OSError as error:
        raise CheckpointError(DAMAGED.format(path=path, what=error.strerror or str(error))) from error
