"""One rank's share of a part's calls: FLOPs, weights read and bytes moved by each, as arrays.

Tensor and expert parallelism narrow the very tensors of a call and ask the op's own cost again; context parallelism
and sequence parallelism divide the tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..chips.kernel_calls import TOKEN_ARGUMENTS
from ..ops.linear import nbytes
from ..ops.seam import COSTS
from ..record import Cost
from .keep import cache_elements
from .work import Call, Part, Split

Array = npt.NDArray[np.float64]
CLASSES = ("product", "experts", "attention", "index", "vector", "scan")
_CLASS_OF = {"linear": "product", "grouped_linear": "product", "mlp": "product", "experts": "experts",
             "attention": "attention", "grouped_attention": "attention", "dense_attention": "attention", "scan": "scan",
             "index_topk": "index", "index_scores": "index",
             "cross_entropy": "product", "route": "product", "hc_pre": "product", "hc_head": "product"}
SCAN_CHUNK = 256
ROWS = " (rows)"  # after a call's name: the passes over its rows that its cost leaves out
# What a product computes in: the run's precision, or a wider format that the publishers keep.
_WIDE = frozenset({"cross_entropy", "route", "hc_pre", "hc_head"})


class Share(NamedTuple):
    """How much of a part one rank does."""

    tensor: int = 1
    context: int = 1
    expert: int = 1


@dataclass(frozen=True)
class Cuts:
    """One rank's calls. `kind` indexes CLASSES; bytes are of bf16 activations; weights and cache are in elements.

    `low` marks products in the run's precision (the others stay in bf16).
    """

    names: tuple[str, ...]
    ops: tuple[str, ...]
    rows: Array  # tokens (or windows) that a call works on
    kind: npt.NDArray[np.int64]
    low: npt.NDArray[np.bool_]
    flops: Array
    moved: Array
    weights: Array
    cache: Array
    inputs: Array  # elements of activations that a low-precision product quantises
    narrow: Array  # attention: 128 over its head's channels, at least 1: short heads wait for the exponentials

    def total(self, field: str) -> float:
        """Return the sum of one column."""
        return float(getattr(self, field).sum())


def uneven(cuts: Cuts, load: float) -> Cuts:
    """Return the calls of the fullest expert rank, whose experts get `load` times the mean's rows: more arithmetic and
    activations, but each weight is still read once."""
    names = np.array(cuts.names)
    routed = names[cuts.kind == CLASSES.index("experts")]
    more = np.where(np.isin(names, [*routed, *(f"{name}{ROWS}" for name in routed)]), load, 1.0)
    return replace(cuts, flops=cuts.flops * more, moved=cuts.moved * more, inputs=cuts.inputs * more)


class _Row(NamedTuple):
    name: str
    op: str
    rows: float
    kind: int
    low: bool
    flops: float
    moved: float
    weights: float
    cache: float
    inputs: float
    narrow: float


@lru_cache(maxsize=8192)
def cut(part: Part, share: Share) -> Cuts:
    """Return one rank's calls of a part, experts evenly loaded."""
    rows = [row for call in part.calls for row in _rows(call, share)]
    columns: list[Any] = list(zip(*rows, strict=True)) if rows else [()] * len(_Row._fields)
    names, ops, count, kind, low, *numbers = columns
    return Cuts(tuple(names), tuple(ops), np.array(count, dtype=np.float64), np.array(kind, dtype=np.int64),
                np.array(low, dtype=np.bool_), *(np.array(column, dtype=np.float64) for column in numbers))


def call_cost(call: Call) -> Cost:
    """Return a call's cost from its op, or from the two ops that only described models have."""
    if call.op in COSTS:
        return COSTS[call.op](*call.arguments, **call.named)
    if call.op == "dense_attention":  # 2 (key channels + value channels) FLOPs a head and pair
        query, key, value, pairs, width = call.arguments
        flops = 2.0 * query.shape[1] * (query.shape[2] + width) * pairs
        return Cost(flops, nbytes(query, key, value) + nbytes(query) * width / query.shape[2])
    if call.op == "index_scores":
        query, key, pairs = call.arguments
        return Cost(2.0 * query.shape[1] * query.shape[2] * pairs, nbytes(query, key))
    # scan (arXiv:2405.21060): within chunks like attention, between chunks through the state
    x, heads, width, state = call.arguments
    return Cost(x.shape[0] * heads * (SCAN_CHUNK * (state + width) + 4.0 * width * state), 6 * nbytes(x))


