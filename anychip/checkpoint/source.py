"""An opened checkpoint: its folder matched, name by name, against what its configuration asks for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import CheckpointError
from . import codec
from .configs import read_config
from .files import CheckpointFolder
from .layout import Piece, Role
from .naming import Stored, canonical, in_model, publisher, stored_tensors, transformers
from .problems import Problems
from .spelling import mtp_prefix, shared_copies


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
    lost: frozenset[str] = frozenset()  # published names of the tensors in unreadable shards

    def raw(self, part: Part) -> tuple[Tensor, Tensor | None]:
        """Return a piece's weight and scale as stored. Raises CheckpointError where they cannot be read."""
        weight = self.folder.read(part.name, part.index)
        return weight, None if part.scale is None else self.folder.read(part.scale)

    def checked(self, part: Part) -> tuple[Tensor, Tensor | None] | None:
        """Return a piece's values and the scale to keep; note a problem and return None where they cannot be used."""
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
        keeps = scale is not None and (scale.dtype is torch.float8_e8m0fnu or not part.piece.scaling.e8m0)
        return value, scale if keeps else None

    def _in_table(self, part: Part, value: Tensor) -> bool:
        mixture = self.config.mixture
        assert mixture is not None  # only a mixture has a table
        low, high, count = int(value.min()), int(value.max()), mixture.num_experts
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
    rename = canonical(config)
    lost = frozenset(map(rename, folder.unreadable))
    source = Source(folder, config, problems=Problems(folder.problems), lost=lost)
    names = _by_canonical_name(source, rename)
    used: set[str] = set()
    for stack in stored_tensors(config, in_model):
        is_stack = len(stack.pieces) > 1 and stack.name in names
        for stored in [stack] if is_stack else [Stored(p.name, p.whole_shape, (p,)) for p in stack.pieces]:
            used.add(stored.name)
            kind = _kind(source, stored, names)
            if kind in ("fp8", "fp4"):
                used.add(stored.pieces[0].scale)
                if not _scale_fits(source, stored.pieces[0], kind, names):
                    continue
            if kind is not None:
                source.parts += _parts(stored, kind, names)
    _note_extra(source, {names[name] for name in used & names.keys()})
    return source


def _by_canonical_name(source: Source, rename: Callable[[str], str]) -> dict[str, str]:
    """Return published (or stacked) name -> stored name of the tensors that can be read."""
    names: dict[str, str] = {}
    for name in source.folder.tensors:
        key = rename(name)
        if key in names:
            source.problems.add("double", f"{name} and {names[key]} are the same tensor")
        names.setdefault(key, name)
    return names


def _parts(stored: Stored, kind: str, names: Mapping[str, str]) -> Iterator[Part]:
    for piece in stored.pieces:
        scale = names[piece.scale] if kind in ("fp8", "fp4") else None
        yield Part(piece, names[stored.name], piece.index if len(stored.pieces) > 1 else piece.part, kind, scale)


def _kind(source: Source, stored: Stored, names: Mapping[str, str]) -> str | None:
    """Return how a tensor is encoded; None, with the problem noted, where it cannot be read."""
    piece, problems, name = stored.pieces[0], source.problems, names.get(stored.name)
    if name is None:
        _note_missing(source, piece, names)
        return None
    info = source.folder.tensors[name]
    kind = codec.form_of_stored(piece, info.dtype)
    if kind is None or (kind in ("fp8", "fp4") and len(stored.pieces) > 1):
        problems.add(
            "wrong dtype",
            f"{name} is {info.dtype}; a tensor of the kind {piece.role.name} is stored as {piece.role.value}",
        )
        return None
    wanted = (*stored.shape[:-1], stored.shape[-1] // 2) if kind == "fp4" else stored.shape
    if info.shape != wanted:
        problems.add("misshapen", f"{name} is {list(info.shape)}, the configuration needs {list(wanted)}")
        return None
    return kind


def _note_missing(source: Source, piece: Piece, names: Mapping[str, str]) -> None:
    """Note a tensor that no shard has, unless its shard is lost and named already."""
    if not source.folder.complete or piece.name in source.lost or piece.tensor in source.lost:
        return
    spelled = publisher if names.get("embed.weight", "embed.weight") == "embed.weight" else transformers
    source.problems.add("missing", spelled(piece).name)
    if piece.name.startswith(mtp_prefix(source.config)):
        source.problems.advise(
            "num_nextn_predict_layers=0 in config.json loads a model without its MTP block"
        )


def _scale_fits(source: Source, piece: Piece, kind: str, names: Mapping[str, str]) -> bool:
    tensors, spec = source.folder.tensors, codec.form(piece, kind).scale
    assert spec is not None
    if piece.scale not in names:
        if source.folder.complete and piece.scale not in source.lost:
            source.problems.add("missing", f"{piece.scale}, the scale of {piece.name}")
        return False
    info = tensors[names[piece.scale]]
    if info.dtype not in codec.SCALES[kind]:
        wanted = "F8_E8M0" if piece.scaling.e8m0 else "F32"
        source.problems.add("wrong dtype", f"{piece.scale} is {info.dtype}; a scale is {wanted}")
        return False
    if info.shape != spec.shape:
        source.problems.add(
            "misshapen", f"{piece.scale} is {list(info.shape)}, {piece.name} needs {list(spec.shape)}"
        )
        return False
    return True


def _note_extra(source: Source, used: set[str]) -> None:
    copies, mtp = shared_copies(source.config), mtp_prefix(source.config)
    for name, info in source.folder.tensors.items():
        if name in used or name.startswith(copies):
            continue
        source.problems.add("extra", f"{name} {info.dtype} {list(info.shape)}")
        if re.search(r"^mtp\.[12]\.|main_proj|markov|confidence", name):
            source.problems.advise("these are DSpark draft blocks, not an MTP block; this model has none")
        elif name.startswith(mtp):
            source.problems.advise("num_nextn_predict_layers=1 in config.json loads the MTP block")


def nbytes(part: Part) -> int:
    """Return the bytes of a part's weight as stored, near enough for progress."""
    size = {"fp4": 0.5, "fp8": 1, "fp32": 4, "table": 8}.get(part.kind, 2)
    count = 1
    for length in part.piece.shape:
        count *= length
    return int(count * size)


def _where(part: Part) -> str:
    return f" (expert {part.index[0]})" if part.index else ""
