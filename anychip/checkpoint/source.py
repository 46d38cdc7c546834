"""An opened checkpoint: its folder matched, name by name, against what its configuration asks for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import CheckpointError
from . import codec
from .configs import read_config
from .files import CheckpointFolder, TensorInfo
from .layout import Piece, Role, is_shared_copy
from .naming import Stored, publisher, recognise, stored_tensors
from .problems import Problems


@dataclass(frozen=True)
class Part:
    """A piece that can be read: the stored tensor and part of it, how it is encoded, and its scale's name."""

    piece: Piece
    name: str
    index: tuple[int | slice, ...]
    kind: str
    scale: str | None


@dataclass
class Source:
    """A checkpoint of a model. `parts` are the readable pieces; `problems` say what is wrong with the others."""

    folder: CheckpointFolder
    config: ModelConfig
    parts: list[Part] = field(default_factory=list)
    problems: Problems = field(default_factory=Problems)

    def raw(self, part: Part) -> tuple[Tensor, Tensor | None]:
        """Return a piece's weight and scale as stored. Raises CheckpointError where they cannot be read."""
        weight = self.folder.read(part.name, part.index)
        return weight, None if part.scale is None else self.folder.read(part.scale)

    def checked(self, part: Part) -> tuple[Tensor, Tensor | None] | None:
        """Return a piece's values and its E8M0 scale; note a problem and return None where they cannot be used."""
        try:
            weight, scale = self.raw(part)
        except CheckpointError as error:
            self.problems.add("corrupt", str(error))
            return None
        value = codec.decode(part.kind, weight, scale)
        if part.kind == "table":
            return (value, None) if self._in_table(part, value) else None
        if not value.isfinite().all():
            count = int((~value.isfinite()).sum())
            self.problems.add(
                "not finite", f"{part.name}{_where(part)} has {count} NaN or Inf of {value.numel()}"
            )
            return None
        return value, scale if scale is not None and scale.dtype is torch.float8_e8m0fnu else None

    def _in_table(self, part: Part, value: Tensor) -> bool:
        low, high, count = int(value.min()), int(value.max()), self.config.n_routed_experts
        if low < 0 or high >= count:
            self.problems.add(
                "out of range", f"{part.name} has expert ids {low} to {high}; there are {count} experts"
            )
        return low >= 0 and high < count

    def format(self) -> str:
        """Return the format that the checkpoint is stored in, one of codec.FORMATS."""
        kinds = {part.kind for part in self.parts}
        for kind in ("fp4", "fp8"):
            if kind in kinds:
                return kind
        dense = {part.kind for part in self.parts if part.piece.role not in (Role.EXACT, Role.TABLE)}
        return "fp32" if dense <= {"fp32"} else "bf16"

    def nbytes(self) -> int:
        """Return the bytes of the parts' weights as stored (for progress)."""
        return sum(nbytes(part) for part in self.parts)


def open_source(where: str | Path, config: ModelConfig | None = None) -> Source:
    """Open a checkpoint folder in any naming and match its headers against `config` (default: its config.json).

    Reads no tensor. Raises CheckpointError where there is no checkpoint, ConfigError where config.json is unusable.
    """
    folder = CheckpointFolder(where)
    config = config or read_config(folder.folder, folder.tensors.keys() | folder.unreadable)
    source = Source(folder, config, problems=Problems(folder.problems))
    naming = recognise(folder.tensors.keys() | folder.unreadable, config)
    used: set[str] = set()
    for stored in stored_tensors(config, naming):
        used.add(stored.name)
        if stored.name == stored.pieces[0].name and stored.pieces[0].role in (Role.LINEAR, Role.EXPERT):
            used.add(stored.pieces[0].scale)
        for piece, kind, scale in _match(
            source, stored, naming is publisher or stored.name.startswith("mtp.")
        ):
            source.parts.append(Part(piece, stored.name, naming(piece).index, kind, scale))
    _note_extra(source, used)
    return source


def _match(source: Source, stored: Stored, may_quantise: bool) -> Iterator[tuple[Piece, str, str | None]]:
    """Yield the stored tensor's pieces with their kind and scale; note what keeps it from being read."""
    folder, problems = source.folder, source.problems
    if stored.name in folder.unreadable:
        return  # its shard is named already
    info = folder.tensors.get(stored.name)
    if info is None:
        if folder.complete:
            problems.add("missing", stored.name)
            if stored.name.startswith("mtp."):
                problems.advise(
                    "num_nextn_predict_layers=0 in config.json loads a model without its MTP block"
                )
        return
    kind = codec.form_of_stored(stored.pieces[0], info.dtype)
    if kind is None or (kind in ("fp8", "fp4") and not may_quantise):
        problems.add(
            "wrong dtype",
            f"{stored.name} is {info.dtype}; a {stored.pieces[0].role.name} tensor is stored "
            f"as {stored.pieces[0].role.value}",
        )
        return
    wanted = (*stored.shape[:-1], stored.shape[-1] // 2) if kind == "fp4" else stored.shape
    if info.shape != wanted:
        problems.add(
            "misshapen", f"{stored.name} is {list(info.shape)}, the configuration needs {list(wanted)}"
        )
        return
    if kind not in ("fp8", "fp4"):
        yield from ((piece, kind, None) for piece in stored.pieces)
    elif _scale_fits(source, stored.pieces[0], kind):
        yield stored.pieces[0], kind, stored.pieces[0].scale


def _scale_fits(source: Source, piece: Piece, kind: str) -> bool:
    if piece.scale in source.folder.unreadable:
        return False
    spec = codec.form(piece, kind).scale
    assert spec is not None
    info = source.folder.tensors.get(piece.scale)
    if info is None:
        source.problems.add("missing", f"{piece.scale}, the scale of {piece.name}")
    elif info.dtype not in codec.SCALES[: 2 if kind == "fp8" else 1]:
        source.problems.add("wrong dtype", f"{piece.scale} is {info.dtype}; a scale is F8_E8M0")
    elif info.shape != spec.shape:
        source.problems.add(
            "misshapen", f"{piece.scale} is {list(info.shape)}, {piece.name} needs {list(spec.shape)}"
        )
    else:
        return True
    return False


def _note_extra(source: Source, used: set[str]) -> None:
    tensors: Mapping[str, TensorInfo] = source.folder.tensors
    for name in tensors:
        unneeded_scale = name.endswith(".scale") and name in used and not _is_scaled(tensors, name)
        if (name not in used and not is_shared_copy(name)) or unneeded_scale:
            source.problems.add("extra", f"{name} {tensors[name].dtype} {list(tensors[name].shape)}")
            if re.search(r"^mtp\.[12]\.|main_proj|markov|confidence", name):
                source.problems.advise("these are DSpark draft blocks, not an MTP block; this model has none")
            elif name.startswith("mtp."):
                source.problems.advise("num_nextn_predict_layers=1 in config.json loads the MTP block")


def _is_scaled(tensors: Mapping[str, TensorInfo], scale: str) -> bool:
    weight = tensors.get(scale.removesuffix(".scale") + ".weight")
    return weight is None or weight.dtype not in codec.FLOATS


def nbytes(part: Part) -> int:
    """Return the bytes of a part's weight as stored, near enough for progress."""
    size = {"fp4": 0.5, "fp8": 1, "fp32": 4, "table": 8}.get(part.kind, 2)
    count = 1
    for length in part.piece.shape:
        count *= length
    return int(count * size)


def _where(part: Part) -> str:
    return f" (expert {part.index[0]})" if part.index else ""
