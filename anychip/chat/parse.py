"""A completion's text, as it comes, to reasoning, content and tool calls.

However the text is cut into pieces, the deltas add up to the same. A call is given whole, when its end is seen, so what
a client gets is always a call with valid JSON arguments. Text that begins like a call but is not one (or breaks off
within one) becomes content, byte for byte, from the first byte that belongs to no whole call, and `malformed` says why.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .layout import END_THINK, THINK
from .reader import SPACE, Malformed, Reader, Steps
from .syntax import V4, Syntax


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool: which one of the completion (from 0), its name, its arguments as a JSON object's text."""

    index: int
    name: str
    arguments: str


@dataclass(frozen=True)
class Delta:
    """What a piece of text added: to the reasoning, or to the content, or one call."""

    reasoning: str = ""
    content: str = ""
    call: ToolCall | None = None


@dataclass(frozen=True)
class Completion:
    """A whole completion. `malformed` says what in it only looked like a call, None where nothing did."""

    reasoning: str
    content: str
    calls: tuple[ToolCall, ...]
    malformed: str | None


class ChatParser:
    """Takes a completion's text piece by piece: `feed` each, then `finish`, and use the deltas they return.

    thinking: the prompt ended with `<think>`, so the text begins with reasoning. calls: look for calls of tools; else
    they are content. A block of calls ends the reasoning, even without `</think>`. The syntax's end texts (V4: the
    end-of-sentence token) end the completion, wherever they are; what follows is ignored. tools: the tools that may be
    called, in OpenAI's form; GLM's calls do not say themselves what is a string.
    """

    def __init__(self, *, thinking: bool = False, calls: bool = True, syntax: Syntax = V4,
                 tools: Sequence[Mapping[str, Any]] = ()) -> None:
        self.malformed: str | None = None
        self.num_calls = 0
        self.in_reasoning, self.syntax = thinking, syntax
        self._blocks = {syntax.block: syntax.before} if calls else {}
        self._types = _types(tools)
        self._text, self._at = "", 0
        self.whole, self._done = False, False
        self._found: list[Delta] = []
        self._steps = self._run()
        next(self._steps)

    def feed(self, text: str) -> list[Delta]:
        """Return what `text` adds. Text that may be the start of a tag is held back."""
        if self._done:
            return []
        held = len(self._text) - self._at
        self._text, self._at = self._text[self._at:] + text, 0
        found = [self._text.find(end, max(0, held - len(end) + 1)) for end in self.syntax.ends]
        if any(place >= 0 for place in found):
            self._text, self.whole = self._text[:min(place for place in found if place >= 0)], True
        return self._advance()

    def finish(self) -> list[Delta]:
        """Return what was held back: the completion ends here."""
        if self._done:
            return []
        self.whole = True
        return self._advance()

    @property
    def rest(self) -> str:
        """The text that has not been given out yet."""
        return self._text[self._at:]

    def _advance(self) -> list[Delta]:
        try:
            next(self._steps)
        except StopIteration:
            self._done = True
        found, self._found = self._found, []
        return found

    def _run(self) -> Steps:
        """Read the completion, pausing where more text is needed."""
        yield
        pad = self.syntax.pad
        if self.in_reasoning:
            yield from self._skip(pad)
        elif self.syntax.opens:
            yield from self._open()
        while True:
            marks = {END_THINK: pad, **self._blocks} if self.in_reasoning else self._blocks
            mark = yield from self._copy(marks, self.in_reasoning)
            if not mark:
                return
            if mark == END_THINK:
                self.in_reasoning = False
                yield from self._skip(pad)
            elif (yield from self._block(self.in_reasoning)):
                self.in_reasoning = False

    def _open(self) -> Steps:
        """Pass over the `<think>` that the answer begins with, if it does."""
        while not self.whole and (not (begun := self.rest.lstrip(SPACE)) or (
                begun != THINK and THINK.startswith(begun))):
            yield
        begun = self.rest.lstrip(SPACE)
        if begun.startswith(THINK):
            self._at = len(self._text) - len(begun) + len(THINK)
            self.in_reasoning = True
            yield from self._skip(self.syntax.pad)

    def _copy(self, marks: Mapping[str, str], reasoning: bool) -> Generator[None, None, str]:
        """Give out text until one of the marks, and return it; "" at the end of the text.

        Each mark has white space that belongs to it. Tags are passed over, but reading stays before a block of calls
        and its white space.
        """
        held = (*marks, *self.syntax.ends, *(before + mark for mark, before in marks.items()))
        while True:
            places = [(place, mark) for mark in marks if (place := self._text.find(mark, self._at)) >= 0]
            if places:
                place, mark = min(places)
                text = self._text[self._at:place].removesuffix(marks[mark])
                self._give(text, reasoning)
                self._at = self._at + len(text) if mark in self._blocks else place + len(mark)
                return mark
            end = len(self._text) - (0 if self.whole else _overlap(self.rest, held))
            self._give(self._text[self._at:end], reasoning)
            self._at = end
            if self.whole:
                return ""
            yield

    def _block(self, reasoning: bool) -> Generator[None, None, int]:
        """Read a block of calls; return how many it makes. `_at` moves on only past whole calls."""
        syntax, reader, made = self.syntax, Reader(self, self._types), 0
        reader.at = opened = self._text.index(syntax.block, self._at) - self._at + len(syntax.block)
        try:
            while not syntax.close or (yield from reader.tag((syntax.call, syntax.close))) == syntax.call:
                name, arguments = yield from syntax.read(reader)
                self._found.append(Delta(call=ToolCall(self.num_calls, name, arguments)))
                self.num_calls, made = self.num_calls + 1, made + 1
                self._at, reader.at = self._at + reader.at, 0
                if not syntax.close:
                    break
            self._at += reader.at
            yield from self._skip(SPACE)
        except Malformed as reason:
            self.malformed = self.malformed or str(reason)
            if not made:  # then the opening tag is text
                self._give(self._text[self._at:self._at + opened], reasoning)
                self._at += opened
        return made

    def _skip(self, space: str) -> Steps:
        """Pass over these characters."""
        while space:
            rest = self.rest.lstrip(space)
            self._at = len(self._text) - len(rest)
            if rest or self.whole:
                return
            yield

    def _give(self, text: str, reasoning: bool) -> None:
        if text:
            self._found.append(Delta(reasoning=text) if reasoning else Delta(content=text))


