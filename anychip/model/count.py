"""How many parameters a model has, and how many of them one token uses."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..config import ModelConfig
from ..ops import Ops
from .transformer import Transformer


class ParameterCount(NamedTuple):
    """Parameters of the main model (total, and active for one token) and of its MTP block, and those of the embedding.

    `active` is what a token multiplies by: it leaves the embedding out (a lookup; of a tied one the head stays in).
    Published figures differ in this: Qwen3's 3.3B and 22B count it (`active_with_embedding`); DeepSeek-V4's 13B, V3's
    and V3.2's 37B and GLM-5.1's 40B are nearer without.
    """

    total: int
    active: int
    mtp_total: int
    mtp_active: int
    embedding: int

    @property
    def active_with_embedding(self) -> int:
        """Active parameters with the embedding."""
        return self.active + self.embedding


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Count on the meta device. Active leaves out the embedding (a lookup) and the experts a token does not visit."""
    with torch.device("meta"):
        model = Transformer(config, Ops())
    total = active = mtp_total = mtp_active = 0
    share = config.mixture.topk / config.mixture.num_experts if config.mixture else 1.0
    for name, parameter in model.named_parameters():
        looked_up = name == "embed.weight" and not config.tie_word_embeddings
        used = parameter.numel() * (share if ".experts." in name else 0 if looked_up else 1)
        if name.startswith("mtp."):
            mtp_total, mtp_active = mtp_total + parameter.numel(), mtp_active + round(used)
        else:
            total, active = total + parameter.numel(), active + round(used)
    embedding = 0 if config.tie_word_embeddings else model.embed.weight.numel()
    return ParameterCount(total, active, mtp_total, mtp_active, embedding)
