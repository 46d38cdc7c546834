"""What a model does in one pass, as op calls on shapes: the planner's only source of FLOPs, bytes and parameters.

A `Work` is a model's parts (embedding, each kind of layer, head, MTP), each once, and the order that they run in.
The calls of this project's models come from their own code on the meta device (`traced.py`); those of other
published models from a description (`describe.py`). Both are cut to a rank's share by `cut.py` and timed by `times.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any

from ..errors import InputError


class Split(str, Enum):
    """How tensor parallelism cuts a call or a weight (experts: how expert parallelism does)."""

    NONE = "none"  # every rank of the group does all of it
    TOKENS = "tokens"  # each rank does its share of the tokens (sequence parallelism)
    COLUMN = "column"  # output channels
    ROW = "row"  # input channels: the results are summed
    HEADS = "heads"  # attention heads
    FFN = "ffn"  # a whole gated feed-forward: columns, then rows
    EXPERTS = "experts"
    VOCAB = "vocab"


@dataclass(frozen=True)
class Call:
    """One op call with tensors on the meta device. `name` is the place, e.g. `attn.wq_b`."""

    op: str
    name: str
    split: Split
    arguments: tuple[Any, ...]
    named: Mapping[str, Any] = field(default_factory=dict)
    cached: bool = False  # reads the cache


@dataclass(frozen=True)
class Weight:
    """One parameter: its shape, how it is cut, and `kind`: expert, linear, embedding or small (norms, mixing)."""

    name: str
    shape: tuple[int, ...]
    split: Split
    kind: str

    @property
    def numel(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True, eq=False)
class Part:
    """One piece of the model. `moe` says whether tokens go to routed experts here, `attends` whether it has keys."""

    name: str
    calls: tuple[Call, ...]
    weights: tuple[Weight, ...]
    moe: bool = False
    kept: float = 0.0  # bytes that a training pass keeps for its backward, without recomputation

    def num_parameters(self, kind: str | None = None) -> int:
        """Parameters of this part, of one kind or of all."""
        return sum(w.numel for w in self.weights if kind is None or w.kind == kind)


MOST_DRAFTS = 7  # a serving pass of more new tokens a sequence is a piece of a prompt


@dataclass(frozen=True)
class Batch:
    """One pass: `sequences` of `length` new tokens each, after `context` tokens that are cached (0: none)."""

    sequences: int
    length: int
    context: int = 0
    training: bool = False

    def __post_init__(self) -> None:
        least = (("sequences", self.sequences, 1), ("length", self.length, 1), ("context", self.context, 0))
        wrong = [f"{name}={value}" for name, value, lowest in least if value < lowest]
        if wrong:
            raise InputError(f"no pass has {', '.join(wrong)}; sequences and length start at 1, context at 0")

    @property
    def tokens(self) -> int:
        """New tokens of the pass."""
        return self.sequences * self.length

    @property
    def judged(self) -> int:
        """Tokens whose logits are needed: all in training and where the new tokens are drafts, else each last one."""
        return self.tokens if self.training or self.length <= 1 + MOST_DRAFTS else self.sequences


@dataclass(frozen=True)
class Shape:
    """What layouts and transfers need to know of a model."""

    name: str
    hidden: int
    heads: int
    kv_heads: int
    experts: int  # routed experts of a layer, 0: dense
    topk: int
    streams: int  # residual streams (mHC), 1: plain
    vocab: int
    mtp: int
    max_context: int
    expert_width: int = 0  # width in which tokens travel to experts; 0: hidden


@dataclass(frozen=True, eq=False)
class Work:
    """The parts of one pass by name, and the order they run in (`order[0]` embeds, `order[-1]` is the head or MTP)."""

    shape: Shape
    batch: Batch
    parts: Mapping[str, Part]
    order: tuple[str, ...]

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """The names of the model's layers in order, without embedding, head and MTP."""
        return tuple(name for name in self.order if name not in ("embed", "head", "mtp"))

    @cached_property
    def count(self) -> Counter[str]:
        """How often each part runs."""
        return Counter(self.order)

    def num_parameters(self, *, mtp: bool = False) -> int:
        """All parameters of the model, with or without its MTP block."""
        return sum(self.parts[name].num_parameters() * n for name, n in self.count.items() if mtp or name != "mtp")

    def num_active(self) -> int:
        """Parameters that one token meets: no embedding (a lookup) unless it is the head too, and of the experts those
        that it visits."""
        total = 0.0
        tied = not any(weight.kind == "embedding" for weight in self.parts["head"].weights)
        for name, times in self.count.items():
            if name != "mtp" and (name != "embed" or tied):
                part = self.parts[name]
                visited = part.num_parameters("expert") * self.shape.topk / max(self.shape.experts, 1)
                total += times * (part.num_parameters() - part.num_parameters("expert") + visited)
        return round(total)

