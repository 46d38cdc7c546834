"""Which answers run, and which of their tokens the next pass takes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from ..model.paged import BLOCK, PagedBatch, PagedCache
from .answer import Answer
from .cache import CacheBook, digests
from .settings import EngineSettings

_SCORED = 128  # prompt tokens a pass whose logits are all wanted


@dataclass(frozen=True)
class Part:
    """Tokens of one answer in a pass: `count` from its first uncached one, the draft among them where `drafted`."""

    answer: Answer
    start: int
    count: int
    drafted: bool
    first_row: int  # of its wanted logits
    num_rows: int


@dataclass(frozen=True)
class Pass:
    """What one pass runs."""

    parts: tuple[Part, ...]
    batch: PagedBatch


class Scheduler:
    """Waiting and running answers. Answers that decode go first; then prompts, in chunks, by arrival."""

    def __init__(self, settings: EngineSettings, cache: PagedCache, book: CacheBook) -> None:
        self.settings, self.cache, self.book = settings, cache, book
        self.waiting: deque[Answer] = deque()
        self.running: list[Answer] = []
        self.num_preempted = 0

    def next_pass(self) -> Pass | None:
        """Admit what fits and choose the tokens of the next pass; None where nothing runs."""
        self._admit()
        chosen, budget = list[tuple[Answer, int]](), self.settings.max_pass_tokens
        for answer in sorted(self.running, key=lambda a: a.pending > 1):  # stable: by admission
            if answer.slot is None:
                continue  # has stepped back meanwhile
            count = min(self._wanted(answer), budget)
            if count and self._make_room(answer, answer.cached + count):
                chosen.append((answer, count))
                budget -= count
        chosen = [(answer, count) for answer, count in chosen if answer.slot is not None]
        return _pass(chosen) if chosen else None

    def _wanted(self, answer: Answer) -> int:
        """Tokens that the answer would run now. A prompt's chunk ends where its state can be kept."""
        if answer.pending == 1:
            return 2 if answer.draft is not None else 1
        end = min(len(answer.tokens), answer.cached + self.settings.max_pass_tokens)
        if answer.scores_prompt:
            return min(end, answer.cached + _SCORED) - answer.cached
        boundary = (len(answer.tokens) - 1) // BLOCK * BLOCK
        if end == len(answer.tokens) and self.settings.prefix_cache and answer.cached < boundary:
            end = boundary
        elif end < len(answer.tokens) and end // BLOCK * BLOCK > answer.cached:
            end = end // BLOCK * BLOCK
        return end - answer.cached

    def _make_room(self, answer: Answer, tokens: int) -> bool:
        """Give the answer blocks for its first `tokens` tokens; the newest others step back where there is no room."""
        while len(answer.blocks) * BLOCK < tokens:
            block = self.book.take()
            if block is None:
                newest = self.running[-1]
                self.step_back(newest)
                if newest is answer:
                    return False
                continue
            answer.blocks.append(block)
        return True

    def step_back(self, answer: Answer) -> None:
        """Take an answer's place away; it waits first in line and is computed again."""
        self._leave(answer)
        answer.cached, answer.draft, answer.named = 0, None, 0
        self.waiting.appendleft(answer)
        self.num_preempted += 1

    def remove(self, answer: Answer) -> None:
        """Take a finished or aborted answer out, wherever it is."""
        if answer.slot is not None:
            self._leave(answer)
        elif answer in self.waiting:
            self.waiting.remove(answer)

    def _leave(self, answer: Answer) -> None:
        self.running.remove(answer)
        self.book.release(answer.blocks)
        assert answer.slot is not None
        self.book.slots.append(answer.slot)
        answer.slot, answer.blocks = None, []

    def _admit(self) -> None:
        while self.waiting and self.book.slots:
            answer = self.waiting[0]
            needed = -(-len(answer.tokens) // BLOCK) + (1 if self.running else 0)
            matched, snapshot = self._match(answer)
            if needed - len(matched) > self.book.available - sum(block in self.book.idle for block in matched):
                return
            self.waiting.popleft()
            answer.slot = self.book.slots.pop()
            if snapshot is not None:
                self.book.share(matched)
                self.cache.restore(snapshot, answer.slot)
                answer.blocks, answer.cached, answer.named = matched, len(matched) * BLOCK, len(matched)
                if not answer.num_new:
                    answer.hits = answer.cached
            self.running.append(answer)

    def _match(self, answer: Answer) -> tuple[list[int], int | None]:
        if not self.settings.prefix_cache or answer.scores_prompt:
            return [], None
        answer.digests = digests(answer.tokens[: len(answer.tokens) - 1], answer.digests)  # one token must be run
        return self.book.match(answer.digests)

    def fork(self, answer: Answer, sibling: Answer) -> bool:
        """Let a sibling go on from where the answer is; False where there is no room for it now."""
        whole, rest = divmod(answer.cached, BLOCK)
        if not self.book.slots or self.book.available < (1 if rest else 0):
            return False
        sibling.slot, sibling.cached, sibling.hits = self.book.slots.pop(), answer.cached, answer.hits
        sibling.blocks, sibling.digests, sibling.named = answer.blocks[:whole], list(answer.digests), answer.named
        self.book.share(sibling.blocks)
        if rest:
            block = self.book.take()
            assert block is not None
            self.cache.copy_block(answer.blocks[whole], block)
            sibling.blocks.append(block)
        assert answer.slot is not None
        self.cache.copy_slot(answer.slot, sibling.slot)
        self.running.append(sibling)
        return True

    def note_prefix(self, answer: Answer) -> None:
        """Name the blocks that have become full, and keep the state where the answer stands at a block's end."""
        if not self.settings.prefix_cache or answer.cached // BLOCK <= answer.named or answer.slot is None:
            return
        answer.digests = digests(answer.tokens[: answer.cached], answer.digests)
        whole = answer.cached // BLOCK
        for i in range(answer.named, whole):
            self.book.name(answer.blocks[i], answer.digests[i])
        answer.named = whole
        if answer.cached - whole * BLOCK <= 1:
            snapshot = self.book.keep_snapshot(answer.digests[whole - 1])
            if snapshot is not None:
                self.cache.save(answer.slot, snapshot)


def _pass(chosen: list[tuple[Answer, int]]) -> Pass:
    parts, ids, wanted, at = list[Part](), list[int](), list[int](), 0
    for answer, count in chosen:
        drafted = answer.pending == 1 and count == 2
        known = len(answer.tokens) - answer.cached
        ids += answer.tokens[answer.cached : answer.cached + count]
        if drafted:
            assert answer.draft is not None
            ids.append(answer.draft)
        rows = range(count) if answer.scores_prompt else range(known - 1, count)
        parts.append(Part(answer, answer.cached, count, drafted, len(wanted), len(rows)))
        wanted += [at + row for row in rows]
        at += count
    return Pass(tuple(parts), make_batch([(p.answer, p.start, p.count) for p in parts], ids, wanted))


def make_batch(spans: list[tuple[Answer, int, int]], ids: list[int], wanted: list[int],
               vocab: int | None = None) -> PagedBatch:
    """Return the batch of `count` tokens from `start` of each answer; logits of the first `vocab` ids (None: all)."""
    tables = np.zeros((len(spans), max(len(answer.blocks) for answer, _, _ in spans)), np.int32)
    for row, (answer, _, _) in zip(tables, spans, strict=True):
        row[: len(answer.blocks)] = answer.blocks
    def column(numbers: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.array(numbers, np.int64)

    return PagedBatch(column(ids), column([start for _, start, _ in spans]), column([count for _, _, count in spans]),
                      column([answer.slot or 0 for answer, _, _ in spans]), tables, column(wanted), vocab)
