"""RoPE angles, with YaRN's frequency ramp where there is one."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from ..config.specs import Rope, YarnScaling


@functools.lru_cache(maxsize=32)
def inverse_frequencies(rope: Rope) -> Tensor:
    """Return radians per token for each of the `channels`/2 pairs, fp32; kept, for every pass needs them."""
    frequency = 1.0 / rope.theta ** (
        torch.arange(0, rope.channels, 2, dtype=torch.float32, device="cpu") / rope.channels)
    return frequency if rope.yarn is None else _yarn(frequency, rope.theta, rope.yarn)


def turns(positions: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
    """Return what `ops.rope` takes for these positions: cos and sin [.., R/2] times the amplitude, fp32."""
    cos, sin = angles(positions, inverse_frequencies(rope))
    return (cos, sin) if rope.amplitude == 1 else (cos * rope.amplitude, sin * rope.amplitude)


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
