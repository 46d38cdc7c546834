"""One answer in the making: its tokens, what of them is cached and where, and how its next token is drawn."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ..model.paged import BLOCK
from ..text.tokenizer import Tokenizer
from .request import FinishReason, Output, Request, TokenLogprobs
from .sampler import Floats, Sampler, log_probabilities
from .stream import Stream
from .structured import Matcher
from .text import AnswerText


@dataclass
class Answer:
    """Answer `index` of a request. `tokens` are the prompt's and its own; the first `cached` are in the cache.

    It has a slot and blocks while it runs, none while it waits. `draft` is the guessed token after the last one.
    """

    request: Request
    index: int
    stream: Stream
    tokenizer: Tokenizer
    most: int  # new tokens
    matcher: Matcher | None = None
    siblings: list[Answer] = field(default_factory=list)  # that fork from this one after the prompt
    cached: int = 0
    slot: int | None = None
    blocks: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    named: int = 0  # blocks whose prefix is noted
    draft: int | None = None
    hits: int = 0  # prompt tokens that the prefix cache held
    finished: bool = False
    submitted_s: float = field(default_factory=time.perf_counter)
    first_s: float | None = None
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)

    def __post_init__(self) -> None:
        rule, self.tokens = self.request.sampling, list(self.request.prompt_ids)
        self.num_prompt = len(self.tokens)
        self.sampler, self.text = Sampler(rule, self.index, self.tokens), AnswerText(self.tokenizer, rule.stop)
        self.ends = set(rule.stop_token_ids) | (set() if rule.ignore_eos else {self.tokenizer.eos_id})

    def check(self) -> None:
        """Raise AssertionError where the state contradicts itself."""
        assert 0 <= self.cached < len(self.tokens) or self.finished, "every running answer has a token to run"
        assert (self.slot is None) == (not self.blocks and not self.cached), "state without a place, or a place without"
        assert self.cached <= len(self.blocks) * BLOCK, "cached tokens without blocks"
        assert self.named <= len(self.digests) and self.named * BLOCK <= self.cached, "a block is named too early"

    @property
    def num_new(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def pending(self) -> int:
        """Tokens that are not cached yet: 1 while it decodes."""
        return len(self.tokens) - self.cached

    @property
    def scores_prompt(self) -> bool:
        """Whether the next pass must give the prompt's own log-probabilities."""
        return self.request.prompt_logprobs is not None and self.index == 0 and not self.num_new

    def draw(self, logits_V: Floats) -> int:
        """Return the token after `tokens`: the true one from the model's logits, a guess from the MTP block's.

        Both draw with the same noise, so a good guess is the very token.
        """
        rule = self.request.sampling
        early = self.num_new < rule.min_tokens
        if self.matcher is None:
            if self.sampler.greedy and not early:
                return int(logits_V.argmax())
            return self.sampler.draw(logits_V, len(self.tokens), None, sorted(self.ends) if early else ())
        allowed = self.matcher.allowed()
        if not len(allowed):  # the grammar grew beyond its limits
            return self.tokenizer.eos_id
        return self.sampler.draw(logits_V, len(self.tokens), allowed)

    def accept(self, token: int, logits_V: Floats) -> Output:
        """Add a token and return what the reader gets; `finished` tells whether it was the last."""
        rule = self.request.sampling
        self.tokens.append(token)
        self.sampler.accept(token)
        if self.first_s is None:
            self.first_s = time.perf_counter()
        text, reason, stop = self._judge(token)
        self.finished = reason is not None
        scores = None if rule.logprobs is None else log_probabilities(logits_V, token, rule.logprobs)
        first = self.num_new == 1
        return Output(self.index, token, text, scores, reason, stop, self.hits if first else 0,
                      tuple(self.prompt_logprobs) if first and self.scores_asked else None)

    def _judge(self, token: int) -> tuple[str, FinishReason | None, str | int | None]:
        """The text to show, and why the answer ends here if it does."""
        long_enough = self.num_new >= self.request.sampling.min_tokens
        if token in self.ends and (long_enough or self.matcher is not None):
            return self.text.rest(), "stop", None if token == self.tokenizer.eos_id else token
        piece = self.text.add(token)
        if self.text.stopped is not None:
            return piece, "stop", self.text.stopped
        if self.matcher is not None:
            if not self.matcher.consume(token):
                return piece + self.text.rest(), "abort", None
            if self.matcher.finished:
                return piece + self.text.rest(), "stop", None
        if self.num_new >= self.most:
            return piece + self.text.rest(), "length", None
        return piece, None, None

    @property
    def scores_asked(self) -> bool:
        return self.request.prompt_logprobs is not None and self.index == 0
