"""One published tensor between its stored form and plain numbers: BF16, FP32, FP8 with a scale, FP4 with a scale."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError, nearest
from ..ops import formats
from .layout import Piece, Role
from .writing import TensorSpec

FORMATS = ("fp32", "bf16", "fp8", "fp4")
FLOATS = ("F32", "BF16", "F16")
FP8, FP4, SCALES = "F8_E4M3", ("I8", "U8"), ("F8_E8M0", "F32")


class Form(NamedTuple):
    """How a piece is stored: `kind` is a format of FORMATS, `fp16`, or `table`; then the specs that it needs."""

    kind: str
    weight: TensorSpec
    scale: TensorSpec | None = None

    def specs(self) -> list[TensorSpec]:
        """The tensors to write, in order."""
        return [self.weight] if self.scale is None else [self.weight, self.scale]


def check_format(format: str) -> None:
    """Raise InputError where there is no such format."""
    if format not in FORMATS:
        raise InputError(
            f"no checkpoint format {format!r}; there are {', '.join(FORMATS)}.{nearest(format, FORMATS)}"
        )


def form(piece: Piece, format: str) -> Form:
    """Return how the publisher stores a piece in this format (see `layout.Role`)."""
    kind = _kind(piece.role, format)
    if kind == "table":
        return Form(kind, TensorSpec(piece.name, torch.int64, piece.shape))
    if kind == "fp8":
        grid = tuple(-(-size // 128) for size in piece.shape)
        return Form(
            kind,
            TensorSpec(piece.name, formats.E4M3, piece.shape),
            TensorSpec(piece.scale, formats.E8M0, grid),
        )
    if kind == "fp4":
        rows, columns = piece.shape
        return Form(
            kind,
            TensorSpec(piece.name, torch.int8, (rows, columns // 2)),
            TensorSpec(piece.scale, formats.E8M0, (rows, columns // 32)),
        )
    return Form(
        kind, TensorSpec(piece.name, torch.float32 if kind == "fp32" else torch.bfloat16, piece.shape)
    )


def _kind(role: Role, format: str) -> str:
    if role is Role.TABLE:
        return "table"
    if role is Role.EXACT or format == "fp32":
        return "fp32"
    if role is Role.DENSE or format == "bf16":
        return "bf16"
    return "fp8" if role is Role.LINEAR else format


def form_of_stored(piece: Piece, dtype: str) -> str | None:
    """Return the kind that a stored dtype (safetensors' name) means for a piece, None where it may not have it."""
    if piece.role is Role.TABLE:
        return "table" if dtype in ("I64", "I32") else None
    if dtype in FLOATS:
        return {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}[dtype]
    if dtype == FP8 and piece.role in (Role.LINEAR, Role.EXPERT):
        return "fp8"
    return "fp4" if dtype in FP4 and piece.role is Role.EXPERT else None


def unfit_for_fp4(piece: Piece) -> bool:
    """Whether a piece's rows cannot be cut into FP4's blocks of 32."""
    return piece.role is Role.EXPERT and piece.shape[-1] % formats.FP4_BLOCK[1] != 0


def decode(kind: str, weight: Tensor, scale: Tensor | None) -> Tensor:
    """Return a stored piece's values: fp32 where it was quantised, as stored otherwise."""
    if kind == "fp8":
        assert scale is not None
        return formats.dequantize_fp8(weight, scale)
    if kind == "fp4":
        assert scale is not None
        return formats.dequantize_fp4(weight.view(torch.int8), scale)
    return weight


def encode(kind: str, value: Tensor, scale: Tensor | None = None) -> tuple[Tensor, ...]:
    """Return a piece's stored tensors (weight, then scale where quantised). `scale` as in `formats.quantize_fp8`."""
    if kind == "fp8":
        return tuple(formats.quantize_fp8(value, scale=scale))
    if kind == "fp4":
        return tuple(formats.quantize_fp4(value, scale=scale))
    return (
        value.to(torch.int64 if kind == "table" else torch.float32 if kind == "fp32" else torch.bfloat16),
    )


def largest_finite(kind: str) -> float:
    """Return the largest value that survives the kind (the block formats scale to any fp32)."""
    return torch.finfo(torch.bfloat16 if kind == "bf16" else torch.float32).max
