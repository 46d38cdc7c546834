"""One block: attention and experts, each between a read and a write of the residual: mHC's streams, or a plain sum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import ModelConfig
from ..config.specs import CompressedAttention, GroupedAttention, LatentAttention
from ..ops import Ops
from . import residual
from .attention import Attention
from .compressed import Compressed
from .grouped import Grouped
from .latent import Latent
from .moe import MoE, feed_forward
from .plan import Plan
from .state import LayerCache
from .weight import Weight

_ATTENTION: dict[type, Callable[..., Attention]] = {
    CompressedAttention: Compressed, LatentAttention: Latent, GroupedAttention: Grouped}


class Block(nn.Module):
    """Layer `index` of the model (the MTP block is layer num_hidden_layers)."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        spec, d = config.layer(index), config.hidden_size
        self.recompute = False  # keep no activations inside the block in training: make them again going back
        self.index, self.ratio, self.rule, self.eps = (
            index, spec.attention.ratio, residual.hyper_rule(config), config.rms_norm_eps)
        self.attn = _ATTENTION[type(spec.attention)](spec.attention, d, self.eps)
        self.ffn = feed_forward(spec.ffn, d, config.vocab_size)
        self.attn_norm, self.ffn_norm = Weight(d), Weight(d)
        residual.add_mixing(self, config)

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
            self.attn.watched = None
            if isinstance(self.ffn, MoE):
                self.ffn.scores = None

    def _run(self, streams_Tnd: Tensor, ids_T: Tensor, plan: Plan, ops: Ops) -> Tensor:
        at_once = ops.blocks((self,), streams_Tnd, ids_T, plan)
        if at_once is not None:
            return at_once
        layer, cache = plan.layer(self.ratio), LayerCache(self.index, plan.state)
        attn_ops, ffn_ops = ops.at(f"layers.{self.index}.attn"), ops.at(f"layers.{self.index}.ffn")
        x_Td, mixing = residual.read(self, streams_Tnd, "attn", attn_ops)
        y_Td = self.attn(attn_ops.rms_norm(x_Td, self.attn_norm.weight, self.eps), layer, cache, attn_ops)
        streams_Tnd = residual.write(y_Td, streams_Tnd, mixing, attn_ops)
        x_Td, mixing = residual.read(self, streams_Tnd, "ffn", ffn_ops)
        y_Td = self.ffn(ffn_ops.rms_norm(x_Td, self.ffn_norm.weight, self.eps), ids_T, ffn_ops)
        return residual.write(y_Td, streams_Tnd, mixing, ffn_ops)


class MTPBlock(Block):
    """The multi-token-prediction block: joins the final streams with the next token's embedding, then a block."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__(config, index)
        d = config.hidden_size
        self.e_proj, self.h_proj = Weight(d, d), Weight(d, d)
        self.enorm, self.hnorm, self.norm = Weight(d), Weight(d), Weight(d)
        residual.add_joining(self, config)

    def predict(self, streams_Tnd: Tensor, embed_Td: Tensor, ids_T: Tensor, plan: Plan, ops: Ops) -> Tensor:
        """Return the normalised hidden [T, d] that predicts the token after next.

        `streams_Tnd` are the main model's streams before its HC head; `embed_Td` and `ids_T` are of token t+1.
        """
        ops = ops.at("mtp.0")
        tokens, n, d = streams_Tnd.shape
        joined = ops.linear(ops.rms_norm(streams_Tnd, self.hnorm.weight, self.eps).view(-1, d), self.h_proj.weight)
        ahead = ops.linear(ops.rms_norm(embed_Td, self.enorm.weight, self.eps), self.e_proj.weight)
        streams_Tnd = self(joined.view(tokens, n, d) + ahead[:, None], ids_T, plan, ops)
        return ops.rms_norm(residual.join(self, streams_Tnd, ops), self.norm.weight, self.eps)