def parse_completion(text: str, *, thinking: bool = False, calls: bool = True, syntax: Syntax = V4,
                     tools: Sequence[Mapping[str, Any]] = ()) -> Completion:
    """Return a whole completion's parts (see ChatParser)."""
    parser = ChatParser(thinking=thinking, calls=calls, syntax=syntax, tools=tools)
    deltas = parser.feed(text) + parser.finish()
    return Completion("".join(delta.reasoning for delta in deltas), "".join(delta.content for delta in deltas),
                      tuple(delta.call for delta in deltas if delta.call is not None), parser.malformed)


def _types(tools: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """The JSON type that each tool declares for each parameter."""
    found: dict[tuple[str, str], str] = {}
    for tool in tools:
        function = tool.get("function", tool)
        properties = (function.get("parameters") or {}).get("properties") or {}
        found |= {(str(function.get("name")), str(key)): str(value.get("type")) for key, value in properties.items()
                  if isinstance(value, Mapping)}
    return found


def _overlap(text: str, marks: Sequence[str]) -> int:
    """Return how many characters at the text's end may be the start of a mark."""
    longest = min(len(text), max(len(mark) for mark in marks) - 1)
    for length in range(longest, 0, -1):
        end = text[-length:]
        if any(mark.startswith(end) for mark in marks):
            return length
    return 0
