"""Text from tokens as they come: whole characters only, cut before a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from ..text.tokenizer import Tokenizer

_LONGEST = 4  # tokens that one character's bytes may be spread over


class AnswerText:
    """Turns one answer's token ids into text pieces. What may yet become a stop string is held back."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids = list[int]()  # whose bytes are not whole characters yet
        self._held = ""
        self.stopped: str | None = None  # the stop string that was met

    def add(self, token: int) -> str:
        """Return the text that may be shown now. After a stop string (see `stopped`) nothing comes any more."""
        if self.stopped is not None:
            return ""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        if text.endswith("\ufffd") and len(self._ids) < _LONGEST:
            return ""
        self._ids.clear()
        return self._release(self._held + text)

    def rest(self) -> str:
        """Return what is still held back, at the end of an answer that no stop string ended."""
        if self.stopped is not None:
            return ""
        text = self._held + (self._tokenizer.decode(self._ids) if self._ids else "")
        self._ids.clear()
        shown, self._held = self._release(text), ""
        return shown + self._tail(text, shown)

    def _tail(self, text: str, shown: str) -> str:
        return "" if self.stopped is not None else text[len(shown):]

    def _release(self, text: str) -> str:
        if not self._stop:
            return text
        found = min(((at, stop) for stop in self._stop if (at := text.find(stop)) >= 0), default=None)
        if found is not None:
            self.stopped, self._held = found[1], ""
            return text[: found[0]]
        keep = max((n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self._held = text[len(text) - keep:] if keep else ""
        return text[: len(text) - keep]
