"""Tokens as clients see them: text, bytes, and log-probabilities in the forms of both of OpenAI's endpoints."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from ...text.tokenizer import Tokenizer
from ..request import TokenLogprobs


class TokenTexts:
    """The text and bytes of a tokenizer's tokens, made at first use."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def _bytes(self) -> list[bytes]:
        letters, size = _letters(), self._tokenizer.vocab_size
        pieces = [self._tokenizer.piece(i) for i in range(size)]
        special = {i for i in range(size) if any(letter not in letters for letter in pieces[i])}
        return [pieces[i].encode() if i in special or self._tokenizer.is_special(i)
                else bytes(letters[letter] for letter in pieces[i]) for i in range(size)]

    def raw(self, token_id: int) -> bytes:
        """Return a token's bytes; none for an id that the model has and the tokenizer lacks."""
        return self._bytes[token_id] if token_id < len(self._bytes) else b""

    def text(self, token_id: int, as_id: bool = False) -> str:
        """Return a token's text (U+FFFD where it is part of a character), or `token_id:N` where that is asked for."""
        return f"token_id:{token_id}" if as_id else self.raw(token_id).decode("utf-8", "replace")

    def chat_entry(self, found: TokenLogprobs, as_id: bool) -> dict[str, Any]:
        """Return an entry of a chat's logprobs.content. `id` is this server's addition."""
        return self._entry(found.token_id, found.logprob, as_id) | {
            "top_logprobs": [self._entry(token, value, as_id) for token, value in found.top]}

    def _entry(self, token: int, value: float, as_id: bool) -> dict[str, Any]:
        return {"id": token, "token": self.text(token, as_id), "logprob": _finite(value),
                "bytes": list(self.raw(token))}

    def legacy(self, found: list[TokenLogprobs | None], tokens: list[int], first_offset: int,
               as_id: bool) -> dict[str, Any]:
        """Return a completion's logprobs, parallel lists over `tokens`; None in `found` for a prompt's first token."""
        offsets, offset = [], first_offset
        for token in tokens:
            offsets.append(offset)
            offset += len(self.text(token))
        return {"tokens": [self.text(token, as_id) for token in tokens], "text_offset": offsets,
                "token_logprobs": [None if each is None else _finite(each.logprob) for each in found],
                "top_logprobs": [None if each is None else self._top(each, as_id) for each in found]}

    def _top(self, found: TokenLogprobs, as_id: bool) -> dict[str, float]:
        top: dict[str, float] = {}
        for token, value in found.top:
            top.setdefault(self.text(token, as_id), _finite(value))  # tokens of equal text: the likeliest stands
        return top

    def prompt_rows(self, found: tuple[TokenLogprobs, ...]) -> list[dict[str, Any] | None]:
        """Return a prompt's log-probabilities by token id, None for its first token."""
        rows: list[dict[str, Any] | None] = [None]
        for each in found:
            entries = dict(each.top) | {each.token_id: each.logprob}
            rows.append({str(token): {"logprob": _finite(value), "decoded_token": self.text(token)}
                         for token, value in entries.items()})
        return rows


def _finite(value: float) -> float:
    """JSON has no infinity: a token that cannot come has -9999, as OpenAI's server writes it."""
    return max(value, -9999.0)


def _letters() -> dict[str, int]:
    """Byte-level BPE's letter of each byte: printable ones stand for themselves, the rest from U+0100 on, in order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    found = {chr(byte): byte for byte in plain}
    rest = [byte for byte in range(256) if byte not in set(plain)]
    return found | {chr(256 + i): byte for i, byte in enumerate(rest)}
