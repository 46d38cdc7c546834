"""Hard inputs for every op of DeepSeek-V4: what a real checkpoint and a long text bring, and a small random model does
not. Other families' forms are in `more_cases`.

Outliers that reach the SwiGLU clamp, rows so small that epsilons matter, ties, absent entries, experts without a
token, samples that begin inside a batch, targets to be ignored. Counts are odd, so that tails are met; widths are
multiples of 8, as every published model's are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..model.rotary import angles
from ..ops import HyperRule, HyperWeights, Keys, Ranges

_RULE = HyperRule(20, 1e-6, 1e-6)
_LIMIT = 10.0


@dataclass(frozen=True)
class Case:
    """One call of an op: its arguments, and in a few words what is hard about them."""

    op: str
    name: str
    arguments: tuple[Any, ...]
    named: dict[str, Any] = field(default_factory=dict)


def v4_cases(seed: int) -> list[Case]:
    """Return the cases of DeepSeek-V4's ops, the same for a seed on every machine (torch's CPU generator)."""
    draw = Draw(seed)
    return [*_products(draw), *_norms(draw), *_attention(draw), *_compressor(draw), *_indexer(draw), *_router(draw),
            *_swiglu(draw), *_hyper(draw), *_loss(draw)]


class Draw:
    """Random inputs from a seed, the same on every machine."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normal values."""
        return torch.randn(*shape, generator=self._generator) * scale

    def integers(self, high: int, *shape: int) -> Tensor:
        """Whole numbers from 0, below `high`."""
        return torch.randint(high, shape, generator=self._generator)

    def outliers(self, *shape: int, share: float = 0.02, size: float = 30.0) -> Tensor:
        """Normal values, a few of them `size` times larger."""
        large = torch.rand(*shape, generator=self._generator) < share
        return self.normal(*shape) * torch.where(large, size, 1.0)


def _products(draw: Draw) -> list[Case]:
    scale = 10.0 ** draw.normal(37, 1)
    return [
        Case("linear", "rows of very different size", (draw.normal(37, 200) * scale, draw.normal(56, 200))),
        Case("linear", "sums that cancel", (draw.normal(9, 256).abs(), draw.normal(24, 256) - 0.01)),
        Case("grouped_linear", "three groups", (draw.normal(13, 3, 40), draw.normal(3 * 16, 40))),
        Case("embed", "first, last and repeated ids", (torch.tensor([0, 6, 6, 3, 0]), draw.normal(7, 24))),
    ]


def _norms(draw: Draw) -> list[Case]:
    x = draw.outliers(23, 64)
    x[:7] *= 1e-4  # the epsilon matters
    x[7] = 0.0
    x[8:11] *= 100.0  # fp16 still holds them
    cos, sin = angles(torch.arange(23) * 997, torch.logspace(0, -4, 8))
    weight, heads = 1 + draw.normal(64, scale=0.3), draw.normal(23, 3, 64)
    return [
        Case("rms_norm", "tiny, zero and huge rows", (x, weight, 1e-6)),
        Case("rms_norm", "no weight", (x, None, 1e-6)),
        Case("rope", "far positions", (heads, cos, sin)),
        Case("rope", "back again", (heads, cos, sin), {"inverse": True}),
        Case("norm_rope", "queries of several heads", (heads * 1e-3, None, 1e-6, cos, sin)),
        Case("norm_rope", "entries with a weight", (x, weight, 1e-6, cos, sin)),
    ]


