"""Rewriting a checkpoint in the other naming or another format, streaming: memory is one published tensor."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError, nearest
from . import codec
from .configs import publisher_config, transformers_config
from .files import CONFIG
from .load import Progress
from .naming import NAMINGS, Naming, stored_tensors
from .source import Part, Source, open_source
from .writing import DTYPE_NAMES, SHARD_BYTES, FolderWriter, TensorSpec

TARGETS = ("publisher", "transformers")
# Files beside the weights that both layouts share.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
Parts = dict[tuple[str, int], Part]  # by published name and column


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str = "publisher",
    format: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Rewrite a checkpoint of any naming as a new folder in the naming `to` (publisher, transformers).

    `format` None keeps every tensor as it is stored, byte for byte; fp32, bf16, fp8 or fp4 re-encode what
    is stored otherwise. V4's transformers naming holds fp32 or bf16: transformers itself reads the publisher's FP8
    and FP4 layout. Its loaders pass over the MTP block, which stays in the file.
    Raises CheckpointError as `load_checkpoint`, InputError for a bad argument or target; writes whole or not at all.
    """
    opened = open_source(source)
    _check_request(opened, to, format)
    opened.problems.raise_if_any(f"checkpoint {source} cannot be converted")
    parts = {(part.piece.name, part.piece.column): part for part in opened.parts}
    naming = NAMINGS[to]
    specs = _specs(opened, parts, naming, format)
    done, total = 0, sum(spec.nbytes for spec in specs)
    with FolderWriter(target, specs, shard_bytes=shard_bytes) as writer:
        for name, tensor in _stream(opened, parts, naming, format):
            writer.write(name, tensor)
            done += tensor.numel() * tensor.element_size()
            if progress is not None:
                progress(done, total)
        opened.problems.raise_if_any(f"checkpoint {source} cannot be converted")
        kept = format or opened.format()
        dtype = "float32" if kept == "fp32" else "bfloat16"
        writer.write_json(
            CONFIG,
            publisher_config(opened.config, kept)
            if to == "publisher"
            else transformers_config(opened.config, dtype),
        )
        for companion in COMPANIONS:
            if (opened.folder.folder / companion).is_file():
                shutil.copyfile(opened.folder.folder / companion, writer.folder / companion)
    opened.folder.close()


def _check_request(source: Source, to: str, format: str | None) -> None:
    if to not in TARGETS:
        raise InputError(f"no layout {to!r}; there are {', '.join(TARGETS)}.{nearest(to, TARGETS)}")
    if format is not None:
        codec.check_format(format, [part.piece for part in source.parts])
    kept = format or source.format()
    if to == "transformers" and kept in ("fp8", "fp4") and source.config.family == "v4":
        raise InputError(
            f"the transformers naming holds fp32 or bf16, not {kept}: choose one of them, or keep the "
            "publisher's layout, whose FP8 and FP4 transformers reads itself"
        )


def _piece_specs(source: Source, part: Part, format: str | None) -> list[TensorSpec]:
    """The tensors that a piece becomes in the publisher's naming."""
    stored = source.folder.tensors
    if format is not None:
        kept = None if part.scale is None else _DTYPES[stored[part.scale].dtype]
        return codec.form(part.piece, format, kept).specs()
    if part.scale is None:
        return [TensorSpec(part.piece.name, _DTYPES[stored[part.name].dtype], part.piece.shape)]
    names = {part.piece.name: part.name, part.piece.scale: part.scale}
    return [TensorSpec(new, _DTYPES[stored[old].dtype], stored[old].shape) for new, old in names.items()]


def _specs(source: Source, parts: Parts, naming: Naming, format: str | None) -> list[TensorSpec]:
    found: list[TensorSpec] = []
    for stored in stored_tensors(source.config, naming):
        members = [_piece_specs(source, parts[piece.name, piece.column], format) for piece in stored.pieces]
        if len(members) == 1 and stored.name == stored.pieces[0].name:
            found += members[0]
            continue
        dtypes = {specs[0].dtype for specs in members}
        if len(dtypes) > 1:
            raise InputError(
                f"{stored.name} would join tensors of {len(dtypes)} formats; name one, such as bf16"
            )
        found.append(TensorSpec(stored.name, dtypes.pop(), stored.shape))
    return found


def _stream(source: Source, parts: Parts, naming: Naming, format: str | None) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor to write, or the next part of it, in order; problems of the source are noted, not raised."""
    for stored in stored_tensors(source.config, naming):
        beside: list[Tensor] = []  # parts side by side, which make up a tensor's rows only together
        for piece in stored.pieces:
            encoded = _encoded(source, parts[piece.name, piece.column], format)
            if encoded is None:
                continue
            beside = [*beside, encoded[0]] if piece.part else [encoded[0]]
            if len(beside) < piece.columns:
                continue
            yield stored.name, torch.cat(beside, -1) if piece.part else encoded[0]
            if len(encoded) > 1:
                yield piece.scale, encoded[1]


def _encoded(source: Source, part: Part, format: str | None) -> tuple[Tensor, ...] | None:
    found = source.checked(part)
    if found is None:
        return None
    raw = tuple(tensor for tensor in source.raw(part) if tensor is not None)
    if format is None:
        return raw
    item = codec.form(part.piece, format, raw[1].dtype if len(raw) > 1 else None)
    if [tensor.dtype for tensor in raw] == [spec.dtype for spec in item.specs()]:
        return raw  # it is in this format already: the bytes stay
    value, _ = found
    encoded = codec.encode(item, value)
    if item.kind == "bf16" and not encoded[0].isfinite().all():
        source.problems.add("too large", f"{part.name} has values that bf16 cannot hold: use fp32")
    return encoded
