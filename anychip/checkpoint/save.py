"""Saving a model as a checkpoint in the publisher's layout: whole or not at all, in the memory of one tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import InputError
from ..model import Transformer
from . import codec
from .configs import publisher_config
from .files import CONFIG
from .layout import Piece, pieces
from .load import Progress
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
    codec.check_format(format)
    todo = list(pieces(config))
    check_blocks(todo, format)
    tensors = model.state_dict(keep_vars=True)
    forms = {piece.name: codec.form(piece, format) for piece in todo}
    writer = FolderWriter(
        folder, [spec for item in forms.values() for spec in item.specs()], shard_bytes=shard_bytes
    )
    _check_finite(todo, forms, tensors, Path(folder))
    done, total = 0, sum(spec.nbytes for item in forms.values() for spec in item.specs())
    with writer, torch.no_grad():
        for piece in todo:
            item, tensor = forms[piece.name], tensors[piece.tensor]
            value = tensor[piece.index] if piece.index else tensor
            # On the CPU whatever the chip: the same weights give the same bytes everywhere.
            stored = codec.encode(item.kind, value.cpu(), (scales or {}).get(piece.name))
            for spec, data in zip(item.specs(), stored, strict=True):
                writer.write(spec.name, data)
                done += spec.nbytes
            if progress is not None:
                progress(done, total)
        writer.write_json(CONFIG, publisher_config(config, format))
        if tokenizer is not None:
            tokenizer.save(writer.folder)


def check_blocks(todo: list[Piece], format: str) -> None:
    """Raise InputError where the experts' rows cannot be cut into FP4's blocks of 32."""
    if format == "fp4" and any(codec.unfit_for_fp4(piece) for piece in todo):
        widths = sorted({piece.shape[-1] for piece in todo if codec.unfit_for_fp4(piece)})
        raise InputError(
            f"fp4 needs hidden_size and moe_intermediate_size to be multiples of 32; here {widths} are "
            "not: use fp8"
        )


def _check_finite(
    todo: list[Piece], forms: Mapping[str, codec.Form], tensors: Mapping[str, Tensor], folder: Path
) -> None:
    problems = Problems()
    with torch.no_grad():
        for piece in todo:
            tensor, kind = tensors[piece.tensor], forms[piece.name].kind
            value = tensor[piece.index] if piece.index else tensor
            if kind != "table" and not math.isfinite(_amax(value)):
                problems.add("not finite", f"{piece.name} holds NaN or Inf")
            elif kind != "table" and _amax(value) > codec.largest_finite(kind):
                problems.add(
                    "too large", f"{piece.name} has {_amax(value):.6g}, more than {kind} can hold: use fp32"
                )
    problems.raise_if_any(f"the model cannot be saved to {folder}")


def _amax(value: Tensor) -> float:
    return float(torch.linalg.vector_norm(value.float().flatten(), torch.inf))
