"""How unevenly tokens fall on expert-parallel ranks: a distribution, drawn with a seed.

Experts' popularity in a micro-batch is gamma-distributed around the mean with shape `popularity` (fitted to the price
of real routing in published prefill: 15 %), tokens fall by chance on top. A layer waits for its fullest rank.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .constants import Constants
from .cut import Array
from .parallel import Parallel
from .work import Work

_DRAWS, _SEED = 200, 7


class Load(NamedTuple):
    """The fullest rank's rows over the mean's: the mean over micro-batches and layers, and two quantiles."""

    mean: float
    median: float
    high: float  # 95 of 100 are below


@lru_cache(maxsize=512)
def load_distribution(experts: int, ranks: int, rows: int, popularity: float, copies: int = 0) -> Load:
    """Return the distribution of the fullest of `ranks` ranks, which hold `experts` and get `rows` in all.

    `copies` of the most popular experts are held besides, each by another rank, and share their rows (EPLB,
    github.com/deepseek-ai/EPLB).
    """
    if ranks == 1 or experts + copies < ranks:
        return Load(1.0, 1.0, 1.0)
    generator = np.random.default_rng(_SEED)
    share = _with_copies(generator.gamma(popularity, 1 / popularity, (_DRAWS, experts)), copies)
    ends = np.linspace(0, share.shape[1], ranks + 1)[:-1].astype(int)
    per_rank = np.add.reduceat(share, ends, axis=1)
    per_rank /= per_rank.sum(1, keepdims=True)
    drawn = generator.poisson(per_rank * rows)
    fullest = drawn.max(1) / np.maximum(drawn.mean(1), 1)
    return Load(float(fullest.mean()), float(np.median(fullest)), float(np.quantile(fullest, 0.95)))


def _with_copies(share: Array, copies: int) -> Array:
    """Each draw's shares, and those of copies: each copy is of the expert with the most rows a holder."""
    draws = len(share)
    rows, held = np.arange(draws), np.ones_like(share)
    of = np.empty((draws, copies), dtype=np.int64)
    for k in range(copies):
        of[:, k] = (share / held).argmax(1)
        held[rows, of[:, k]] += 1
    each = share / held
    return np.concatenate([each, np.take_along_axis(each, of, 1)], axis=1)


def expert_load(work: Work, p: Parallel, c: Constants) -> float:
    """Return the mean load of the fullest expert-parallel rank of this layout over the mean load."""
    if not work.shape.experts or p.expert == 1:
        return 1.0
    rows = work.batch.tokens // (p.context * p.tensor) * work.shape.topk * p.expert
    return load_distribution(work.shape.experts, p.expert, int(rows), c["train.popularity"]).mean
