"""RoPE angles: plain for sliding-window layers, YaRN's frequency ramp (no mscale) for compressed ones."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from ..config import ModelConfig, YarnScaling


@functools.lru_cache(maxsize=32)
def inverse_frequencies(config: ModelConfig, ratio: int) -> Tensor:
    """Return radians per token for each of the qk_rope_head_dim/2 pairs, fp32; kept, for every pass needs them.

    Layers with ratio 0 use rope_theta as it is; CSA and HCA layers use compress_rope_theta with YaRN.
    """
    dim = config.qk_rope_head_dim
    theta = config.compress_rope_theta if ratio else config.rope_theta
    frequency = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim)
    if ratio and config.rope_scaling is not None:
        return _yarn(frequency, theta, config.rope_scaling)
    return frequency


def _yarn(frequency: Tensor, theta: float, yarn: YarnScaling) -> Tensor:
    """Blend frequency and frequency/factor: many turns within the original context stay, few are stretched."""
    dim = 2 * frequency.numel()

    def pair_with(turns: float) -> float:
        return dim * math.log(yarn.original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_with(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_with(yarn.beta_slow)), dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32, device="cpu") - low) / max(high - low, 0.001)).clamp(0, 1)
    return frequency / yarn.factor * ramp + frequency * (1 - ramp)


def angles(positions: Tensor, frequency: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos and sin [.., R/2] of position times frequency, fp32."""
    turn = positions[:, None].float() * frequency
    return turn.cos(), turn.sin()
