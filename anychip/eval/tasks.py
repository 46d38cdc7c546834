"""Questions with one right answer: data that installs with anychip, a user's JSONL file, or lm-evaluation-harness.

`arithmetic` and `strings` are generated from a fixed seed; `books` takes passages from the held-out ends of the shipped
public-domain works. None was chosen by looking at a model's answers.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import InputError, nearest
from ..text import corpus

SIZE = 200  # questions of each own task
LETTERS = "ABCDEFGH"
HARNESS = "lm:"


@dataclass(frozen=True)
class Question:
    """What is asked. With `choices` the answer is one of their letters, else a whole number or a word.

    `verbatim`: the text says itself how to answer, and the task has its own judge.
    """

    id: str
    text: str
    answer: str
    choices: tuple[str, ...] = ()
    verbatim: bool = False

    @property
    def prompt(self) -> str:
        """The words that every system is sent: the question, its choices, and how to answer."""
        if self.verbatim:
            return self.text
        if self.choices:
            listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, self.choices, strict=False))
            return f"{self.text}\n{listed}\nAnswer with the letter of the right choice only."
        return f"{self.text}\nAnswer with the result only."


# Of a question and a reply: what was read in it (None: nothing) and whether it is right.
Judge = Callable[[Question, str], tuple[str | None, bool]]


@dataclass(frozen=True)
class Task:
    """Named questions. `source` says where they are from and under which licence; `judge` None: `answers.judge`."""

    name: str
    source: str
    questions: tuple[Question, ...]
    judge: Judge | None = None

    @property
    def digest(self) -> str:
        """Hash of everything that is asked and of the right answers."""
        asked = [{"id": each.id, "text": each.text, "answer": each.answer, "choices": each.choices}
                 for each in self.questions]
        text = json.dumps(asked, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def first(self, count: int | None) -> Task:
        """Return the task with its first `count` questions (None: all)."""
        return self if count is None else replace(self, questions=self.questions[:count])


def find_task(name: str, folder: Path | None = None) -> Task:
    """Return an own task by name, the harness's task `lm:NAME[:FILTER]`, or a JSONL file's.

    `folder` has task files for the harness. Raises InputError with the choices, or every faulty line.
    """
    if name in OWN:
        return OWN[name]()
    if name.startswith(HARNESS):
        from .harness import harness_task

        return harness_task(name.removeprefix(HARNESS), folder)
    path = Path(name)
    if path.suffix == ".jsonl" or path.exists():
        return read_task(path)
    raise InputError(f"there is no task {name!r}: choose of {', '.join(OWN)}, give a .jsonl file of questions, "
                     f"or {HARNESS}NAME for a task of lm-evaluation-harness."
                     + nearest(name, OWN))


def read_task(path: Path) -> Task:
    """Read questions, one JSON object a line: `question`, `answer`, and optionally `choices` (then `answer` is one of
    the choices or its letter) and `id`. Raises InputError that names every faulty line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as questions: {error}") from error
    problems: list[str] = []
    found = [question for number, line in enumerate(lines, 1) if line.strip()
             for question in _read_line(line, number, problems)]
    repeated = {question.id for question in found if sum(other.id == question.id for other in found) > 1}
    problems += [f"id {each!r} is used more than once" for each in sorted(repeated)]
    if problems or not found:
        raise InputError(f"{path} is no task: " + ("; ".join(problems[:20]) or "it has no question"))
    return Task(path.stem, f"{path.name}, the user's own", tuple(found))


def _read_line(line: str, number: int, problems: list[str]) -> list[Question]:
    try:
        entry: Any = json.loads(line)
    except ValueError as error:
        problems.append(f"line {number} is not JSON ({error})")
        return []
    fields = entry if isinstance(entry, dict) else {}
    text, answer, choices = fields.get("question"), fields.get("answer"), fields.get("choices", [])
    if not isinstance(text, str) or not isinstance(answer, str | int):
        problems.append(f"line {number} needs `question` (text) and `answer` (text or whole number)")
        return []
    if not isinstance(choices, list) or len(choices) > len(LETTERS) or not all(isinstance(c, str) for c in choices):
        problems.append(f"line {number}: `choices` must be a list of at most {len(LETTERS)} texts")
        return []
    right = str(answer)
    if choices:
        right = LETTERS[choices.index(right)] if right in choices else right
        if right not in LETTERS[: len(choices)]:
            problems.append(f"line {number}: answer {answer!r} is none of the choices")
            return []
    return [Question(str(fields.get("id", number)), text, right, tuple(choices))]


def _arithmetic() -> Task:
    draw = random.Random(20261124)
    questions: dict[str, Question] = {}
    while (i := len(questions)) < SIZE:
        digits = 2 + i % 3
        a, b = (draw.randrange(10 ** (digits - 1), 10**digits) for _ in range(2))
        sign = "+-*"[i // 3 % 3]
        b = b if sign != "*" else draw.randrange(3, 30)
        result = {"+": a + b, "-": a - b, "*": a * b}[sign]
        text = f"What is {a} {sign} {b}?"
        questions.setdefault(text, Question(f"arithmetic-{i}", text, str(result)))
    return Task("arithmetic", "generated", tuple(questions.values()))


def _strings() -> Task:
    draw = random.Random(11242026)
    words = _plain_words()
    return Task("strings", "generated over words of the shipped public-domain works",
                tuple(_string_question(i, draw, words) for i in range(SIZE)))


def _string_question(i: int, draw: random.Random, words: Sequence[str]) -> Question:
    word = draw.choice(words)
    letter = draw.choice(word)
    several = draw.sample(words, 4)
    kinds = [(f"Write the word '{word}' backwards.", word[::-1]),
             (f"How often does the letter '{letter}' occur in the word '{word}'?", str(word.count(letter))),
             (f"Which of these words comes first in the alphabet: {', '.join(several)}?", min(several)),
             (f"How many letters does the word '{word}' have?", str(len(word)))]
    text, answer = kinds[i % len(kinds)]
    return Question(f"strings-{i}", text, answer)


def _books() -> Task:
    draw = random.Random(41261120)
    works = corpus.works()
    pieces = {work.name: _sentences(work.text("validation")) for work in works}
    questions = []
    for i in range(SIZE):
        sentences = pieces[works[i % len(works)].name]
        at = draw.randrange(len(sentences) - 3)
        others = draw.sample([j for j in range(len(sentences)) if abs(j - at) > 3], 3)
        choices = [sentences[at + 2], *(sentences[j] for j in others)]
        draw.shuffle(choices)
        text = f"Which sentence comes next?\n{sentences[at]} {sentences[at + 1]}"
        questions.append(Question(f"books-{i}", text, LETTERS[choices.index(sentences[at + 2])], tuple(choices)))
    return Task("books", "held-out ends of the shipped public-domain works", tuple(questions))


def _sentences(text: str) -> list[str]:
    joined = re.sub(r"\s+", " ", text)
    return [part for part in re.split(r"(?<=[.?!]) ", joined) if 40 <= len(part) <= 240]


@lru_cache(maxsize=1)
def _plain_words() -> tuple[str, ...]:
    text = " ".join(work.text("validation") for work in corpus.works())
    return tuple(sorted(set(re.findall(r"\b[a-z]{5,10}\b", text))))


OWN: dict[str, Callable[[], Task]] = {"arithmetic": _arithmetic, "books": _books, "strings": _strings}
