"""How one answer's next token is drawn from logits: bias, penalties, grammar, temperature, filters, Gumbel noise.

The noise of a draw depends on the seed, the answer's number and the token's position alone. So the same request draws
the same tokens in any batch, after any preemption, and with drafts or without: a draft that was drawn from other
logits with the same noise is kept exactly where the true draw is the same token.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .request import Sampling, TokenLogprobs

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


class Sampler:
    """Draws for one answer; `index` is its number among the request's n."""

    def __init__(self, sampling: Sampling, index: int, prompt_ids: Sequence[int]) -> None:
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed & (2**64 - 1)
        self.sampling = sampling
        self._random = np.random.Generator(np.random.Philox(key=np.array((seed, index), np.uint64)))
        self._bias = [(token, value) for token, value in sampling.logit_bias.items()]
        self._penal = (sampling.presence_penalty, sampling.frequency_penalty) != (0, 0)
        self._repeats = sampling.repetition_penalty != 1
        self._counts: dict[int, int] = {}
        self._seen = set(prompt_ids) if self._repeats else set[int]()

    @property
    def greedy(self) -> bool:
        """Whether a token is simply the logits' largest, so that a batch can be decided at once."""
        return not self._changes and self.sampling.temperature == 0 and self.sampling.grammar is None

    def accept(self, token: int) -> None:
        """Note a token of the answer: penalties count it from now on."""
        if self._penal:
            self._counts[token] = self._counts.get(token, 0) + 1
        if self._repeats:
            self._seen.add(token)

    def draw(self, logits_V: Floats, position: int, allowed: Ids | None = None, banned: Sequence[int] = ()) -> int:
        """Return the token at `position`: one of the ids `allowed` (None: all), none of the `banned`."""
        logits = self._changed(logits_V) if self._changes or banned else logits_V
        if banned:
            logits[list(banned)] = -np.inf
        if allowed is not None:
            logits = logits[allowed]
        chosen = int(logits.argmax()) if self.sampling.temperature == 0 else self._sample(logits, position, allowed)
        return chosen if allowed is None else int(allowed[chosen])

    @property
    def _changes(self) -> bool:
        return bool(self._bias or self._penal or self._repeats)

    def _changed(self, logits_V: Floats) -> Floats:
        logits = logits_V.copy()
        for token, value in self._bias:
            if 0 <= token < len(logits):
                logits[token] += value
        if self._seen:
            seen = np.fromiter(self._seen, np.int64)
            found, by = logits[seen], np.float32(self.sampling.repetition_penalty)
            logits[seen] = np.where(found > 0, found / by, found * by)
        if self._counts:
            tokens = np.fromiter(self._counts, np.int64)
            counts = np.fromiter(self._counts.values(), np.float32)
            logits[tokens] -= self.sampling.frequency_penalty * counts + np.float32(self.sampling.presence_penalty)
        return logits

    def _sample(self, logits: Floats, position: int, allowed: Ids | None) -> int:
        """The place of the drawn one among `logits`."""
        scaled = logits / np.float32(self.sampling.temperature)
        size = len(logits) if allowed is None else int(allowed[-1]) + 1
        noise = self._uniform(position, size)
        if allowed is not None:
            noise = noise[allowed]
        kept = self._kept(scaled)
        if kept is None:
            return int((scaled + gumbel(noise)).argmax())
        return int(kept[(scaled[kept] + gumbel(noise[kept])).argmax()])

    def _uniform(self, position: int, size: int) -> Floats:
        """The first `size` of the numbers in [0, 1) that belong to the seed, the answer and a position."""
        state: Any = self._random.bit_generator.state
        state["state"]["counter"][:], state["buffer_pos"], state["has_uint32"] = (0, 0, 0, position), 4, 0
        self._random.bit_generator.state = state
        return self._random.random(size, np.float32)

    def _kept(self, logits: Floats) -> Ids | None:
        """The ids that the filters leave; None: all. Ties at a bound go to the lowest id."""
        rule = self.sampling
        if rule.top_k == 0 and rule.top_p == 1 and rule.min_p == 0:
            return None
        order: Any = np.argsort(-logits, kind="stable")
        if 0 < rule.top_k < len(order):
            order = order[: rule.top_k]
        if rule.top_p < 1 or rule.min_p > 0:
            probability = np.exp((logits[order] - logits[order[0]]).astype(np.float64))
            probability /= probability.sum()
            kept = np.cumsum(probability) - probability < rule.top_p
            order = order[kept & (probability >= rule.min_p * probability[0])]
        return order


def gumbel(uniform: Floats) -> Floats:
    """Return standard Gumbel noise from numbers in [0, 1)."""
    return -np.log(-np.log(np.maximum(uniform, np.float32(1e-10))) + np.float32(1e-20))


def log_probabilities(logits_V: Floats, token: int, top: int) -> TokenLogprobs:
    """Return the token's natural log-probability and the `top` likeliest ids with theirs (ties to the lowest id)."""
    wide = logits_V.astype(np.float64)
    peak = wide.max()
    total = peak + np.log(np.exp(wide - peak).sum())
    likeliest: list[tuple[int, float]] = []
    if top:
        candidates = np.flatnonzero(wide >= np.partition(wide, -top)[-top]) if top < len(wide) else np.arange(len(wide))
        ordered = candidates[np.argsort(-wide[candidates], kind="stable")][:top]
        likeliest = [(int(i), float(wide[i] - total)) for i in ordered]
    return TokenLogprobs(token, float(wide[token] - total), tuple(likeliest))
