"""The engine's inside, used by its thread alone: requests in, one pass a step, outputs to their streams."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from statistics import median

import numpy as np
import torch
from torch import Tensor

from ..chips import Chip
from ..errors import ConfigError, InputError
from ..model import Transformer
from ..model.paged import BLOCK, PagedCache
from ..model.paged_pass import run_draft, run_pass
from ..text.tokenizer import Tokenizer
from .answer import Answer
from .cache import CacheBook
from .request import Output, Request
from .sampler import Floats, log_probabilities
from .scheduler import Part, Pass, Scheduler, make_batch
from .settings import EngineSettings, EngineStats
from .stream import Stream
from .structured import Grammars, Matcher

# Drafts are of the first ids, a BPE's commonest: a head over all costs more than it finds. Greedy answers need fewer.
_DRAFTED, _DRAWN = 1 / 4, 1 / 2
_RECENT, _RATE_S = 256, 10.0  # finished answers that medians are over; seconds that rates are over


class Worker:
    """Answers that wait and run, on one model and one cache."""

    def __init__(self, model: Transformer, chip: Chip, tokenizer: Tokenizer, settings: EngineSettings) -> None:
        if settings.speculate and not model.mtp:
            raise ConfigError("speculate needs a model with an MTP block; this one has num_nextn_predict_layers=0")
        self.model, self.chip, self.tokenizer, self.settings = model, chip, tokenizer, settings
        num_blocks = -(-settings.cache_tokens // BLOCK)
        self.max_context = min(model.config.max_position_embeddings, num_blocks * BLOCK)
        snapshots = min(num_blocks, 2 * settings.max_batch) if settings.prefix_cache else 0
        self.cache = PagedCache(
            model.config, num_blocks=num_blocks, num_slots=settings.max_batch, num_snapshots=snapshots,
            max_tokens=self.max_context, device=chip.device, format=settings.cache_format)
        self.book = CacheBook(num_blocks, settings.max_batch, snapshots)
        self.scheduler = Scheduler(settings, self.cache, self.book)
        self.grammars = Grammars(tokenizer, model.config.vocab_size)
        self._open: dict[str, list[Answer]] = {}
        self._started, self._counts = time.perf_counter(), defaultdict[str, int](int)
        self._steps: deque[tuple[float, int]] = deque()
        self._ttft, self._tpot = deque[float](maxlen=_RECENT), deque[float](maxlen=_RECENT)

    def check(self, request: Request) -> Matcher | None:
        """Return its grammar, compiled. Raises InputError where it can never be answered. Called by any thread."""
        rule, problems, length = request.sampling, [], len(request.prompt_ids)
        vocab = self.model.config.vocab_size
        named = (*request.prompt_ids, *rule.logit_bias, *rule.stop_token_ids)
        outside = [token for token in named if not 0 <= token < vocab]
        if outside:
            problems.append(f"the request names token {outside[0]}, the model's ids are 0 to {vocab - 1}: use the "
                            "tokenizer that belongs to it")
        if length + (rule.max_tokens or 1) > self.max_context:
            problems.append(f"the prompt has {length} tokens and {rule.max_tokens or 1} new ones were asked for; "
                            f"at most {self.max_context} fit here together: shorten the prompt or ask for fewer")
        if problems:
            raise InputError("cannot generate: " + "; ".join(problems))
        return None if rule.grammar is None else self.grammars.matcher(rule.grammar)

    @property
    def num_waiting(self) -> int:
        return len(self.scheduler.waiting)

    @property
    def has_work(self) -> bool:
        return bool(self.scheduler.waiting or self.scheduler.running)

    def wait_estimate_s(self) -> float:
        """Seconds after which a refused request should be tried again: about when the next answer ends."""
        return max(1.0, (median(self._ttft) if self._ttft else 1.0))

    def add(self, request: Request, stream: Stream, matcher: Matcher | None = None) -> None:
        """Put a request's answers in line, with what `check` gave; all but the first fork from it once the prompt is
        read."""
        rule = request.sampling
        most = min(rule.max_tokens or self.max_context, self.max_context - len(request.prompt_ids))
        matchers = [matcher.fork() if matcher is not None and i else matcher for i in range(rule.n)]
        answers = [Answer(request, i, stream, self.tokenizer, most, matchers[i]) for i in range(rule.n)]
        answers[0].siblings = answers[1:]
        self._open[request.request_id] = answers
        self.scheduler.waiting.append(answers[0])
        self._counts["prompt"] += len(request.prompt_ids)

    def abort(self, request_id: str) -> list[str]:
        """End a request; return the ids that are finished by it."""
        answers = self._open.pop(request_id, [])
        for answer in answers:
            self.scheduler.remove(answer)
        if answers:
            left = [answer for answer in answers if not answer.finished]
            answers[0].stream.put([Output(answer.index, None, "", finish_reason="abort") for answer in left])
            self._counts["aborted"] += 1
        return [request_id] if answers else []

    def step(self) -> list[str]:
        """Run one pass; return the ids of requests that are finished."""
        chosen = self.scheduler.next_pass()
        if chosen is None:
            return []
        result = run_pass(self.model, self.cache, chosen.batch)
        logits = result.logits_RV.float().cpu().numpy()
        outputs: dict[Stream, list[Output]] = defaultdict(list)
        for part in chosen.parts:
            outputs[part.answer.stream] += self._advance(part, logits[part.first_row : part.first_row + part.num_rows])
        if self.settings.speculate:
            self._draft(chosen, result.streams_Tnd)
        for stream, new in outputs.items():
            stream.put(new)
        return self._finish(sum(len(new) for new in outputs.values()))

    def _advance(self, part: Part, logits_RV: Floats) -> list[Output]:
        """Draw what a part's logits decide, and note what is cached now."""
        answer, outputs = part.answer, list[Output]()
        if answer.scores_prompt:
            self._score_prompt(answer, part, logits_RV)
            logits_RV = logits_RV[-1:]
        if part.start + part.count < len(answer.tokens):  # the prompt goes on
            answer.cached += part.count
            self.scheduler.note_prefix(answer)
            return outputs
        answer.cached = len(answer.tokens)
        guess, answer.draft = answer.draft, None
        forked = self._fork(answer, logits_RV[-1]) if answer.siblings else []
        outputs.append(self._draw(answer, logits_RV[0]))
        if part.drafted:
            self._counts["drafted"] += 1
            if guess == answer.tokens[-1]:
                self._counts["accepted"] += 1
                if not answer.finished:
                    answer.cached = len(answer.tokens)
                    outputs.append(self._draw(answer, logits_RV[1]))
        self.scheduler.note_prefix(answer)
        return outputs + forked

    def _draw(self, answer: Answer, logits_V: Floats) -> Output:
        return answer.accept(answer.draw(logits_V), logits_V)

    def _fork(self, answer: Answer, logits_V: Floats) -> list[Output]:
        """Start the siblings from the state after the prompt; those without room wait in line."""
        outputs, siblings = list[Output](), answer.siblings
        answer.siblings = []
        for sibling in siblings:
            if self.scheduler.fork(answer, sibling):
                outputs.append(self._draw(sibling, logits_V))
            else:
                self.scheduler.waiting.appendleft(sibling)
        return outputs

    def _score_prompt(self, answer: Answer, part: Part, logits_RV: Floats) -> None:
        top = answer.request.prompt_logprobs or 0
        for i, row in enumerate(logits_RV, part.start + 1):
            if i < answer.num_prompt:
                answer.prompt_logprobs.append(log_probabilities(row, answer.tokens[i], top))

    def _draft(self, done: Pass, streams_Tnd: Tensor) -> None:
        """Run the MTP block over the tokens that are cached now, and guess the token after each answer's last one."""
        spans, ids, rows, guessing, at = list[tuple[Answer, int, int]](), list[int](), list[int](), list[int](), 0
        for part in done.parts:
            answer, count = part.answer, part.answer.cached - part.start
            if answer.slot is not None and not answer.finished:
                spans.append((answer, part.start, count))
                ids += answer.tokens[part.start + 1 : part.start + count + 1]
                rows += range(at, at + count)
                if answer.pending == 1:
                    guessing.append(len(ids) - 1)
            at += part.count
        if not spans:
            return
        if len(rows) < len(streams_Tnd):
            first = rows[-1] == len(rows) - 1
            kept = slice(len(rows)) if first else torch.tensor(rows, device=streams_Tnd.device)
            streams_Tnd = streams_Tnd[kept]
        guessers = [answer for answer, _, _ in spans if answer.pending == 1]
        share = _DRAFTED if all(answer.request.sampling.temperature == 0 for answer in guessers) else _DRAWN
        batch = make_batch(spans, ids, guessing, int(share * self.model.config.vocab_size))
        found = run_draft(self.model, self.cache, batch, streams_Tnd).float().cpu().numpy()
        for answer, row in zip(guessers, found, strict=True):
            if answer.most - answer.num_new > 1 and len(answer.tokens) + 1 < self.max_context:
                logits = np.full(self.model.config.vocab_size, -np.inf, np.float32)
                logits[: len(row)] = row
                answer.draft = answer.draw(logits)

    def _finish(self, num_new: int) -> list[str]:
        now, ended = time.perf_counter(), list[str]()
        self._counts["new"] += num_new
        self._steps.append((now, num_new))
        while now - self._steps[0][0] > _RATE_S:
            self._steps.popleft()
        for answer in [answer for answer in self.scheduler.running if answer.finished]:
            self._measure(answer, now)
            self.scheduler.remove(answer)
            request_id = answer.request.request_id
            if request_id in self._open and all(other.finished for other in self._open[request_id]):
                del self._open[request_id]
                ended.append(request_id)
        self._counts["finished"] += len(ended)
        return ended

    def _measure(self, answer: Answer, now: float) -> None:
        self._counts["cached"] += answer.hits if answer.index == 0 else 0
        if answer.first_s is not None:
            self._ttft.append(answer.first_s - answer.submitted_s)
            if answer.num_new > 1:
                self._tpot.append((now - answer.first_s) / (answer.num_new - 1))

    def stats(self, queued: int, failed: str | None) -> EngineStats:
        """Return counts, sizes and rates. Called by any thread."""
        counts, steps, now = self._counts, list(self._steps), time.perf_counter()
        span = min(_RATE_S, now - self._started)
        rate = sum(new for at, new in steps if now - at <= _RATE_S) / span if span else 0.0
        ttft, tpot = list(self._ttft), list(self._tpot)
        return EngineStats(
            self.num_waiting + queued, len(self.scheduler.running), counts["finished"], counts["aborted"],
            self.scheduler.num_preempted, counts["prompt"], counts["cached"], counts["new"], counts["drafted"],
            counts["accepted"], self.book.num_blocks, self.book.num_blocks - self.book.available, self.cache.nbytes,
            rate, median(ttft) if ttft else None, median(tpot) if tpot else None, now - self._started, failed)
