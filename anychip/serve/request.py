"""What is asked of the engine and what it gives back: `Sampling`, `Request`, `Output`, and the two refusals.

All three are frozen and checked when they are made; every reason why one cannot be used is named at once.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..errors import AnychipError, InputError

FinishReason = Literal["stop", "length", "abort"]
MAX_LOGPROBS = 64  # top log-probabilities a token may carry


class Busy(AnychipError):
    """The engine's queue is full: try again after about `retry_after_s` seconds (HTTP 429)."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineError(RuntimeError):
    """The engine failed or was stopped while a request was in flight (HTTP 503). A bug's own error is its cause."""


@dataclass(frozen=True)
class Grammar:
    """What the text must be: `kind` json_schema (`text` is the schema as JSON), json (any object), regex or lark."""

    kind: Literal["json_schema", "json", "regex", "lark"]
    text: str = ""

    def __post_init__(self) -> None:
        kinds = ("json_schema", "json", "regex", "lark")
        if self.kind not in kinds:
            raise InputError(f"grammar kind {self.kind!r}: choose one of {', '.join(kinds)}")


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn and when to end. Defaults are the publisher's (temperature 1, top_p 1).

    In this order: `logit_bias` is added, penalties are taken (`repetition_penalty` divides or multiplies the logits of
    tokens in the prompt or the answer; `frequency_penalty` times their count in the answer and `presence_penalty` once
    are subtracted), the grammar masks, then temperature (0: greedy), `top_k` (0: all), `top_p` (fewest likeliest tokens
    whose probabilities sum to at least that), `min_p` (share of the likeliest one's probability).

    `seed` None draws one afresh; the same seed gives the same tokens whatever else is in the batch. `logprobs` None:
    none; k: each output carries its own and the k likeliest, from the logits before bias and penalties (temperature 1).
    `stop` strings are not part of the text. `stop_token_ids` and the end token (unless `ignore_eos`) end an answer too,
    and do not come before `min_tokens`, unless a grammar leaves nothing else. `max_tokens` None: as many as the context
    holds. `n` answers share the prompt.
    Raises InputError, with all reasons, for values out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = 0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    n: int = 1
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        problems = [text for holds, text in self._rules() if not holds]
        if problems:
            raise InputError("cannot sample: " + "; ".join(problems))

    def _rules(self) -> list[tuple[bool, str]]:
        logprobs = self.logprobs or 0
        return [
            (0 <= self.temperature < math.inf, f"temperature={self.temperature} must be 0 (greedy) or above"),
            (0 < self.top_p <= 1, f"top_p={self.top_p} must be above 0 and at most 1"),
            (self.top_k >= 0, f"top_k={self.top_k} must be 0 (all) or above"),
            (0 <= self.min_p <= 1, f"min_p={self.min_p} must be from 0 to 1"),
            (abs(self.presence_penalty) <= 2, f"presence_penalty={self.presence_penalty} must be from -2 to 2"),
            (abs(self.frequency_penalty) <= 2, f"frequency_penalty={self.frequency_penalty} must be from -2 to 2"),
            (0 < self.repetition_penalty < math.inf, f"repetition_penalty={self.repetition_penalty} must be above 0"),
            (all(-100 <= value <= 100 for value in self.logit_bias.values()), "logit_bias must be from -100 to 100"),
            (0 <= logprobs <= MAX_LOGPROBS, f"logprobs={self.logprobs} must be from 0 to {MAX_LOGPROBS}"),
            (self.max_tokens is None or self.max_tokens >= 1, f"max_tokens={self.max_tokens} must be at least 1"),
            (self.min_tokens >= 0, f"min_tokens={self.min_tokens} must be 0 or above"),
            (all(self.stop), "stop has an empty string"),
            (1 <= self.n <= 128, f"n={self.n} must be from 1 to 128"),
        ]


@dataclass(frozen=True)
class Request:
    """One prompt and how to continue it. `request_id` must be its own among those in flight.

    `prompt_logprobs` None: none; k: the first output carries, for each prompt token but the first, its log-probability
    and the k likeliest (the prompt's prefix is then computed even where it is cached).
    """

    prompt_ids: tuple[int, ...]
    sampling: Sampling = Sampling()
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt_ids", tuple(self.prompt_ids))
        problems = []
        if not self.prompt_ids:
            problems.append("the prompt is empty: give at least one token")
        if not 0 <= (self.prompt_logprobs or 0) <= MAX_LOGPROBS:
            problems.append(f"prompt_logprobs={self.prompt_logprobs} must be from 0 to {MAX_LOGPROBS}")
        if problems:
            raise InputError("cannot generate: " + "; ".join(problems))


@dataclass(frozen=True)
class TokenLogprobs:
    """One token's natural log-probability, and the likeliest tokens with theirs, likeliest first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Output:
    """One step of one answer. An answer's texts, joined, are its whole text.

    `token_id` is None where no token was made (an abort). `text` is what this token completes: text that may turn out
    to be the start of a stop string, or half a character, is held back. Exactly one output of each answer has a
    `finish_reason`, its last; `stop` is the string or token id that ended it, None where it was the end token.
    """

    index: int
    token_id: int | None
    text: str
    logprobs: TokenLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop: str | int | None = None
    cached_tokens: int = 0  # of the prompt, taken from the prefix cache
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None  # with the first output of answer 0
