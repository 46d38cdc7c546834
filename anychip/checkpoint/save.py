"""Saving a model as a checkpoint in the publisher's layout: whole or not at all, in the memory of one tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..config import ModelConfig
from ..model import Transformer
from . import codec
from .configs import publisher_config
from .files import CONFIG
from .layout import Piece, pieces
from .load import Progress
from .naming import publisher, stored_tensors
from .problems import Problems
from .writing import SHARD_BYTES, FolderWriter


class SavesFiles(Protocol):
    """A tokenizer: writes its files into a folder."""

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json."""


def save_checkpoint(
    model: Transformer,
    config: ModelConfig,
    folder: str | Path,
    *,
    tokenizer: SavesFiles | None = None,
    format: str = "bf16",
    scales: Mapping[str, Tensor] | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Write weights, index, config.json and the tokenizer's files to a folder that does not exist yet, or is empty.

    `format`: fp32 or bf16 (matrices and norms; mHC, sinks and biases stay FP32), fp8 (matrices of attention and
    experts in FP8) or fp4 (as fp8, routed experts in FP4). With the `scales` that loading gave, blocks whose values
    did not change are written with the bytes that were read; otherwise scales follow the publisher's rule.
    Raises InputError for a bad format or target, CheckpointError naming every tensor that is not finite.
    """
    todo = list(pieces(config))
    codec.check_format(format, todo)
    kept = scales or {}
    tensors = model.state_dict(keep_vars=True)
    forms = {piece.name: codec.form(piece, format, _dtype(kept.get(piece.name))) for piece in todo}
    stored = [(place, _whole(forms[place.name], place.shape)) for place in stored_tensors(config, publisher)]
    writer = FolderWriter(folder, [spec for _, item in stored for spec in item.specs()], shard_bytes=shard_bytes)
    _check_finite(todo, forms, tensors, Path(folder))
    done, total = 0, sum(spec.nbytes for _, item in stored for spec in item.specs())
    with writer, torch.no_grad():
        for place, item in stored:
            values = [_value(tensors, piece) for piece in place.pieces]
            # On the CPU whatever the chip: the same weights give the same bytes everywhere.
            value = (values[0] if len(values) == 1 else torch.cat(values, -1)).cpu()
            encoded = codec.encode(item, value, kept.get(place.name))
            for spec, data in zip(item.specs(), encoded, strict=True):
                writer.write(spec.name, data)
                done += spec.nbytes
            if progress is not None:
                progress(done, total)
        writer.write_json(CONFIG, publisher_config(config, format))
        if tokenizer is not None:
            tokenizer.save(writer.folder)


def _dtype(scale: Tensor | None) -> torch.dtype | None:
    return None if scale is None else scale.dtype


def _value(tensors: Mapping[str, Tensor], piece: Piece) -> Tensor:
    tensor = tensors[piece.tensor]
    return tensor[piece.index] if piece.index else tensor


def _whole(form: codec.Form, shape: tuple[int, ...]) -> codec.Form:
    """The form of a published tensor that joins pieces, none of which is quantised."""
    return form if form.scale else form._replace(weight=replace(form.weight, shape=shape))


def _check_finite(
    todo: list[Piece], forms: Mapping[str, codec.Form], tensors: Mapping[str, Tensor], folder: Path
) -> None:
    problems = Problems()
    with torch.no_grad():
        for piece in todo:
            value, kind = _value(tensors, piece), forms[piece.name].kind
            if kind != "table" and not math.isfinite(_amax(value)):
                problems.add("not finite", f"{piece.name} holds NaN or Inf")
            elif kind != "table" and _amax(value) > codec.largest_finite(kind):
                problems.add(
                    "too large", f"{piece.name} has {_amax(value):.6g}, more than {kind} can hold: use fp32"
                )
    problems.raise_if_any(f"the model cannot be saved to {folder}")


def _amax(value: Tensor) -> float:
    return float(torch.linalg.vector_norm(value.float().flatten(), torch.inf))
