"""Hard inputs for the forms of ops that DeepSeek-V3, V3.2, GLM-5 and Qwen3 call and DeepSeek-V4 does not.

As in `cases`: outliers, tiny rows, samples that begin inside a batch, absent rows, experts without a token.
"""

from __future__ import annotations

import math

import torch

from ..config import ModelConfig
from ..model.rotary import angles
from ..ops import Keys, Ranges
from ..ops.experts import RouteRule
from .cases import Case, Draw, op_cases
from .meta_calls import decode_calls, prefill_calls, train_calls

_CONTEXT = 2048  # tokens before the decoded one: more than any small model's indexer keeps


def hard_cases(seed: int, config: ModelConfig) -> list[Case]:
    """Return the cases of every op that a model calls: V4's for DeepSeek-V4, and these forms too for other families."""
    if config.family == "v4":
        return op_cases(seed)
    used = ops_called(config)
    return [case for case in (*op_cases(seed), *more_cases(seed)) if case.op in used]


def ops_called(config: ModelConfig) -> frozenset[str]:
    """Return the names of the ops that a model calls in training, in a prompt and in decode (on the meta device)."""
    calls = train_calls(config, 1, 8), prefill_calls(config, 8), decode_calls(config, _CONTEXT)
    return frozenset(event.op.removesuffix(" backward") for events, _ in calls for event in events)


def more_cases(seed: int) -> list[Case]:
    """Return the cases of the further forms, the same for a seed on every machine."""
    draw = Draw(seed + 1)
    return [*_norms(draw), *_grouped(draw), *_latent(draw), *_routers(draw), *_unclamped(draw)]


def _norms(draw: Draw) -> list[Case]:
    x = draw.outliers(23, 64)
    x[:7] *= 1e-3
    x[7] = 2.5  # no variance at all: the epsilon and the bias are what is left
    x[8:11] += 100.0  # a mean far larger than the spread
    cos, sin = angles(torch.arange(23) * 997, torch.logspace(0, -4, 8))
    heads, scale = draw.normal(23, 3, 64), 10.0 ** draw.normal(23, 1)
    return [
        Case("layer_norm", "a flat row, far means", (x, 1 + draw.normal(64, scale=0.3), draw.normal(64), 1e-6)),
        Case("rope", "halves, far positions", (heads, cos, sin), {"half": True}),
        Case("rope", "halves of the first channels", (heads, cos, sin), {"half": True, "first": True}),
        Case("norm_rope", "halves, with a weight", (heads * 1e-3, 1 + draw.normal(64, scale=0.3), 1e-6, cos, sin),
             {"half": True}),
        Case("add", "rows of very different size", (draw.normal(23, 64) * scale, draw.normal(23, 64))),
    ]


def _samples(tokens: int, second: int) -> Ranges:
    """Every row of a token's sample up to it; a second sample begins at row `second`."""
    position = torch.arange(tokens)
    start = torch.where(position >= second, second, 0)
    count = (position - start + 1).int()
    return Ranges(start.int(), count, int(count.sum()), int(count.max()))


def _grouped(draw: Draw) -> list[Case]:
    seen = _samples(75, 25)
    query, key, value = draw.normal(75, 6, 24, scale=2.0), draw.normal(75, 2, 24), draw.normal(75, 2, 24)
    wide = draw.normal(75, 3, 40), draw.normal(75, 3, 40), draw.normal(75, 3, 16)
    long = _samples(150, 150)
    return [
        Case("grouped_attention", "three queries a key head, two samples", (query, key, value, seen, 24**-0.5)),
        Case("grouped_attention", "one key far ahead of the others", (query * 8, key, value, seen, 24**-0.5)),
        Case("grouped_attention", "values narrower than keys", (*wide, seen, 0.13)),
        Case("grouped_attention", "runs of every length",
             (draw.normal(150, 4, 16), draw.normal(150, 1, 16), draw.normal(150, 1, 16), long, 0.25)),
    ]


def _latent(draw: Draw) -> list[Case]:
    """Absorbed MLA: one entry a row, its first channels the value, no sink; and rows that an indexer chose."""
    tokens, rows = 40, 55
    seen = _samples(tokens, 25)
    query, entry = draw.normal(tokens, 5, 56, scale=2.0), draw.normal(rows, 56)
    last = seen.start + seen.count
    chosen = torch.stack([torch.cat((torch.arange(a, b)[-8:], torch.full((8 - min(b - a, 8),), -1)))
                          for a, b in zip(seen.start.tolist(), last.tolist(), strict=True)]).int()
    form = {"scale": 0.11, "value_width": 40}
    bank = draw.normal(3 * 28, 40).view(3, 28, 40)
    return [
        Case("attention", "no sink, values are a part", (query, Keys(entry[:tokens], seen), None), form),
        Case("attention", "chosen rows alone, some absent", (query, Keys.chosen(entry, chosen), None), form),
        Case("grouped_linear", "a strided view of a larger matrix", (draw.normal(13, 3, 40), bank[:, :16])),
    ]


def _routers(draw: Draw) -> list[Case]:
    x, weight = draw.normal(33, 40), draw.normal(12, 40, scale=0.5)
    groups = RouteRule("sigmoid", groups=4, kept_groups=2)
    return [
        Case("route", "groups, a bias that decides", (x, weight, 3), {"bias_E": draw.normal(12), "rule": groups}),
        Case("route", "sigmoid, no bias", (x * 4, weight, 2), {"rule": RouteRule("sigmoid")}),
        Case("route", "softmax over all", (x * 4, weight, 3), {"rule": RouteRule("softmax")}),
        Case("route", "softmax, weights as they are", (x, weight, 3), {"rule": RouteRule("softmax", normalize=False)}),
    ]


def _unclamped(draw: Draw) -> list[Case]:
    x = draw.outliers(31, 48, size=15.0)
    banks = draw.normal(6, 2 * 24, 48, scale=0.8), draw.normal(6, 48, 24, scale=0.3)
    ids = torch.stack([torch.arange(31) % 2 * 3, 1 + torch.arange(31) % 2], 1)  # experts 4 and 5 get no token
    share = torch.tensor([0.7, 0.3]).expand(31, 2).contiguous()
    single = (*(draw.normal(24, 48, scale=0.8) for _ in range(2)), draw.normal(48, 24, scale=0.3))
    return [Case("mlp", "outliers, no clamp", (x, *single, math.inf)),
            Case("experts", "outliers, no clamp, two empty experts", (x, ids, share, banks, math.inf))]
