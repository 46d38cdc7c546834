"""What a reply says: one fixed reading of any system's words, the same for all."""

from __future__ import annotations

import re

from .tasks import LETTERS, Question

_NUMBER = re.compile(r"-?\d+(?:,\d{3})*")


def read_answer(reply: str, question: Question) -> str | None:
    """Return the answer in a reply: a choice's letter, the last whole number, or the last word; None if there is none.

    A letter counts where it stands alone: the first after the word `answer`, else the only one, else the last line's.
    """
    text = reply.strip()
    if question.choices:
        return _letter(text, len(question.choices))
    if _NUMBER.fullmatch(question.answer):
        found = _NUMBER.findall(text.replace("−", "-"))
        return found[-1].replace(",", "") if found else None
    words = re.findall(r"[^\W\d_]+", text)
    return words[-1].lower() if words else None


def judge(question: Question, reply: str) -> tuple[str | None, bool]:
    """Return the answer in a reply, and whether it is the right one."""
    found = read_answer(reply, question)
    return found, found is not None and found == (question.answer if question.choices else question.answer.lower())


def _letter(text: str, count: int) -> str | None:
    alone = rf"(?<![\w'])([{LETTERS[:count]}])(?![\w'])"
    after = re.search(rf"answer\b[^A-H\n]*{alone}", text, re.IGNORECASE)
    if after and after[1].isupper():
        return after[1]
    found = re.findall(alone, text)
    if len(set(found)) == 1:
        return str(found[0])
    last = re.findall(alone, text.splitlines()[-1]) if text else []
    return str(last[0]) if len(set(last)) == 1 else None