def _attention(draw: Draw) -> list[Case]:
    tokens, heads, channels = 40, 5, 48
    position = torch.arange(tokens)
    start = (position - 15).clamp_min(0)
    start = torch.where(position >= 25, start.clamp_min(25), start)  # a second sample begins at row 25
    count = position - start + 1
    window = Ranges(start.int(), count.int(), int(count.sum()), int(count.max()))
    rows, compressed = draw.normal(tokens, channels), draw.normal(29, channels)
    query, sink = draw.normal(tokens, heads, channels, scale=2.0), draw.normal(heads, scale=3.0)
    seen = (position * 29 // tokens).int()
    run = Ranges(torch.zeros_like(seen), seen, int(seen.sum()), int(seen.max()))
    chosen = torch.stack([torch.cat((torch.arange(n)[-8:], torch.full((8 - min(n, 8),), -1))) for n in seen.tolist()])
    return [
        Case("attention", "window only, two samples", (query, Keys(rows, window), sink)),
        Case("attention", "all visible entries", (query, Keys(rows, window, compressed, run), sink)),
        Case("attention", "chosen entries, some absent", (query, Keys(rows, window, compressed, chosen.int()), sink)),
        Case("attention", "one key far ahead of the others", (query * 8, Keys(rows, window, compressed, run), sink)),
        _long_attention(draw),
    ]


def _long_attention(draw: Draw) -> Case:
    """Counts from 1 to past 128 that end anywhere in a tile of 8 to 64 rows, of the window and of the entries."""
    position = torch.arange(150)
    start, seen = (position - 132).clamp_min(0), (position * 7 // 8).int()
    window = Ranges(start.int(), (position - start + 1).int(), int((position - start + 1).sum()), 133)
    run = Ranges(torch.zeros_like(seen), seen, int(seen.sum()), int(seen.max()))
    keys = Keys(draw.normal(150, 16), window, draw.normal(131, 16), run)
    return Case("attention", "runs of every length", (draw.normal(150, 2, 16), keys, draw.normal(2)))


def _compressor(draw: Draw) -> list[Case]:
    first = torch.tensor([0, 4, 8, 21, 25]).int()
    previous = torch.tensor([-1, 0, 4, -1, 21]).int()  # a second sample begins at row 21
    gate = draw.outliers(37, 32, size=12.0)
    return [
        Case("compress", "overlap, two samples", (draw.normal(37, 32), gate, draw.normal(4, 32), first, previous)),
        Case("compress", "no overlap", (draw.normal(37, 32), gate, draw.normal(16, 32), first[:4:3], None)),
    ]


def _indexer(draw: Draw) -> list[Case]:
    tokens, entries = 30, 50
    count = (torch.arange(tokens) * 50 // 29).int()
    visible = Ranges(torch.zeros_like(count), count, int(count.sum()), entries)
    query, weight, key = draw.normal(tokens, 4, 24), draw.normal(tokens, 4), draw.normal(entries, 24)
    twice = torch.cat((key[:25], key[:25]))
    later = torch.arange(tokens) >= 13  # a second sample, whose entries begin at row 19
    begin = torch.where(later, 19, 0).int()
    seen = torch.where(later, torch.arange(tokens) + 1, torch.arange(tokens) + 7).int()
    samples = Ranges(begin, seen, int(seen.sum()), int(seen.max()))
    return [
        Case("index_topk", "fewer visible than kept, and none", (query, weight, key, visible, 12)),
        Case("index_topk", "every entry twice: ties", (query, weight, twice, visible, 11)),
        Case("index_topk", "two samples in one batch", (query, weight, key, samples, 12)),
    ]


def _router(draw: Draw) -> list[Case]:
    x, weight = draw.normal(33, 40), draw.normal(12, 40, scale=0.5)
    fixed = draw.integers(12, 33, 1)
    ids = torch.cat((fixed, (fixed + 5) % 12), 1)
    return [
        Case("route", "a bias that decides", (x, weight, 3), {"bias_E": draw.normal(12)}),
        Case("route", "no bias", (x * 4, weight, 2)),
        Case("route", "ids from a table", (x, weight, 2), {"ids_TK": ids}),
    ]


def _swiglu(draw: Draw) -> list[Case]:
    x = draw.outliers(31, 48, size=15.0)  # gates and ups pass the clamp on both sides
    banks = draw.normal(6, 2 * 24, 48, scale=0.8), draw.normal(6, 48, 24, scale=0.3)
    ids = draw.integers(5, 31, 2)
    ids[:, 1] = (ids[:, 0] + 1 + ids[:, 1] % 4) % 5  # expert 5 gets no token
    ids[:20, 0], ids[:20, 1] = 2, torch.where(ids[:20, 1] == 2, 3, ids[:20, 1])  # expert 2 gets most
    share = torch.rand(31, 2, generator=draw._generator) + 0.1
    return [
        Case("mlp", "outliers reach the clamp", (x, *(draw.normal(24, 48, scale=0.8) for _ in range(2)),
                                                 draw.normal(48, 24, scale=0.3), _LIMIT)),
        Case("experts", "outliers, an empty and a crowded expert", (x, ids, share, banks, _LIMIT)),
    ]


def _hyper(draw: Draw) -> list[Case]:
    n, d, tokens = 4, 32, 19
    streams = draw.outliers(tokens, n, d)
    streams[:4] *= 1e-4  # the norm's epsilon matters
    weights = HyperWeights(draw.normal(n * (n + 2), n * d, scale=0.15), draw.normal(n * (n + 2)),
                           torch.tensor([0.7, 1.3, 3.0]))
    head = HyperWeights(draw.normal(n, n * d, scale=0.15), draw.normal(n), torch.tensor([1.2]))
    comb = draw.normal(tokens, n, n).softmax(-1)
    return [
        Case("hc_pre", "mixing logits that Sinkhorn cannot balance at once", (streams, weights, _RULE)),
        Case("hc_post", "an uneven mixing matrix",
             (draw.normal(tokens, d), streams, draw.normal(tokens, n).sigmoid() * 2, comb)),
        Case("hc_head", "outliers", (streams, head, _RULE)),
    ]


def _loss(draw: Draw) -> list[Case]:
    target = draw.integers(101, 27)
    target[3], target[11] = -1, -1
    return [Case("cross_entropy", "targets to ignore, large logits",
                 (draw.outliers(27, 32), draw.normal(101, 32), target))]
