"""Ops that are another's but for a few: a base for wrappers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .orthogonal import MuonRule
from .seam import COSTS, Ops


class WrappedOps(Ops):
    """`inner`'s ops, where a subclass does not define its own. A subclass defines `at`, which wraps `inner.at`."""

    def __init__(self, inner: Ops) -> None:
        self._inner = inner
        for name in (*COSTS, "router_scores"):
            if getattr(type(self), name) is getattr(Ops, name):
                setattr(self, name, getattr(inner, name))

    def at(self, layer: str) -> Ops:
        raise NotImplementedError

    def orthogonalize(self, stack_BMN: Tensor) -> Tensor:
        return self._inner.orthogonalize(stack_BMN)

    def muon(self, groups: Any, rule: MuonRule) -> None:
        self._inner.muon(groups, rule)