def _rows(call: Call, share: Share) -> Iterator[_Row]:
    """The call itself, and the passes over memory that its ops need and its cost leaves out."""
    narrowed = _narrowed(call, share)
    cost = call_cost(narrowed)
    tokens = share.context * (share.tensor if call.split in (Split.TOKENS, Split.EXPERTS) else 1)
    weights, cache = _weight_elements(narrowed), cache_elements(narrowed)
    moved = max(cost.bytes - 2 * _counted_weights(narrowed, weights) - 2 * cache, 0.0) / tokens
    kind = CLASSES.index(_CLASS_OF.get(call.op, "vector"))
    low = call.op in ("linear", "grouped_linear", "mlp", "experts") and call.split is not Split.VOCAB
    inputs = _inputs(narrowed) / tokens if low else 0.0
    narrow = max(128 / call.arguments[0].shape[-1], 1.0) if kind == CLASSES.index("attention") else 1.0
    count = call.arguments[TOKEN_ARGUMENTS.get(call.op, (0,))[0]].shape[0] / tokens
    yield _Row(call.name, call.op, count, kind, low, cost.flops / tokens, moved, weights, cache, inputs, narrow)
    extra = _hidden_bytes(narrowed) / tokens
    if extra:
        yield _Row(f"{call.name}{ROWS}", call.op, count, CLASSES.index("vector"), low, 0.0, extra, 0.0, 0.0, 0.0, 1.0)


def _narrowed(call: Call, share: Share) -> Call:
    """The call on one rank's part of its tensors."""
    args, t = list(call.arguments), share.tensor
    if call.split is Split.EXPERTS:
        args[3] = tuple(bank[: -(-bank.shape[0] // share.expert)] for bank in args[3])
    elif t == 1:
        return call
    elif call.split is Split.FFN:
        args[1:4] = [_first(args[1], 0, t), _first(args[2], 0, t), _first(args[3], 1, t)]
    elif call.op == "grouped_linear":
        args[0], args[1] = _first(args[0], 1, t), _first(args[1], 0, t)
    elif call.op == "linear" and call.split in (Split.COLUMN, Split.VOCAB):
        args[1] = _first(args[1], 0, t)
    elif call.op == "linear" and call.split is Split.ROW:
        args[0], args[1] = _first(args[0], -1, t), _first(args[1], 1, t)
    elif call.op == "cross_entropy":
        args[1] = _first(args[1], 0, t)
    elif call.split is Split.HEADS:
        args[0] = _first(args[0], -1 if call.op == "scan" else 1, t)
        if call.op == "scan":
            args[1] = max(args[1] // t, 1)
        if call.op in ("dense_attention", "grouped_attention"):
            args[1:3] = [_first(args[1], 1, t), _first(args[2], 1, t)]
        if call.op == "index_topk":
            args[1] = _first(args[1], 1, t)
    return replace(call, arguments=tuple(args))


def _first(x: Tensor, dim: int, parts: int) -> Tensor:
    """The first of `parts` equal slices; a dimension smaller than that is held whole by several ranks."""
    return x.narrow(dim, 0, max(x.shape[dim] // parts, 1))


def _weight_elements(call: Call) -> float:
    """Elements of weights that the call reads: of the experts those that its rows can reach."""
    args = call.arguments
    if call.op == "experts":
        banks = args[3]
        per_expert = banks[0][0].numel() + banks[1][0].numel()
        held, rows = banks[0].shape[0], args[1].numel()
        return held * (1 - (1 - 1 / held) ** rows) * per_expert  # of evenly chosen ones, those that some row hits
    if call.op in ("linear", "grouped_linear", "cross_entropy", "route"):
        return float(args[1].numel())
    if call.op == "mlp":
        return float(sum(w.numel() for w in args[1:4]))
    return 0.0


def _counted_weights(call: Call, weights: float) -> float:
    """Elements of weights in the op's own cost, which takes every expert that can be hit as hit."""
    if call.op != "experts":
        return weights
    banks = call.arguments[3]
    return float(min(call.arguments[1].numel(), banks[0].shape[0]) * (banks[0][0].numel() + banks[1][0].numel()))


def _inputs(call: Call) -> float:
    """Elements that are quantised before a low-precision product: its input, and the hidden of a feed-forward."""
    args = call.arguments
    if call.op == "experts":
        return args[1].numel() * float(args[0].shape[-1] + args[3][1].shape[-1])
    if call.op == "mlp":
        return float(args[0].numel() + args[0].shape[0] * args[1].shape[0])
    return float(args[0].numel())


def _hidden_bytes(call: Call) -> float:
    """Bytes between the products of a feed-forward: gate and up written and read, the hidden written and read, and
    of routed experts the rows gathered before and summed after."""
    args = call.arguments
    if call.op == "mlp":
        return 2.0 * args[0].shape[0] * args[1].shape[0] * 6
    if call.op == "experts":
        width = args[3][1].shape[-1]
        return 2.0 * args[1].numel() * (args[3][0].shape[1] * 2 + width * 2 + args[0].shape[-1] * 4)
    return 0.0
