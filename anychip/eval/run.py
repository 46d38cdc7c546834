"""Asking systems the questions of tasks: in parallel, each reply kept at once, cut-off runs taken up again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from ..errors import AnychipError
from .answers import judge
from .replies import Replies, Reply, key_of
from .systems import Rejected, System, Unanswered
from .tasks import Question, Task


class Incomplete(AnychipError):
    """Some questions got no reply. What was answered is kept: run the same command again to go on."""


@dataclass(frozen=True)
class Answered:
    """One question with a system's reply. `answer` is what was read in it, None where nothing was."""

    question: Question
    reply: Reply
    answer: str | None
    right: bool
    kept: bool  # taken from an earlier run, not asked (and paid) again


@dataclass(frozen=True)
class TaskRun:
    """One system on one task, in the task's order."""

    system: str
    task: Task
    answers: tuple[Answered, ...]

    @property
    def right(self) -> list[bool]:
        """Which questions were answered right."""
        return [answer.right for answer in self.answers]

    def tokens(self, *, asked_only: bool = False) -> tuple[int, int] | None:
        """Return the (input, output) tokens of all replies, or of those asked in this run; None where not told."""
        replies = [each.reply for each in self.answers if not (asked_only and each.kept)]
        if any(reply.input_tokens is None or reply.output_tokens is None for reply in replies):
            return None
        return (sum(reply.input_tokens or 0 for reply in replies), sum(reply.output_tokens or 0 for reply in replies))


def run_task(system: System, task: Task, replies: Replies,
             report: Callable[[int, int, str], None] = lambda done, total, note: None) -> TaskRun:
    """Return the system's answers to every question of a task; kept replies are not asked for again.

    Raises Rejected at the first request that can never succeed, and Incomplete, after all others were tried, where
    some got no reply. Replies that came are kept in both cases.
    """
    identity = system.identity
    keys = [key_of(identity, question.prompt) for question in task.questions]
    found = {key: reply for key in keys if (reply := replies.get(key)) is not None}
    kept = set(found)
    missing = {key: question for key, question in zip(keys, task.questions, strict=True) if key not in found}
    report(len(keys) - len(missing), len(keys), "")
    failed = _ask_all(system, missing, (replies, found),
                      lambda: report(sum(key in found for key in keys), len(keys), ""))
    if failed:
        raise Incomplete(f"{system.name} answered {len(keys) - len(failed)} of {len(keys)} questions of {task.name}; "
                         f"they are kept. Run the same command again for the rest. First reason: {failed[0]}")
    read = task.judge or judge
    return TaskRun(system.name, task, tuple(
        Answered(question, found[key], *read(question, found[key].text), key in kept)
        for key, question in zip(keys, task.questions, strict=True)))


def _ask_all(system: System, missing: dict[str, Question], books: tuple[Replies, dict[str, Reply]],
             advance: Callable[[], None]) -> list[Unanswered]:
    """Ask every missing question; return why some got no reply. Raises Rejected, and any error that is a bug.

    The thread that sees such an error ends the asking itself: from then on only what is under way is finished.
    """
    replies, found = books
    name = str(system.identity)
    over = threading.Event()

    def one(key: str, question: Question) -> Unanswered | None:
        if over.is_set():
            return None
        try:
            reply = system.ask(question)
            replies.put(key, name, question.id, reply)
            found[key] = reply
            advance()
        except Unanswered as error:
            return error
        except BaseException:
            over.set()
            raise
        return None

    with ThreadPoolExecutor(system.parallel) as pool:
        futures = [pool.submit(one, key, question) for key, question in missing.items()]
        try:
            wait(futures)
        finally:
            over.set()  # an interrupt of the wait ends the asking too
    return _failures(futures)


def _failures(futures: Sequence[Future[Unanswered | None]]) -> list[Unanswered]:
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in errors:
        if not isinstance(error, Rejected):
            raise error
    if errors:
        raise errors[0]
    return [reason for future in futures if (reason := future.result()) is not None]
