"""How the CPU's ops reach their C++ kernels: signatures set once, and the refusal of other number formats."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
from torch import Tensor

from ...errors import NotSupported

_KINDS: Mapping[str, Any] = {"p": ctypes.c_void_p, "l": ctypes.c_int64, "i": ctypes.c_int, "f": ctypes.c_float}


def bind(library: ctypes.CDLL, signatures: Mapping[str, str]) -> SimpleNamespace:
    """Return the kernels by name (without their `anychip_` prefix), ready to call.

    A signature has one letter a parameter: p pointer, l int64, i int, f float. Kernels return nothing or an int.
    """
    bound: dict[str, Callable[..., int]] = {}
    for name, letters in signatures.items():
        function = getattr(library, f"anychip_{name}")
        function.argtypes = [_KINDS[letter] for letter in letters]
        bound[name] = function
    return SimpleNamespace(**bound)


def refuse(op: str, *tensors: Tensor | None) -> NoReturn:
    """Raise NotSupported for an op that was given another number format than fp32."""
    found = sorted({str(t.dtype).removeprefix("torch.") for t in tensors if t is not None} - {"float32"})
    raise NotSupported(
        f"the cpu chip has no {op} in {', '.join(found)}: its ops take float32 only; convert the weights and "
        "inputs to float32, or open cpu:reference"
    )


def wants_grad(*tensors: Tensor | None) -> bool:
    """Tell whether a call must be remembered for backward."""
    if not torch.is_grad_enabled():
        return False
    return any(t is not None and t.requires_grad for t in tensors)
