"""Small models of every family but V4, and texts on which an indexer's choice is clear."""

from dataclasses import replace

import torch
from models import random_ids

from anychip.config import ModelConfig, load_config
from anychip.model import Layout, Transformer
from anychip.ops import Ops
from anychip.ops.attention import range_rows
from anychip.ops.index import index_scores


def configs() -> dict[str, ModelConfig]:
    """A small configuration of each family, and of what one of its models may do differently."""
    found = {name: load_config(f"{name}-nano") for name in ("v3", "v32", "glm5", "qwen3-moe", "qwen3")}
    types = ("full", "full", "shared", "shared", "full")
    found["glm5 that shares indexers"] = replace(found["glm5"], indexer_types=types)
    found["qwen3 that ties its head"] = replace(found["qwen3"], tie_word_embeddings=True)
    found["v3 without a query latent"] = replace(found["v3"], q_lora_rank=None, rope_scaling=None)
    return found


class _Margins(Ops):
    """The definition's ops; `least` is the smallest gap between the last row that an indexer picks and the next, as a
    share of the largest score."""

    def __init__(self):
        self.least = 1.0

    def index_topk(self, query, weight, key, visible, topk):
        rows, seen = range_rows(visible, slice(None))
        score = index_scores(query, weight, key, rows).masked_fill(~seen, float("-inf"))
        best = score.topk(topk + 1, dim=-1).values[visible.count > topk]
        self.least = min(self.least, float(((best[:, -2] - best[:, -1]) / score[seen].abs().max()).min()))
        return Ops.index_topk(query, weight, key, visible, topk)


def clear_ids(model: Transformer, lengths: list[int]) -> torch.Tensor:
    """Return token ids for which no indexer chooses between scores that another order of sums could swap."""
    for seed in range(50):
        ids, ops, model.ops = random_ids(sum(lengths), seed), model.ops, _Margins()
        try:
            with torch.no_grad():
                model(ids, Layout.whole(lengths))
            if model.ops.least > 2e-6:
                return ids
        finally:
            model.ops = ops
    raise AssertionError("no such text among 50")
