"""One V4 block: attention and experts, each between an mHC read and an mHC write of the residual streams."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import ModelConfig
from ..ops import HyperRule, HyperWeights, Ops
from .attention import Attention, Weight
from .moe import MoE
from .plan import Plan
from .state import LayerCache


def hyper_rule(config: ModelConfig) -> HyperRule:
    """Return mHC's constants."""
    return HyperRule(config.hc_sinkhorn_iters, config.hc_eps, config.rms_norm_eps)


class Block(nn.Module):
    """Layer `index` of the model (the MTP block is layer num_hidden_layers)."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        n, d = config.hc_mult, config.hidden_size
        self.recompute = False  # keep no activations inside the block in training: make them again going back
        self.index, self.ratio, self.rule, self.eps = (
            index, config.compress_ratios[index], hyper_rule(config), config.rms_norm_eps)
        self.attn = Attention(config, self.ratio)
        self.ffn = MoE(config, hashed=index < config.num_hash_layers)
        self.attn_norm, self.ffn_norm = Weight(d), Weight(d)
        for site in ("attn", "ffn"):
            self.register_parameter(f"hc_{site}_fn", nn.Parameter(torch.empty(n * (n + 2), n * d)))
            self.register_parameter(f"hc_{site}_base", nn.Parameter(torch.empty(n * (n + 2))))
            self.register_parameter(f"hc_{site}_scale", nn.Parameter(torch.empty(3)))

    def forward(self, streams_Tnd: Tensor, ids_T: Tensor, plan: Plan, ops: Ops) -> Tensor:
        """Return the new residual streams [T, n, d]."""
        if self.recompute and torch.is_grad_enabled():
            streams: Tensor = checkpoint(self._run, streams_Tnd, ids_T, plan, ops, use_reentrant=False,
                                         context_fn=lambda: (nullcontext(), self._forgetting()))
            return streams
        return self._run(streams_Tnd, ids_T, plan, ops)

    @contextmanager
    def _forgetting(self) -> Iterator[None]:
        """The losses watch the first pass; what the second one kept would hold its activations to the step's end."""
        try:
            yield
        finally:  # the second pass ends by an exception of torch's own as soon as it has made what was missing
            self.ffn.scores = self.attn.watched = None

    def _run(self, streams_Tnd: Tensor, ids_T: Tensor, plan: Plan, ops: Ops) -> Tensor:
        layer, cache = plan.layer(self.ratio), LayerCache(self.index, plan.state)
        at_once = ops.block(self, streams_Tnd, ids_T, layer, cache)
        if at_once is not None:
            return at_once
        attn_ops, ffn_ops = ops.at(f"layers.{self.index}.attn"), ops.at(f"layers.{self.index}.ffn")
        x_Td, post, comb = attn_ops.hc_pre(streams_Tnd, self._hyper("attn"), self.rule)
        y_Td = self.attn(attn_ops.rms_norm(x_Td, self.attn_norm.weight, self.eps), layer, cache, attn_ops)
        streams_Tnd = attn_ops.hc_post(y_Td, streams_Tnd, post, comb)
        x_Td, post, comb = ffn_ops.hc_pre(streams_Tnd, self._hyper("ffn"), self.rule)
        y_Td = self.ffn(ffn_ops.rms_norm(x_Td, self.ffn_norm.weight, self.eps), ids_T, ffn_ops)
        return ffn_ops.hc_post(y_Td, streams_Tnd, post, comb)

    def _hyper(self, site: str) -> HyperWeights:
        parameters = self._parameters
        return HyperWeights(*(parameters[f"hc_{site}_{part}"] for part in HyperWeights._fields))  # type: ignore[arg-type]


class MTPBlock(Block):
    """The multi-token-prediction block: joins the final streams with the next token's embedding, then a block."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__(config, index)
        n, d = config.hc_mult, config.hidden_size
        self.e_proj, self.h_proj = Weight(d, d), Weight(d, d)
        self.enorm, self.hnorm, self.norm = Weight(d), Weight(d), Weight(d)
        self.hc_head_fn = nn.Parameter(torch.empty(n, n * d))
        self.hc_head_base = nn.Parameter(torch.empty(n))
        self.hc_head_scale = nn.Parameter(torch.empty(1))

    def predict(self, streams_Tnd: Tensor, embed_Td: Tensor, ids_T: Tensor, plan: Plan, ops: Ops) -> Tensor:
        """Return the normalised hidden [T, d] that predicts the token after next.

        `streams_Tnd` are the main model's streams before its HC head; `embed_Td` and `ids_T` are of token t+1.
        """
        ops = ops.at("mtp.0")
        tokens, n, d = streams_Tnd.shape
        joined = ops.linear(ops.rms_norm(streams_Tnd, self.hnorm.weight, self.eps).view(-1, d), self.h_proj.weight)
        ahead = ops.linear(ops.rms_norm(embed_Td, self.enorm.weight, self.eps), self.e_proj.weight)
        streams_Tnd = self(joined.view(tokens, n, d) + ahead[:, None], ids_T, plan, ops)
        head = HyperWeights(self.hc_head_fn, self.hc_head_base, self.hc_head_scale)
        return ops.rms_norm(ops.hc_head(streams_Tnd, head, self.rule), self.norm.weight, self.eps)
