"""One published tensor between its stored form and plain numbers: BF16, FP32, FP8 with a scale, FP4 with a scale."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError, nearest
from ..ops import formats
from .layout import Piece, Role
from .writing import TensorSpec

FORMATS = ("fp32", "bf16", "fp8", "fp4")
FLOATS = ("F32", "BF16", "F16")
FP8, FP4 = "F8_E4M3", ("I8", "U8")
SCALES = {"fp8": ("F8_E8M0", "F32", "BF16"), "fp4": ("F8_E8M0",)}  # Qwen3's are BF16


class Form(NamedTuple):
    """How a piece is stored: `kind` is a format of FORMATS, `fp16`, or `table`; then the specs that it needs."""

    kind: str
    weight: TensorSpec
    scale: TensorSpec | None = None
    fitted: bool = False  # the scales fit the blocks' largest values (see layout.Scaling)

    def specs(self) -> list[TensorSpec]:
        """The tensors to write, in order."""
        return [self.weight] if self.scale is None else [self.weight, self.scale]


def check_format(format: str, todo: Iterable[Piece]) -> None:
    """Raise InputError where there is no such format, or these pieces cannot be stored in it."""
    if format not in FORMATS:
        raise InputError(
            f"no checkpoint format {format!r}; there are {', '.join(FORMATS)}.{nearest(format, FORMATS)}"
        )


    if format != "fp4":
        return
    experts = [piece for piece in todo if piece.role is Role.EXPERT]
    if not all(piece.scaling.e8m0 for piece in experts) or not experts:
        raise InputError("the publisher of this model has no layout in fp4: use fp8")
    widths = sorted({piece.shape[-1] for piece in experts if piece.shape[-1] % formats.FP4_BLOCK[1]})
    if widths:
        raise InputError(f"fp4 needs hidden_size and moe_intermediate_size to be multiples of 32; here {widths} are "
                         "not: use fp8")


def form(piece: Piece, format: str, kept: torch.dtype | None = None) -> Form:
    """Return how the publisher stores a piece in this format (see `layout.Role`).

    kept: the dtype of the scale that it was read with. Checkpoints with scales in FP32 and BF16 are both about.
    """
    kind = _kind(piece.role, format)
    if kind == "table":
        return Form(kind, TensorSpec(piece.name, torch.int64, piece.shape))
    if kind == "fp8":
        grid = tuple(-(-size // 128) for size in piece.shape)
        return Form(
            kind,
            TensorSpec(piece.name, formats.E4M3, piece.shape),
            TensorSpec(piece.scale, formats.E8M0 if piece.scaling.e8m0 else kept or torch.float32, grid),
            piece.scaling.fitted,
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


def decode(kind: str, weight: Tensor, scale: Tensor | None) -> Tensor:
    """Return a stored piece's values: fp32 where it was quantised, as stored otherwise."""
    if kind == "fp8":
        assert scale is not None
        return formats.dequantize_fp8(weight, scale)
    if kind == "fp4":
        assert scale is not None
        return formats.dequantize_fp4(weight.view(torch.int8), scale)
    return weight


def encode(form: Form, value: Tensor, scale: Tensor | None = None) -> tuple[Tensor, ...]:
    """Return a piece's stored tensors (weight, then scale where quantised). `scale` as in `formats.quantize_fp8`."""
    if form.kind == "fp8":
        assert form.scale is not None
        codes, made = formats.quantize_fp8(value, scale=scale, fitted=form.fitted)
        if made.dtype is not form.scale.dtype:
            made = formats.decode_e8m0(made) if made.dtype is formats.E8M0 else made.to(form.scale.dtype)
        return codes, made
    if form.kind == "fp4":
        return tuple(formats.quantize_fp4(value, scale=scale))
    return (value.to(form.weight.dtype),)


def largest_finite(kind: str) -> float:
    """Return the largest value that survives the kind (the block formats scale to any fp32)."""
    return torch.finfo(torch.bfloat16 if kind == "bf16" else torch.float32).max
