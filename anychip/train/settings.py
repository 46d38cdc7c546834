"""How a model is trained: the publisher's recipe where it is published, sized for the run at hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import InputError

OPTIMIZERS = ("muon", "adamw")
STAGES = ("dense", "indexer", "sparse")


@dataclass(frozen=True)
class TrainSettings:
    """One training run. A step is `batch` sequences of `length` tokens, in `micro_batches` equal parts
    whose gradients are added up; `context_blocks` equal parts of a sequence are worked out apart.

    **Rate**: up linearly over `warmup_steps`, constant, and from the share `decay_from` of the steps down by a cosine
    to `min_rate` times `learning_rate`. **Optimizer**: "muon" (`momentum`; AdamW for what is no matrix) or "adamw" for
    all; `weight_decay`, `betas`, `eps` and the gradient's `clip_norm`.

    **Losses beside the next token's**: `mtp_weight` of the MTP block's (a third of it once the rate falls, 0 leaves it
    out), `balance_weight` of the experts' balance within a sequence, `indexer_weight` of the indexer's, where it
    selects. `bias_speed` is how far a router's bias moves a step.

    **Stages**: `dense_steps` in which CSA attends to every entry and the indexer rests, then `indexer_steps` in which
    the indexer alone learns (at `indexer_rate`), then sparse attention. `lengths` holds (step, tokens a sequence) from
    which sequences are shorter than `length`, more of them, as many tokens a step.

    `recompute` keeps no activations inside a block and makes them again going back. `fp4` trains routed experts and the
    indexer as they read back from MXFP4, gradients straight through (post-training).

    Defaults are the DeepSeek-V4 report's (section 4.2), but for the rate and what hangs on the run's size; `decay_from`
    is V4.1's published share ("most" in V4's report), `indexer_*` are V3.2's and Megatron-LM's, which V4's report does
    not give. Raises InputError, with all reasons, for values that cannot train.
    """

    steps: int
    batch: int
    length: int
    seed: int = 0
    learning_rate: float = 1e-3
    warmup_steps: int = 0
    decay_from: float = 0.6
    min_rate: float = 0.1
    optimizer: str = "muon"
    momentum: float = 0.95
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-20
    clip_norm: float = 1.0
    mtp_weight: float = 0.3
    balance_weight: float = 1e-4
    bias_speed: float = 1e-3
    dense_steps: int = 0
    indexer_steps: int = 0
    indexer_rate: float = 1e-3
    indexer_weight: float = 1e-2
    lengths: tuple[tuple[int, int], ...] = ()
    micro_batches: int = 1
    context_blocks: int = 1
    recompute: bool = False
    fp4: bool = False

    def __post_init__(self) -> None:
        problems = [text for holds, text in _rules(self) if not holds]
        if problems:
            raise InputError("these settings cannot train: " + "; ".join(problems))

    @property
    def decay_step(self) -> int:
        """The step from which the rate falls."""
        return max(round(self.decay_from * self.steps), self.warmup_steps)

    def rate(self, step: int) -> float:
        """Return the learning rate of `step` (0, 1, ...)."""
        if self.stage(step) == "indexer":
            return self.indexer_rate
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = max(step - self.decay_step, 0) / max(self.steps - 1 - self.decay_step, 1)
        share = self.min_rate + (1 - self.min_rate) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return self.learning_rate * share

    def mtp_weight_at(self, step: int) -> float:
        """Return the MTP loss's weight: the whole one, then a third (0.3, then 0.1) from where the rate falls."""
        return self.mtp_weight if step < self.decay_step else self.mtp_weight / 3

    def stage(self, step: int) -> str:
        """Return the stage of a step: dense, indexer (it alone learns) or sparse."""
        return STAGES[(step >= self.dense_steps) + (step >= self.dense_steps + self.indexer_steps)]

    def length_at(self, step: int) -> int:
        """Return the tokens of a sequence at a step."""
        return next((length for start, length in reversed(self.lengths) if step >= start), self.length)


def _rules(s: TrainSettings) -> list[tuple[bool, str]]:
    """Return every rule and what is wrong where it does not hold."""
    at_least_one = [(getattr(s, name) >= 1, f"{name}={getattr(s, name)} must be at least 1")
                    for name in ("steps", "batch", "length", "micro_batches", "context_blocks")]
    at_least_zero = [(getattr(s, name) >= 0, f"{name}={getattr(s, name)} must not be negative")
                     for name in ("warmup_steps", "weight_decay", "mtp_weight", "balance_weight", "bias_speed",
                                  "dense_steps", "indexer_steps", "indexer_weight")]
    shares = [(0 <= getattr(s, name) <= 1, f"{name}={getattr(s, name)} must be from 0 to 1: it is a share of {what}")
              for name, what in (("min_rate", "learning_rate"), ("decay_from", "steps"))]
    return [
        *at_least_one,
        *at_least_zero,
        *shares,
        (s.micro_batches < 1 or s.batch % s.micro_batches == 0,
         f"micro_batches={s.micro_batches} does not divide batch={s.batch}"),
        (s.optimizer in OPTIMIZERS, f"optimizer={s.optimizer!r} is not one of {', '.join(OPTIMIZERS)}"),
        (0 < s.learning_rate < math.inf, f"learning_rate={s.learning_rate} must be above 0"),
        (0 < s.indexer_rate < math.inf, f"indexer_rate={s.indexer_rate} must be above 0"),
        (all(0 <= beta < 1 for beta in (*s.betas, s.momentum)),
         f"betas={s.betas} and momentum={s.momentum} must be from 0 to below 1"),
        (s.eps > 0, f"eps={s.eps} must be above 0"),
        (s.clip_norm > 0, f"clip_norm={s.clip_norm} must be above 0"),
        *((step >= 0 and length >= 1 and s.length % length == 0,
           f"lengths=({step}, {length}): a step, and a length that divides length={s.length}, are needed")
          for step, length in s.lengths),
        (list(s.lengths) == sorted(s.lengths), f"lengths={s.lengths} must be in the order of their steps"),
    ]
