"""Loading a checkpoint into a model, tensor by tensor: peak memory is the model and one published tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import InputError
from ..model import Transformer
from ..ops import Ops
from .source import Source, nbytes, open_source

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True)
class Loaded:
    """What was read beside the weights: the configuration, the format (fp32, bf16, fp8, fp4) and the block scales.

    `scales` (published name of the weight -> E8M0) let `save_checkpoint` write the same bytes again.
    """

    config: ModelConfig
    format: str
    scales: dict[str, Tensor] = field(repr=False, default_factory=dict)


def load_checkpoint(folder: str | Path, model: Transformer, *, progress: Progress | None = None) -> Loaded:
    """Read a checkpoint (publisher's or transformers' names, any format) into a model, in the model's dtypes.

    Raises CheckpointError naming at once every missing, extra, misshapen, corrupt or non-finite tensor; the model's
    weights are then undefined. Raises InputError where the model is on the meta device.
    """
    tensors = model.state_dict(keep_vars=True)
    if any(tensor.is_meta for tensor in tensors.values()):
        raise InputError(
            "the model is on the meta device and has no memory for weights: build it on a real device"
        )
    source = open_source(folder, model.config)
    scales: dict[str, Tensor] = {}
    done, total = 0, source.nbytes()
    with torch.no_grad():
        for part in source.parts:
            found = source.checked(part)
            if found is not None:
                value, scale = found
                target = tensors[part.piece.tensor]
                (target[part.piece.index] if part.piece.index else target).copy_(value)
                if scale is not None:
                    scales[part.piece.name] = scale.clone()
            done += nbytes(part)
            if progress is not None:
                progress(done, total)
    source.folder.close()
    source.problems.raise_if_any(f"checkpoint {folder} cannot be loaded")
    return Loaded(source.config, source.format(), scales)


def load_model(
    folder: str | Path,
    ops: Ops,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> tuple[Transformer, Loaded]:
    """Build the model that a checkpoint's config.json describes and load it. Raises as `load_checkpoint`."""
    source: Source = open_source(folder)
    source.folder.close()
    with torch.device("meta"):
        model = Transformer(source.config, ops).to(dtype)
    model.to_empty(device=device)
    return model, load_checkpoint(folder, model, progress=progress)
