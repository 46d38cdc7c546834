"""Planted faults: realistic mistakes of a port, each a small patch, to prove that the gap finds and names them."""

from __future__ import annotations

from ..errors import ChipError, nearest
from . import attention, feed_forward, model, unseen_model, unseen_ops, weights
from .fault import Fault, PatchedOps
from .parts import PARTS

__all__ = ["PARTS", "Fault", "PatchedOps", "find_fault", "list_faults", "list_unseen_faults"]


def list_faults() -> list[Fault]:
    """Return every planted fault: those of the ops first, then those of the model around them."""
    return [value for topic in (attention, feed_forward, model, weights, unseen_ops, unseen_model)
            for value in vars(topic).values() if isinstance(value, Fault)]


def list_unseen_faults() -> list[Fault]:
    """Return those of the planted faults that were written without knowing how the gap localises."""
    return [value for topic in (unseen_ops, unseen_model) for value in vars(topic).values()
            if isinstance(value, Fault)]


def find_fault(name: str) -> Fault:
    """Return a fault by name. Raises ChipError that lists the names."""
    faults = {fault.name: fault for fault in list_faults()}
    if name not in faults:
        raise ChipError(f"there is no planted fault {name!r}.{nearest(name, faults)} Faults: {', '.join(faults)}")
    return faults[name]
