"""Where a model's pieces lie in a checkpoint, by naming.

- `publisher`: the released checkpoints; routed experts one by one, quantised or not.
- `transformers`: what Hugging Face transformers loads. Of V4 these are its modules' names, experts stacked; it has no
  MTP block and passes over `mtp.*`, so those tensors keep the publisher's names. The other families are published so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

from ..config import ModelConfig
from .layout import Index, Piece, pieces
from .spelling import canonical_v4


@dataclass(frozen=True, slots=True)
class Place:
    """Where a piece lies in a checkpoint: the stored tensor's name, and the part of it (all where empty)."""

    name: str
    index: Index


@dataclass(frozen=True)
class Stored:
    """A tensor of a checkpoint in some naming, scales left out, and the pieces that it is made of, in order."""

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


Naming = Callable[[Piece], Place]


def in_model(piece: Piece) -> Place:
    """The model's own state_dict: its own names, routed experts stacked."""
    return Place(piece.tensor, piece.index)


def publisher(piece: Piece) -> Place:
    """The released checkpoints' naming."""
    return Place(piece.name, piece.part)


def transformers(piece: Piece) -> Place:
    """The naming that transformers loads."""
    return modules(piece) if piece.scaling.e8m0 and not piece.name.startswith("mtp.") else publisher(piece)


def modules(piece: Piece) -> Place:
    """The names of transformers' modules, routed experts stacked."""
    return Place(piece.module, piece.part or piece.index)


NAMINGS: dict[str, Naming] = {"publisher": publisher, "transformers": transformers}


def canonical(config: ModelConfig) -> Callable[[str], str]:
    """Return what turns a tensor's name in any naming into its published name (of a stack of experts: the model's)."""
    if config.family == "v4":
        return canonical_v4
    stacks = {piece.module: piece.tensor for piece in pieces(config) if piece.index}
    return lambda name: stacks.get(name, name)


def stored_tensors(config: ModelConfig, naming: Naming) -> Iterator[Stored]:
    """Every tensor that a checkpoint of this model has in this naming, scales left out."""
    for name, group in groupby(pieces(config), key=lambda piece: naming(piece).name):
        members = tuple(group)
        yield Stored(name, _whole_shape(members[-1], naming(members[-1]).index), members)


def _whole_shape(last: Piece, index: Index) -> tuple[int, ...]:
    """Shape of the tensor whose last piece this is."""
    if not index:
        return last.shape
    if index == last.part:
        return last.whole_shape
    experts, rows = index[0], last.shape[0]
    if len(index) > 1 and isinstance(index[1], slice):
        rows = index[1].stop
    assert isinstance(experts, int)
    return (experts + 1, rows, last.shape[1])
