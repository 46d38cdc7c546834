"""The work of a described model: its layers' calls, on tensors of the meta device, through the same ops' costs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from .architecture import Architecture, find_architecture
from .keep import kept_bytes
from .work import Batch, Call, Part, Shape, Split, Weight, Work


@lru_cache(maxsize=512)
def described_work(name: str, batch: Batch) -> Work:
    """Return the work of one pass of a described model."""
    key, a = find_architecture(name)
    kinds = a.kinds()
    parts = {}
    with torch.device("meta"):
        for kind in ("embed", *dict.fromkeys(kinds), "head", *(["mtp"] if a.mtp else [])):
            made = _Maker(a, batch)
            calls = tuple(made.part(kind))
            parts[kind] = Part(kind, calls, tuple(made.weights), any(c.op == "experts" for c in calls),
                               kept_bytes(calls) if batch.training else 0.0)
    order = ("embed", *kinds, "head", *(["mtp"] * a.mtp))
    shape = Shape(key, a.hidden, a.heads, 1 if a.is_mla else a.kv_heads, a.experts, a.topk, 1, a.vocab, a.mtp,
                  a.max_context, a.latent)
    return Work(shape, batch, parts, order)


class _Maker:
    """Makes the calls of one part, and notes their weights."""

    def __init__(self, a: Architecture, batch: Batch) -> None:
        self.a, self.batch, self.weights = a, batch, list[Weight]()
        self.x = torch.empty(batch.tokens, a.hidden, dtype=torch.bfloat16)
        self.last = batch.judged

    def part(self, kind: str) -> Iterator[Call]:
        """Yield the calls of one kind of part."""
        a = self.a
        if kind == "embed":
            weight = self.weight("embed", (a.vocab, a.hidden), Split.VOCAB, "embedding")
            ids = torch.empty(self.batch.tokens, dtype=torch.int64)
            yield Call("embed", "embed", Split.VOCAB, (ids, weight))
        elif kind == "head":
            yield from self.head()
        elif kind == "mtp":  # joins the stream with the next embedding, then one block and the head again
            joined = torch.empty(self.batch.tokens, 2 * a.hidden, dtype=torch.bfloat16)
            yield self.linear("eh_proj", joined, a.hidden, Split.COLUMN)
            yield from self.part("moe" if a.experts else "dense")
            yield from self.head(tied=True)
        else:
            yield from self.layer(kind)

    def layer(self, kind: str) -> Iterator[Call]:
        """Yield the calls of one layer."""
        window = self.a.window if kind.endswith("-window") else 0
        kind = kind.removesuffix("-window")
        if kind in ("dense", "moe", "attention"):
            for _ in range(self.a.attentions):
                yield self.norm("attn_norm")
                yield from self.mla() if self.a.is_mla else self.gqa(window)
        if kind == "scan":
            yield self.norm("norm")
            yield from self.scan()
        for _ in range(self.a.ffn_per_layer or int(kind in ("dense", "mlp"))):
            yield self.norm("ffn_norm")
            yield from self.mlp("ffn", self.a.ffn)
        if kind in ("moe", "experts"):
            yield self.norm("ffn_norm")
            yield from self.experts()

    def head(self, *, tied: bool = False) -> Iterator[Call]:
        """Yield the final norm and the logits (a loss in training)."""
        a = self.a
        rows = self.x[: self.last]
        yield self.norm("norm")
        weight = (torch.empty(a.vocab, a.hidden, dtype=torch.bfloat16) if tied or a.tied else
                  self.weight("head", (a.vocab, a.hidden), Split.VOCAB, "embedding"))
        if self.batch.training:
            yield Call("cross_entropy", "head", Split.VOCAB, (rows, weight, torch.empty(self.last, dtype=torch.int64)))
        else:
            yield Call("linear", "head", Split.VOCAB, (rows, weight))

    def gqa(self, window: int) -> Iterator[Call]:
        """Yield grouped-query attention."""
        a, tokens = self.a, self.batch.tokens
        yield self.linear("attn.q", self.x, a.heads * a.head_dim, Split.COLUMN)
        yield self.linear("attn.kv", self.x, 2 * a.kv_heads * a.head_dim, Split.COLUMN)
        query = torch.empty(tokens, a.heads, a.head_dim, dtype=torch.bfloat16)
        angles = torch.empty(tokens, a.head_dim // 2)
        yield Call("rope", "attn.rope", Split.HEADS, (query, angles, angles))
        yield self.attention(query, (a.kv_heads, a.head_dim, a.head_dim), window)
        yield self.linear("attn.o", query.view(tokens, -1), a.hidden, Split.ROW)

    def mla(self) -> Iterator[Call]:
        """Yield multi-head latent attention: expanded for whole sequences, absorbed for cached ones."""
        a, tokens = self.a, self.batch.tokens
        width = a.nope + a.rope
        source, rank = self.x, a.hidden
        if a.q_lora:
            yield self.linear("attn.q_a", self.x, a.q_lora, Split.NONE)
            source, rank = torch.empty(tokens, a.q_lora, dtype=torch.bfloat16), a.q_lora
            yield self.norm("attn.q_norm", source)
        yield self.linear("attn.q_b", source, a.heads * width, Split.COLUMN)
        yield self.linear("attn.kv_a", self.x, a.kv_lora + a.rope, Split.NONE)
        latent = torch.empty(tokens, a.kv_lora, dtype=torch.bfloat16)
        yield self.norm("attn.kv_norm", latent)
        if a.index_heads:
            yield from self.indexer(source, rank)
        if self.batch.context:
            keys = torch.empty(tokens, a.heads, a.nope, dtype=torch.bfloat16)
            weight = self.weight("attn.kv_b.k", (a.heads * a.kv_lora, a.nope), Split.COLUMN, "linear")
            yield Call("grouped_linear", "attn.absorb_q", Split.COLUMN, (keys, weight))
            query = torch.empty(tokens, a.heads, a.kv_lora + a.rope, dtype=torch.bfloat16)
            yield self.attention(query, (1, a.kv_lora + a.rope, a.kv_lora), 0)
            values = torch.empty(tokens, a.heads, a.kv_lora, dtype=torch.bfloat16)
            weight = self.weight("attn.kv_b.v", (a.heads * a.value, a.kv_lora), Split.COLUMN, "linear")
            yield Call("grouped_linear", "attn.absorb_v", Split.COLUMN, (values, weight))
        else:
            yield self.linear("attn.kv_b", latent, a.heads * (a.nope + a.value), Split.COLUMN)
            query = torch.empty(tokens, a.heads, width, dtype=torch.bfloat16)
            yield self.attention(query, (a.heads, width, a.value), 0)
        yield self.linear("attn.o", torch.empty(tokens, a.heads * a.value, dtype=torch.bfloat16), a.hidden, Split.ROW)

    def indexer(self, source: Tensor, rank: int) -> Iterator[Call]:
        """Yield the scores of every visible key with the indexer's heads."""
        a, tokens = self.a, self.batch.tokens
        yield self.linear("indexer.q", source, a.index_heads * a.index_dim, Split.COLUMN)
        yield self.linear("indexer.k", self.x, a.index_dim, Split.NONE)
        yield self.linear("indexer.w", self.x, a.index_heads, Split.NONE)
        query = torch.empty(tokens, a.index_heads, a.index_dim, dtype=torch.bfloat16)
        keys = torch.empty(self.batch.sequences * (self.batch.context + self.batch.length), a.index_dim,
                           dtype=torch.bfloat16)
        yield Call("index_scores", "indexer", Split.HEADS, (query, keys, self.pairs(0)), cached=self.batch.context > 0)

    def attention(self, query: Tensor, keys: tuple[int, int, int], window: int) -> Call:
        """Return the attention call over keys of (heads, key channels, value channels)."""
        heads, key_dim, value_dim = keys
        seen = self.a.index_topk or window or self.batch.context + self.batch.length
        rows = self.batch.sequences * min(seen, self.batch.context + self.batch.length)
        key = torch.empty(rows, heads, key_dim, dtype=torch.bfloat16)
        shared = self.a.is_mla and self.batch.context > 0  # absorbed: the value is part of the key
        value = key[..., :0] if shared else torch.empty(rows, heads, value_dim, dtype=torch.bfloat16)
        pairs = self.pairs(self.a.index_topk or window)
        return Call("dense_attention", "attn", Split.HEADS, (query, key, value, pairs, value_dim),
                    cached=self.batch.context > 0)

    def pairs(self, limit: int) -> float:
        """Return (query, key) pairs of the pass: causal, at most `limit` keys a query (0: all)."""
        start, end = self.batch.context, self.batch.context + self.batch.length
        if not limit or end <= limit:
            return self.batch.sequences * (end * (end + 1) - start * (start + 1)) / 2
        below = max(min(end, limit) - start, 0)
        rising = below * (start + 1 + start + below) / 2
        return self.batch.sequences * (rising + (self.batch.length - below) * limit)

    def scan(self) -> Iterator[Call]:
        """Yield a Mamba-2 layer: projections and the state-space scan."""
        a, tokens = self.a, self.batch.tokens
        inner, groups = a.scan_heads * a.scan_dim, 2 * a.scan_groups * a.scan_state
        yield self.linear("scan.in", self.x, 2 * inner + groups + a.scan_heads, Split.COLUMN)
        yield Call("scan", "scan", Split.HEADS, (torch.empty(tokens, inner + groups, dtype=torch.bfloat16),
                                                 a.scan_heads, a.scan_dim, a.scan_state))
        yield self.linear("scan.out", torch.empty(tokens, inner, dtype=torch.bfloat16), a.hidden, Split.ROW)

    def experts(self) -> Iterator[Call]:
        """Yield router, routed experts (in their latent width where they have one) and the shared expert."""
        a, tokens = self.a, self.batch.tokens
        gate = self.weight("gate", (a.experts, a.hidden), Split.NONE, "plain")
        yield Call("route", "gate", Split.TOKENS, (self.x, gate, a.topk))
        x, width = self.x, a.hidden
        if a.latent:
            yield self.linear("latent.down", self.x, a.latent, Split.NONE)
            x, width = torch.empty(tokens, a.latent, dtype=torch.bfloat16), a.latent
        rows = (2 if a.gated else 1) * a.moe_ffn
        banks = (self.weight("experts.w13", (a.experts, rows, width), Split.EXPERTS, "expert"),
                 self.weight("experts.w2", (a.experts, width, a.moe_ffn), Split.EXPERTS, "expert"))
        ids, weight = torch.empty(tokens, a.topk, dtype=torch.int64), torch.empty(tokens, a.topk)
        yield Call("experts", "experts", Split.EXPERTS, (x, ids, weight, banks, 0.0))
        if a.latent:
            yield self.linear("latent.up", x, a.hidden, Split.NONE)
        if a.shared_ffn:
            yield from self.mlp("shared", a.shared_ffn)

    def mlp(self, name: str, width: int) -> Iterator[Call]:
        """Yield a feed-forward layer, with or without a gate."""
        hidden, down = self.a.hidden, torch.empty(self.batch.tokens, width, dtype=torch.bfloat16)
        if not self.a.gated:
            yield self.linear(f"{name}.w1", self.x, width, Split.COLUMN)
            yield self.linear(f"{name}.w2", down, hidden, Split.ROW)
            return
        first, gate = (self.weight(f"{name}.{w}", (width, hidden), Split.COLUMN, "linear") for w in ("w1", "w3"))
        last = self.weight(f"{name}.w2", (hidden, width), Split.ROW, "linear")
        yield Call("mlp", name, Split.FFN, (self.x, first, gate, last, 0.0))

    def linear(self, name: str, x: Tensor, width: int, split: Split) -> Call:
        """Return a product with a new weight."""
        return Call("linear", name, split, (x, self.weight(name, (width, x.shape[-1]), split, "linear")))

    def norm(self, name: str, x: Tensor | None = None) -> Call:
        """Return a norm of `x`, the hidden stream by default."""
        x = self.x if x is None else x
        split = Split.TOKENS if x is self.x else Split.NONE
        return Call("rms_norm", name, split, (x, self.weight(name, (x.shape[-1],), Split.NONE, "small"), 1e-6))

    def weight(self, name: str, shape: tuple[int, ...], split: Split, kind: str) -> Tensor:
        """Note a parameter and return it."""
        self.weights.append(Weight(name, shape, split, kind))
        return torch.empty(shape, dtype=torch.bfloat16)
