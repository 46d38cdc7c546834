"""What a planted fault is: one mistake of a port, as a patch of an op or of the model around the ops."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..config import DeepseekV4Config, only
from ..errors import NotSupported
from ..model import Transformer
from ..ops import COSTS, Ops
from .inert import changes

OpsPatch = Callable[[Ops], Callable[..., Any]]  # the chip's own ops -> the faulty function
ModelPatch = Callable[[Transformer], None]  # changes a built and loaded model in place


@dataclass(frozen=True)
class Fault:
    """One realistic mistake of a port.

    `part` is what a verdict must name: an op of the seam, or a part of the model between ops (`parts.PARTS`).
    `text` says what the port does wrong; `resembles` names public bugs of the kind, where one is known.
    """

    name: str
    part: str
    text: str
    resembles: str = ""
    op: OpsPatch | None = None
    model: ModelPatch | None = None

    def ops(self, inner: Ops) -> Ops:
        """Return the chip's ops with this fault in them, one by one: a coarse op would pass a faulty model by."""
        return PatchedOps(inner, {} if self.op is None else {self.part: self.op(inner)})

    def prepare(self, model: Transformer) -> None:
        """Plant the fault in a built and loaded model. Raises NotSupported where it is not of the V4 family."""
        if self.model is not None:
            only(model.config, DeepseekV4Config, f"the planted fault {self.name}")
            self.model(model)

    def check(self, model: Transformer, clean: Ops) -> None:
        """Raise NotSupported where this fault of an op cannot show in a model: it calls no such op, or in another form.

        `clean` are the ops without the fault. DeepSeek-V4 has all that the faults of ops are about.
        """
        one_by_one = PatchedOps(clean, {})  # as the faulty ones run
        if self.op is not None and model.config.family != "v4" and not changes(model, one_by_one):
            raise NotSupported(f"the planted fault {self.name} changes nothing in this {model.config.family} model "
                               f"({self.text}): take one of a part that it has, or a DeepSeek-V4 model")


class PatchedOps(Ops):
    """`inner`'s ops with some of them replaced; the coarse block op is off, since it would pass the others by.

    A call in a form that a replacement's signature does not take (or attention without a sink) is `inner`'s own.
    """

    def __init__(self, inner: Ops, replaced: dict[str, Callable[..., Any]]) -> None:
        self._inner, self._replaced = inner, replaced
        for name in COSTS:
            own = getattr(inner, name)
            setattr(self, name, _replacement(replaced[name], own) if name in replaced else own)

    def at(self, layer: str) -> Ops:
        return PatchedOps(self._inner.at(layer), self._replaced)


def _replacement(replaced: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    known = inspect.signature(replaced).parameters.values()
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known)
    names = {p.name for p in known}

    def call(*arguments: Any, **named: Any) -> Any:
        no_sink = {"scale"} if len(arguments) > 2 and arguments[2] is None else set[str]()  # both came together
        fits = takes_all or named.keys() | no_sink <= names
        return (replaced if fits else own)(*arguments, **named)

    return call


def op_fault(op: str, text: str, resembles: str = "") -> Callable[[OpsPatch], Fault]:
    """Make a Fault of a function that takes the chip's ops and returns the faulty op."""
    return lambda patch: Fault(_name(patch), op, text, resembles, op=patch)


def model_fault(part: str, text: str, resembles: str = "") -> Callable[[ModelPatch], Fault]:
    """Make a Fault of a function that changes a model in place."""
    return lambda patch: Fault(_name(patch), part, text, resembles, model=patch)


def _name(patch: Callable[..., Any]) -> str:
    name: str = patch.func.__name__ if isinstance(patch, partial) else patch.__name__
    return name.replace("_", "-")
