"""Implementations that give whole logits: a user's Python file, and any function that returns them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..ops import COSTS
from .cases import KINDS, Case, picked
from .judge import Seen, Unable, Wrong
from .layers import ASKS

_ASKS = {"whole": "logits(ids) -> [T, V]", "chunked": "chunked(chunks) -> [T, V] over all chunks' tokens",
         "packed": "packed(samples) -> [T, V] over all samples' tokens",
         "mtp": "mtp(ids) -> [T - 1, V]: row t predicts ids[t + 2]"}


@dataclass(frozen=True)
class Functions:
    """Functions by name (`logits`, `chunked`, `packed`, `mtp`), each of token ids, as an implementation under test."""

    found: dict[str, Callable[..., Any]]
    vocab_size: int
    absent: dict[str, str] = field(default_factory=dict)  # name -> why there is none; else what the file lacks

    def run(self, case: Case) -> Seen:
        """Call the function of the case's kind. Raises Unable where there is none, Wrong for a misshapen result."""
        name = KINDS[case.kind]
        if name not in self.found:
            raise Unable(self.absent.get(name, f"the file does not define {_ASKS[case.kind]}"))
        pieces = [list(piece) for piece in case.pieces]
        try:
            given = self.found[name](pieces[0] if case.kind in ("whole", "mtp") else pieces)
        except Exception as error:
            raise Wrong(f"{name}(...) raised {type(error).__name__}: {error}") from error
        logits = self._checked(name, given, len(case.tokens) - (case.kind == "mtp"))
        return Seen(picked(logits, case), torch.ones(case.ids.shape, dtype=torch.bool))

    def _checked(self, name: str, given: Any, rows: int) -> Tensor:
        if isinstance(given, (list, tuple)) and given and all(getattr(part, "ndim", 0) == 2 for part in given):
            given = torch.cat([torch.as_tensor(part) for part in given])  # one array a chunk or sample
        try:
            logits = torch.as_tensor(given).detach().cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise Wrong(f"{name}(...) returned {type(given).__name__}, which is no array: {error}") from error
        if logits.shape != (rows, self.vocab_size):
            raise Wrong(f"{name}(...) returned shape {tuple(logits.shape)}; [{rows}, {self.vocab_size}] is wanted")
        return logits


def open_file(path: Path) -> ModuleType:
    """Import a user's file; its neighbours can be imported from it.

    Raises InputError where it cannot be imported or defines nothing that can be judged.
    """
    if path.suffix != ".py" or not path.is_file():
        raise InputError(f"{path} is not a Python file that exists; `anychip conform FILE.py` takes one")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent))
    if not functions_of(module) and not ops_of(module) and layer_of(module) is None:
        model = "; ".join((*_ASKS.values(), ASKS))
        raise InputError(f"{path} defines nothing to judge. A model: {model}. Ops, by name: {', '.join(COSTS)}")
    return module


def functions_of(module: ModuleType) -> dict[str, Callable[..., Any]]:
    """Return the file's functions that run a model."""
    return {name: getattr(module, name) for name in KINDS.values() if callable(getattr(module, name, None))}


def layer_of(module: ModuleType) -> Callable[..., Any] | None:
    """Return the file's function that runs one layer, where it has one."""
    found = getattr(module, "layer", None)
    return found if callable(found) else None


def ops_of(module: ModuleType) -> tuple[str, ...]:
    """Return the names of the file's functions that replace ops."""
    return tuple(name for name in COSTS if callable(getattr(module, name, None)))


def loads(module: ModuleType) -> bool:
    """Return whether the file loads a weight set that it is given: it defines `load(folder)`."""
    return callable(getattr(module, "load", None))
