"""What OpenAI-compatible servers answer with log-probabilities, in the forms that are in use, as numbers by token id.

A row is the distribution that predicts one token: {token id: log-probability}. Forms: vLLM's `prompt_logprobs` (ids as
keys), the legacy `logprobs` (lists `token_logprobs` and `top_logprobs` by text, with `echo` for the prompt too), and
`logprobs.content` as in chat (llama.cpp adds ids).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from ..text.tokenizer import Tokenizer

Row = dict[int, float]
_AS_ID = "token_id:"  # how vLLM writes a token when asked to give ids


class Vocabulary:
    """Token texts to ids; a text that several tokens share, or that is part of a character, has none."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def _ids(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for index in range(self._tokenizer.vocab_size):
            text = self._tokenizer.decode([index])
            found[text] = -1 if text in found or "\ufffd" in text else index
        return found

    def id_of(self, text: str) -> int | None:
        """Return a token's id, or None where its text does not tell."""
        if text.startswith(_AS_ID):
            return int(text.removeprefix(_AS_ID))
        index = self._ids.get(text, -1)
        return None if index < 0 else index

    def row(self, entries: Iterable[tuple[str, float]]) -> Row:
        """Return a row of (text, log-probability) pairs, without those whose id is not known."""
        return {index: value for text, value in entries if (index := self.id_of(text)) is not None}


def prompt_rows(choice: dict[str, Any], num_tokens: int, vocabulary: Vocabulary) -> list[Row] | None:
    """Return the rows that predict prompt tokens 1 .. num_tokens - 1 and the first generated one.

    None where the answer holds no log-probabilities of the prompt.
    """
    given = choice.get("prompt_logprobs")
    if isinstance(given, list) and len(given) == num_tokens:
        rows = [{int(index): float(entry["logprob"]) for index, entry in (each or {}).items()} for each in given[1:]]
        return [*rows, *generated_rows(choice, vocabulary)[:1]]
    logprobs = choice.get("logprobs") or {}
    if isinstance(logprobs.get("token_logprobs"), list) and len(logprobs["token_logprobs"]) >= num_tokens > 1:
        return _legacy(logprobs, vocabulary)[1 : num_tokens + 1]
    return None


def generated_rows(choice: dict[str, Any], vocabulary: Vocabulary) -> list[Row]:
    """Return the rows that predict the generated tokens; empty where the answer has no log-probabilities."""
    logprobs = choice.get("logprobs") or {}
    if isinstance(logprobs.get("content"), list):
        return [_content(entry, vocabulary) for entry in logprobs["content"]]
    return _legacy(logprobs, vocabulary) if isinstance(logprobs.get("token_logprobs"), list) else []


def _content(entry: dict[str, Any], vocabulary: Vocabulary) -> Row:
    entries: Sequence[dict[str, Any]] = [entry, *(entry.get("top_logprobs") or [])]
    with_ids = {int(each["id"]): float(each["logprob"]) for each in entries if "id" in each}
    return with_ids or vocabulary.row((each["token"], float(each["logprob"])) for each in entries)


def _legacy(logprobs: dict[str, Any], vocabulary: Vocabulary) -> list[Row]:
    tops = logprobs.get("top_logprobs") or [None] * len(logprobs["token_logprobs"])
    rows = []
    for text, value, top in zip(logprobs["tokens"], logprobs["token_logprobs"], tops, strict=True):
        entries = list((top or {}).items()) + ([] if value is None else [(text, value)])
        rows.append(vocabulary.row((name, float(number)) for name, number in entries))
    return rows
