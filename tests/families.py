"""Small models of every family but V4, and transformers' models with their weights."""

import re
from dataclasses import replace

import torch
from models import random_ids
from transformers import AutoConfig, AutoModelForCausalLM

from anychip.config import ModelConfig, load_config
from anychip.model import Layout, Transformer
from anychip.ops import Ops
from anychip.ops.attention import range_rows
from anychip.ops.index import index_scores

# Ours -> transformers', in order, the first that matches.
_NAMES = [(re.compile(rf"(?<![\w.]){old}"), new) for old, new in (
    (r"embed\.", "model.embed_tokens."), (r"norm\.", "model.norm."), (r"head\.", "lm_head."),
    (r"layers\.(\d+)\.attn_norm\.", r"model.layers.\1.input_layernorm."),
    (r"layers\.(\d+)\.ffn_norm\.", r"model.layers.\1.post_attention_layernorm."),
    (r"layers\.(\d+)\.attn\.", r"model.layers.\1.self_attn."), (r"layers\.(\d+)\.ffn\.", r"model.layers.\1.mlp."))]
_LATENT = {"wq_a": "q_a_proj", "q_norm": "q_a_layernorm", "wq_b": "q_b_proj", "wq": "q_proj", "wo": "o_proj",
           "wkv_a": "kv_a_proj_with_mqa", "kv_norm": "kv_a_layernorm", "wkv_b": "kv_b_proj"}
_GROUPED = {"wq": "q_proj", "wk": "k_proj", "wv": "v_proj", "wo": "o_proj"}
_FFN = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj", "gate.bias": "gate.e_score_correction_bias",
        "experts.w13": "experts.gate_up_proj", "experts.w2": "experts.down_proj"}


def configs() -> dict[str, ModelConfig]:
    """A small configuration of each family, and of what one of its models may do differently."""
    found = {name: load_config(f"{name}-nano") for name in ("v3", "v32", "glm5", "qwen3-moe", "qwen3")}
    types = ("full", "full", "shared", "shared", "full")
    found["glm5 that shares indexers"] = replace(found["glm5"], indexer_types=types)
    found["qwen3 that ties its head"] = replace(found["qwen3"], tie_word_embeddings=True)
    found["v3 without a query latent"] = replace(found["v3"], q_lora_rank=None, rope_scaling=None)
    return found


def their_name(name: str, family: str) -> str:
    """Return transformers' name of one of our tensors."""
    for pattern, new in _NAMES:
        if pattern.match(name):
            start, rest = pattern.sub(new, name, count=1), name[pattern.match(name).end():]
            break
    start = start.removesuffix(rest)
    names = _FFN if ".mlp." in start else _GROUPED if family.startswith("qwen") else _LATENT
    if ".self_attn." in start or ".mlp." in start:
        shared, rest = rest.startswith("shared_experts."), rest.removeprefix("shared_experts.")
        part, dot, leaf = (rest, "", "") if rest in names else rest.partition(".")
        rest = ("shared_experts." if shared else "") + names.get(part, part) + dot + leaf
    return start + rest


def peer_of(model: Transformer) -> torch.nn.Module:
    """Return transformers' model with the same weights, in fp32."""
    fields = model.config.to_dict()
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    peer = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    own = {their_name(name, model.config.family): tensor for name, tensor in model.state_dict().items()
           if not name.startswith("mtp.")}
    if model.config.tie_word_embeddings:
        own["lm_head.weight"] = own["model.embed_tokens.weight"]
    peer.load_state_dict(own)
    return peer


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
