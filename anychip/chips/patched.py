"""A chip with changed ops or a changed model: `fault:NAME` (a planted fault), `patched:FILE.py` (a user's module).

A user's module is judged like any port. It may define functions named as ops of the seam (each replaces that op; its
docstring in `anychip/ops` has the shapes), and `prepare(model)`, which changes a built and loaded model in place.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..config import ModelConfig
from ..errors import ChipError
from ..faults import PatchedOps, find_fault
from ..model import Transformer
from ..ops import COSTS, Ops
from .base import Chip
from .facts import ChipFacts


class Patch(Protocol):
    """What is changed: the ops, the model, or both."""

    def ops(self, inner: Ops) -> Ops:
        """Return the ops with the change in them."""
        ...

    def prepare(self, model: Transformer) -> None:
        """Change a built and loaded model in place."""
        ...

    def check(self, model: Transformer, clean: Ops) -> None:
        """Raise NotSupported where the change cannot show in this model; `clean` are the ops without it."""
        ...


@dataclass(frozen=True)
class PatchedChip(Chip):
    """`inner` with a patch. Its figures are of the kind that `inner`'s are."""

    inner: Chip | None = None
    patch: Patch | None = None
    checked: set[ModelConfig] = field(default_factory=set, compare=False)  # models in which the patch can show

    def ops(self) -> Ops:
        assert self.inner is not None and self.patch is not None
        return self.patch.ops(self.inner.ops())

    def prepare(self, model: Transformer) -> None:
        assert self.inner is not None and self.patch is not None
        if model.config not in self.checked:
            self.patch.check(model, self.inner.ops())
            self.checked.add(model.config)
        self.patch.prepare(model)

    def limits(self) -> ChipFacts | None:
        assert self.inner is not None
        return self.inner.limits()

    def synchronize(self) -> None:
        assert self.inner is not None
        self.inner.synchronize()


def open_fault(name: str, inner: Chip) -> Chip:
    """Open `fault:NAME` on `inner`. Raises ChipError for an unknown fault."""
    fault = find_fault(name)
    return _patched(f"fault:{name}", f"{inner.description}, with a planted fault: {fault.text}", inner, fault)


def open_patched(path: str, inner: Chip) -> Chip:
    """Open `patched:FILE.py` on `inner`.

    Raises ChipError where the file is absent or cannot be imported, or replaces nothing that the model calls.
    """
    return _patched(f"patched:{path}", f"{inner.description}, with {path}", inner, ModulePatch(Path(path)))


def _patched(name: str, description: str, inner: Chip, patch: Patch) -> Chip:
    return PatchedChip(name, inner.device, inner.precision, inner.numerics, inner.timing, description, inner.facts,
                       inner, patch)


class ModulePatch:
    """The ops and the `prepare` of a user's module."""

    def __init__(self, path: Path) -> None:
        module = _load(path)
        self._prepare: Callable[[Transformer], None] | None = getattr(module, "prepare", None)
        self._ops = {name: getattr(module, name) for name in COSTS if callable(getattr(module, name, None))}
        problems = [reason for name, op in self._ops.items() if (reason := _misfit(name, op))]
        if not self._ops and self._prepare is None:
            problems.append(f"it defines none of the ops ({', '.join(COSTS)}) and no prepare(model)")
        if problems:
            raise ChipError(f"{path} cannot patch a chip: {'; '.join(problems)}")

    def ops(self, inner: Ops) -> Ops:
        """Return `inner` with the module's functions in place of its ops."""
        return PatchedOps(inner, self._ops)

    def prepare(self, model: Transformer) -> None:
        """Call the module's `prepare`, where it has one."""
        if self._prepare is not None:
            self._prepare(model)

    def check(self, model: Transformer, clean: Ops) -> None:
        """A user's module may be right: that it changes no bit is no error."""


def _load(path: Path) -> Any:
    if not path.is_file():
        raise ChipError(f"there is no file {path}: patched:FILE.py takes a Python module")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ChipError(f"{path} is not a Python module (FILE.py)")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ChipError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _misfit(name: str, op: Callable[..., Any]) -> str:
    """Say why a function cannot stand for an op: it takes another number of arguments."""
    wanted = inspect.signature(getattr(Ops, name)).parameters.values()
    positional = [None for p in wanted if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    named = {p.name: None for p in wanted if p.kind is inspect.Parameter.KEYWORD_ONLY}
    try:
        inspect.signature(op).bind(*positional, **named)
    except TypeError as error:
        return f"{name}: {error}; the op's signature is {name}{inspect.signature(getattr(Ops, name))}"
    return ""
