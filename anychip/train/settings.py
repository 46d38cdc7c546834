"""How a model is trained: the publisher's recipe where it is published, sized for the run at hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import InputError


@dataclass(frozen=True)
class TrainSettings:
    """One training run. A step is `batch` sequences of `length` tokens.

    The rate rises linearly over `warmup_steps`, then falls by a cosine to `min_rate` times `learning_rate` at the
    last step (`min_rate=1` keeps it constant). `mtp_weight` scales the loss of the MTP block (0 leaves it out),
    `bias_speed` is how far a router's bias moves a step; the gradients of a step's `micro_batches` equal parts are
    added up. Defaults of the optimizer, `mtp_weight` and `bias_speed` are the DeepSeek-V4 report's. Raises
    InputError, with all reasons, for values that cannot train.
    """

    steps: int
    batch: int
    length: int
    seed: int = 0
    learning_rate: float = 1e-3
    warmup_steps: int = 0
    min_rate: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-20
    clip_norm: float = 1.0
    mtp_weight: float = 0.3
    bias_speed: float = 1e-3
    micro_batches: int = 1

    def __post_init__(self) -> None:
        problems = [text for holds, text in _rules(self) if not holds]
        if problems:
            raise InputError("these settings cannot train: " + "; ".join(problems))

    def rate(self, step: int) -> float:
        """Return the learning rate of `step` (0, 1, ...)."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(self.steps - 1 - self.warmup_steps, 1)
        share = self.min_rate + (1 - self.min_rate) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return self.learning_rate * share


def _rules(s: TrainSettings) -> list[tuple[bool, str]]:
    """Return every rule and what is wrong where it does not hold."""
    at_least_one = [(getattr(s, name) >= 1, f"{name}={getattr(s, name)} must be at least 1")
                    for name in ("steps", "batch", "length", "micro_batches")]
    at_least_zero = [(getattr(s, name) >= 0, f"{name}={getattr(s, name)} must not be negative")
                     for name in ("warmup_steps", "weight_decay", "mtp_weight", "bias_speed")]
    return [
        *at_least_one,
        *at_least_zero,
        (s.micro_batches < 1 or s.batch % s.micro_batches == 0,
         f"micro_batches={s.micro_batches} does not divide batch={s.batch}"),
        (0 < s.learning_rate < math.inf, f"learning_rate={s.learning_rate} must be above 0"),
        (0 <= s.min_rate <= 1, f"min_rate={s.min_rate} must be from 0 to 1: it is a share of learning_rate"),
        (all(0 <= beta < 1 for beta in s.betas), f"betas={s.betas} must be from 0 to below 1"),
        (s.eps > 0, f"eps={s.eps} must be above 0"),
        (s.clip_norm > 0, f"clip_norm={s.clip_norm} must be above 0"),
    ]
