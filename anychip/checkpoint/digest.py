"""One hash for a set of weights, whatever names and shards they are stored under."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from ..model import Transformer
from .layout import pieces
from .source import open_source
from .writing import DTYPE_NAMES, raw_bytes


def digest(weights: Transformer | str | Path) -> str:
    """Return the SHA-256 of a model's or checkpoint folder's tensors: published name, dtype, shape and bytes, by name.

    Equal for a model and the checkpoint that it was loaded from or saved to where their dtypes are equal, and for a
    checkpoint in either naming. Raises CheckpointError where the folder is no whole checkpoint of its config.json.
    """
    total = hashlib.sha256()
    tensors = _of_model(weights) if isinstance(weights, Transformer) else _of_folder(weights)
    for name, tensor in tensors:
        total.update(f"{name} {DTYPE_NAMES[tensor.dtype]} {list(tensor.shape)}\n".encode())
        total.update(raw_bytes(tensor))
    return total.hexdigest()


def _of_model(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    tensors = model.state_dict(keep_vars=True)
    for piece in sorted(pieces(model.config), key=lambda piece: piece.name):
        tensor = tensors[piece.tensor]
        yield piece.name, tensor[piece.index] if piece.index else tensor


def _of_folder(folder: str | Path) -> Iterator[tuple[str, Tensor]]:
    source = open_source(folder)
    source.problems.raise_if_any(f"checkpoint {folder} cannot be hashed")
    for part in sorted(source.parts, key=lambda part: part.piece.name):
        weight, scale = source.raw(part)
        yield part.piece.name, weight
        if scale is not None:
            yield part.piece.scale, scale
    source.folder.close()
