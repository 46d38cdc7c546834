"""The losses of training: the next token's, and the MTP block's.

DeepSeek-V4 report section 2.2: the MTP loss is added with a weight of 0.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ..model import Hidden
from ..parallel import Batch, Losses


@dataclass(frozen=True)
class LanguageModel:
    """The mean next-token loss plus `mtp_weight` times the MTP block's (0 leaves it out), nats a token."""

    mtp_weight: float

    def final(self, model: nn.Module, hidden: Hidden, part: Batch, whole: Batch) -> Losses:
        """Return the micro-batch's share of `loss` and `mtp_loss`."""
        last: Any = model
        token_losses = last.ops.at("head").cross_entropy(hidden.hidden_Td, last.head.weight, part.targets_BL.flatten())
        loss = token_losses.sum() / max(whole.num_targets, 1)
        if not self.mtp_weight:
            return Losses(loss, {"loss": loss})
        ahead_Td = last.predict_next(hidden.streams_Tnd, part.targets_BL.flatten(), part.layout)
        token_losses = last.ops.at("mtp.0").cross_entropy(ahead_Td, last.head.weight, part.further_BL.flatten())
        mtp_loss = token_losses.sum() / (whole.further_BL >= 0).sum().clamp_min(1)
        return Losses(loss + self.mtp_weight * mtp_loss, {"loss": loss, "mtp_loss": mtp_loss})

    def layers(self, model: nn.Module, part: Batch, whole: Batch) -> None:
        """No loss arises in the layers."""
