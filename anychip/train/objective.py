"""The losses of training: the next token's, the MTP block's, the experts' balance, and the indexer's.

DeepSeek-V4 report sections 2.1, 2.2 and 4.2; the balance loss's formula is V3's (report 2.1.2), the indexer's V3.2's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..model import Hidden, Layout
from ..model.attention import Attention, Indexer
from ..model.moe import MoE
from ..parallel import Batch, Losses
from .indexer_loss import indexer_loss
from .settings import TrainSettings


@dataclass(frozen=True)
class LanguageModel:
    """The mean next-token loss, nats a token, plus weighted parts (a weight of 0 leaves one out).

    `mtp_weight`: the MTP block's mean loss. `balance_weight`: the balance loss, a sum over layers, 1 a layer where
    the load is even: within each sequence, or within a micro-batch where no selection bias balances the router.
    `indexer_weight`: the mean over tokens of the indexers' divergence, a sum over layers; with `only_indexer` it alone
    is minimised. `fp4` trains the indexer as MXFP4.
    """

    mtp_weight: float
    balance_weight: float = 0.0
    indexer_weight: float = 0.0
    only_indexer: bool = False
    fp4: bool = False

    def prepare(self, model: nn.Module, *, dense: bool) -> None:
        """Set the model's switches: what its layers keep for these losses, and whether CSA sees every entry."""
        for module in model.modules():
            if isinstance(module, MoE):
                module.watch = self.balance_weight > 0 and module.gate.tid2eid is None
            elif isinstance(module, Indexer):
                module.dense, module.watch = dense, self.indexer_weight > 0

    def final(self, model: nn.Module, hidden: Hidden, part: Batch, whole: Batch) -> Losses:
        """Return the micro-batch's share of `loss` and `mtp_loss`."""
        last: Any = model
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.only_indexer):
            target_T = part.targets_BL.flatten()
            token_losses = last.ops.at("head").cross_entropy(hidden.hidden_Td, last.head.weight, target_T)
            loss = token_losses.sum() / whole.num_targets.clamp_min(1)
            if self.only_indexer:
                return Losses(torch.zeros_like(loss), {"loss": loss})
            if not self.mtp_weight:
                return Losses(loss, {"loss": loss})
            ahead_Td = last.predict_next(hidden.streams_Tnd, next_ids(part), part.layout)
            token_losses = last.ops.at("mtp.0").cross_entropy(ahead_Td, last.head.weight, part.further_BL.flatten())
            mtp_loss = token_losses.sum() / (whole.further_BL >= 0).sum().clamp_min(1)
        return Losses(loss + self.mtp_weight * mtp_loss, {"loss": loss, "mtp_loss": mtp_loss})

    def layers(self, model: nn.Module, part: Batch, whole: Batch) -> Losses | None:
        """Return the micro-batch's share of `balance_loss` and `indexer_loss`, None where no layer kept anything."""
        balance, indexer = self._balance(model, part, whole), self._indexer(model, whole)
        named = {name: value for name, value in (("balance_loss", balance), ("indexer_loss", indexer))
                 if value is not None}
        if not named:
            return None
        weights = {"balance_loss": 0.0 if self.only_indexer else self.balance_weight,
                   "indexer_loss": 1.0 if self.only_indexer else self.indexer_weight}
        terms = [value * weights[name] for name, value in named.items() if weights[name]]
        first = next(iter(named.values()))
        return Losses(sum(terms[1:], terms[0]) if terms else torch.zeros_like(first), named)

    def _balance(self, model: nn.Module, part: Batch, whole: Batch) -> Tensor | None:
        layers = [module for module in model.modules() if isinstance(module, MoE) and module.scores is not None]
        if not self.balance_weight or not layers:
            return None
        found, sequences = [], len(whole.layout.lengths)
        for layer in layers:
            assert layer.scores is not None
            if layer.gate.bias is None:  # nothing else balances this router: all tokens of the micro-batch count as one
                together = Layout.whole([part.inputs_BL.numel()])
                share = part.inputs_BL.numel() / whole.inputs_BL.numel()
                found.append(balance_loss(layer.scores, together, layer.topk) * (share * sequences))
            else:
                found.append(balance_loss(layer.scores, part.layout, layer.topk))
            layer.scores = None
        return torch.stack(found).sum() / sequences

    def _indexer(self, model: nn.Module, whole: Batch) -> Tensor | None:
        layers = [module for module in model.modules() if isinstance(module, Attention) and module.watched is not None]
        if not self.indexer_weight or not layers:
            return None
        found = []
        for layer in layers:
            assert layer.watched is not None
            found.append(indexer_loss(layer.watched, fp4=self.fp4))
            layer.watched = None
        return torch.stack(found).sum() / whole.inputs_BL.numel()


def next_ids(part: Batch) -> Tensor:
    """Return the token after each, [T], also where it is no target: the MTP block reads it. After a sample's last
    token it is any token, as nobody looks at what comes of it."""
    target_T = part.targets_BL.flatten()
    return torch.where(target_T >= 0, target_T, part.inputs_BL.flatten().roll(-1))


def objective_at(settings: TrainSettings, step: int) -> LanguageModel:
    """Return the losses of a step."""
    stage = settings.stage(step)
    indexer_weight = {"dense": 0.0, "indexer": 1.0, "sparse": settings.indexer_weight}[stage]
    return LanguageModel(settings.mtp_weight_at(step), settings.balance_weight, indexer_weight, stage == "indexer",
                         settings.fp4)


def balance_loss(scores_TE: Tensor, layout: Layout, topk: int) -> Tensor:
    """Return sum_i f_i P_i of each sequence, summed over sequences: 1 each where the load is even.

    f_i is the share of tokens whose `topk` highest scores include expert i, times E / topk; P_i the mean of its score
    among all experts' (V3 report, section 2.1.2). Gradients flow through P alone.
    """
    tokens, num_experts = scores_TE.shape
    sequence_T = layout.spread(torch.arange(len(layout.lengths))).to(scores_TE.device)
    length_S1 = torch.tensor(layout.lengths, device=scores_TE.device)[:, None]
    share_TE = scores_TE / scores_TE.sum(-1, keepdim=True)
    hit_TE = torch.zeros_like(share_TE).scatter_(1, scores_TE.detach().topk(topk).indices, 1.0)
    mean_SE, load_SE = (value.new_zeros(len(layout.lengths), num_experts).index_add(0, sequence_T, value) / length_S1
                        for value in (share_TE, hit_TE))
    return (load_SE * mean_SE).sum() * (num_experts / topk)
