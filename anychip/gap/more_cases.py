"""Hard inputs for the forms of ops that DeepSeek-V3, V3.2, GLM-5 and Qwen3 call and DeepSeek-V4 does not.

They are drawn apart from V4's, so that those stay as they are whatever is added here.
"""

from __future__ import annotations

import math

import torch

from ..config import ModelConfig
from ..model.rotary import angles
from ..ops import Keys, Ranges
from ..ops.experts import RouteRule
from .cases import Case, Draw, v4_cases
from .meta_calls import decode_calls, prefill_calls, train_calls

_CONTEXT = 2048  # tokens before the decoded one: more than any small model's indexer keeps


def op_cases(seed: int) -> list[Case]:
    """Return the cases of every op in every form."""
    return [*v4_cases(seed), *more_cases(seed)]


def hard_cases(seed: int, config: ModelConfig) -> list[Case]:
    """Return the cases of a model: DeepSeek-V4's own, or for another family every form of the ops that it calls."""
    if config.family == "v4":
        return v4_cases(seed)
    used = ops_called(config)
    return [case for case in op_cases(seed) if case.op in used]


def ops_called(config: ModelConfig) -> frozenset[str]:
    """Return the names of the ops that a model calls in training, in a prompt and in decode (on the meta device)."""
    calls = train_calls(config, 1, 8), prefill_calls(config, 8), decode_calls(config, _CONTEXT)
    return frozenset(event.op.removesuffix(" backward") for events, _ in calls for event in events)


def more_cases(seed: int) -> list[Case]:
    """Return the cases of the further forms, the same for a seed on every machine."""
    draw = Draw(seed + 1)
    return [*_products(draw), *_norms(draw), *_latent(draw), *_grouped(draw), *_routers(draw), *_unclamped(draw)]


def _products(draw: Draw) -> list[Case]:
    return [
        Case("grouped_linear", "parts of a weight, as they lie",
             (draw.normal(13, 3, 40), draw.normal(3, 56, 40)[:, 40:])),
        Case("grouped_linear", "parts of a weight, turned",
             (draw.normal(13, 3, 40), draw.normal(3, 56, 24)[:, :40].transpose(1, 2))),
        Case("add", "large and small", (draw.outliers(19, 32), draw.normal(19, 32, scale=1e-3))),
    ]


def _norms(draw: Draw) -> list[Case]:
    x, weight, heads = draw.outliers(23, 64), 1 + draw.normal(64, scale=0.3), draw.normal(23, 3, 64)
    x[:7] *= 1e-4  # the epsilon matters
    x[7] = 2.5  # no variance at all: what is left is the bias
    x[8:11] += 100.0  # means far larger than the spread
    cos, sin = angles(torch.arange(23) * 997, torch.logspace(0, -4, 8))
    whole = angles(torch.arange(23) * 97, torch.logspace(0, -4, 32))
    return [
        Case("layer_norm", "tiny and flat rows, far means", (x, weight, draw.normal(64), 1e-6)),
        Case("rope", "halves of the first channels", (heads, cos, sin), {"half": True, "first": True}),
        Case("rope", "neighbours of the first channels", (heads, cos, sin), {"first": True}),
        Case("norm_rope", "halves of whole heads", (heads * 1e-3, weight, 1e-6, *whole), {"half": True}),
    ]


def _samples(tokens: int, second: int) -> Ranges:
    """Every row of a token's sample up to it; a second sample begins at row `second`."""
    position = torch.arange(tokens)
    start = torch.where(position >= second, second, 0)
    count = (position - start + 1).int()
    return Ranges(start.int(), count, int(count.sum()), int(count.max()))


def _latent(draw: Draw) -> list[Case]:
    """Absorbed MLA: one entry a row, its first channels the value, no sink; and rows that an indexer chose."""
    tokens, seen = 40, _samples(40, 25)
    query, entry = draw.normal(tokens, 5, 48, scale=2.0), draw.normal(tokens, 48)
    last = (seen.start + seen.count).tolist()
    chosen = torch.stack([torch.cat((torch.arange(a, b)[-8:], torch.full((8 - min(b - a, 8),), -1)))
                          for a, b in zip(seen.start.tolist(), last, strict=True)]).int()
    return [
        Case("attention", "no sink, a value of some channels", (query, Keys(entry, seen), None),
             {"scale": 0.2, "value_width": 32}),
        Case("attention", "chosen rows only, some absent", (query, Keys.chosen(entry, chosen), None),
             {"value_width": 32}),
    ]


def _grouped(draw: Draw) -> list[Case]:
    seen = _samples(99, 70)  # two samples, the first longer than a tile
    steps = Ranges(torch.tensor([0, 41]).int(), torch.tensor([41, 50]).int(), 91, 50)  # one new token each
    query, key, value = (draw.normal(99, heads, channels) for heads, channels in ((6, 48), (2, 48), (2, 32)))
    return [
        Case("grouped_attention", "two samples, three heads a group", (query, key, value, seen, 0.3)),
        Case("grouped_attention", "one key far ahead of the others", (query * 8, key, value, seen, 0.3)),
        Case("grouped_attention", "a head for itself",
             (query, key.repeat(1, 3, 1), value.repeat(1, 3, 1), seen, 0.2)),
        Case("grouped_attention", "one token of each sequence", (query[:2], key, value, steps, 0.3)),
    ]


def _routers(draw: Draw) -> list[Case]:
    x, weight = draw.normal(33, 40), draw.normal(12, 40, scale=0.5)
    return [
        Case("route", "sigmoid, the best groups", (x, weight, 3),
             {"bias_E": draw.normal(12), "rule": RouteRule("sigmoid", 4, 2)}),
        Case("route", "softmax, scores as they are", (x, weight, 3), {"rule": RouteRule("softmax", normalize=False)}),
        Case("route", "softmax that sums to one", (x * 4, weight, 4), {"rule": RouteRule("softmax")}),
    ]


def _unclamped(draw: Draw) -> list[Case]:
    x = draw.outliers(31, 48, size=15.0)
    banks = draw.normal(6, 2 * 24, 48, scale=0.8), draw.normal(6, 48, 24, scale=0.3)
    ids = torch.stack([torch.arange(31) % 2 * 3, 1 + torch.arange(31) % 2], 1)  # experts 4 and 5 get no token
    share = torch.tensor([0.7, 0.3]).expand(31, 2).contiguous()
    single = (*(draw.normal(24, 48, scale=0.3) for _ in range(2)), draw.normal(48, 24))
    return [Case("mlp", "no clamp", (x, *single, math.inf)),
            Case("experts", "no clamp, two empty experts", (x, ids, share, banks, math.inf))]
