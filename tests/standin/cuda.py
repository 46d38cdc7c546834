"""CUDA is refused by name: `.cuda()`, functions of torch.cuda that are called from outside torch, device="cuda"."""

from __future__ import annotations

import functools
import sys
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, resolve_name

from . import rules

_WHY = "this machine has an Ascend NPU and no CUDA; take the device from the chip"


class Guard(TorchFunctionMode):
    """Looks at every call of torch's API for a CUDA device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "cuda" or any(map(_is_cuda, args)) or any(map(_is_cuda, kwargs.values())):
            rules.refuse(f"{resolve_name(func)} (CUDA)", _WHY)
        return func(*args, **kwargs)


def _is_cuda(value: Any) -> bool:
    if isinstance(value, str):
        return value == "cuda" or value.startswith("cuda:")
    return isinstance(value, torch.device) and value.type == "cuda"


def guard_module(module: ModuleType) -> None:
    """Refuse every public function of a module, except for torch's own calls (it asks for CUDA in many places)."""
    for name, function in list(vars(module).items()):
        if isinstance(function, FunctionType) and not name.startswith("_"):
            setattr(module, name, _guarded(f"torch.cuda.{name}", function))
    torch.nn.Module.cuda = _guarded("torch.nn.Module.cuda", torch.nn.Module.cuda)  # type: ignore[method-assign]


def _guarded(name: str, function: Any) -> Any:
    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.split(".")[0] != "torch":
            rules.refuse(name, _WHY)
        return function(*args, **kwargs)

    return guarded
