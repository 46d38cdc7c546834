"""A completion's text, as it comes, to reasoning, content and tool calls.

However the text is cut into pieces, the deltas add up to the same. A call is given whole, when its end is seen, so what
a client gets is always a call with valid JSON arguments. Text that begins like a call but is not one (or breaks off
within one) becomes content, byte for byte, from the first byte that belongs to no whole call, and `malformed` says why.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from .layout import (
    CALLS_CLOSE,
    CALLS_OPEN,
    END_THINK,
    EOS,
    INVOKE_CLOSE,
    INVOKE_OPEN,
    PARAMETER_CLOSE,
    PARAMETER_OPEN,
)

_BEFORE_CALLS = "\n\n"  # belongs to the block of calls, not to the content before it
_SPACE = " \t\r\n"
_Steps = Generator[None, None, None]


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
    they are content. A block of calls ends the reasoning, even without `</think>`. The end-of-sentence token ends the
    completion, wherever it is; what follows is ignored.
    """

    def __init__(self, *, thinking: bool = False, calls: bool = True) -> None:
        self.malformed: str | None = None
        self.num_calls = 0
        self.in_reasoning, self._look = thinking, calls
        self._text, self._at = "", 0
        self._whole, self._done = False, False
        self._found: list[Delta] = []
        self._steps = self._run()
        next(self._steps)

    def feed(self, text: str) -> list[Delta]:
        """Return what `text` adds. Text that may be the start of a tag is held back."""
        if self._done:
            return []
        held = len(self._text) - self._at
        self._text, self._at = self._text[self._at:] + text, 0
        end = self._text.find(EOS, max(0, held - len(EOS) + 1))
        if end >= 0:
            self._text, self._whole = self._text[:end], True
        return self._advance()

    def finish(self) -> list[Delta]:
        """Return what was held back: the completion ends here."""
        if self._done:
            return []
        self._whole = True
        return self._advance()

    def _advance(self) -> list[Delta]:
        try:
            next(self._steps)
        except StopIteration:
            self._done = True
        found, self._found = self._found, []
        return found

    def _run(self) -> _Steps:
        """Read the completion, pausing where more text is needed."""
        yield
        opening = (CALLS_OPEN,) if self._look else ()
        while True:
            marks = (END_THINK, *opening) if self.in_reasoning else opening
            mark = yield from self._copy(marks, self.in_reasoning)
            if not mark:
                return
            made = (yield from self._block(self.in_reasoning)) if mark == CALLS_OPEN else 0
            self.in_reasoning = self.in_reasoning and mark == CALLS_OPEN and not made

    def _copy(self, marks: Sequence[str], reasoning: bool) -> Generator[None, None, str]:
        """Give out text until one of the marks, and return it; "" at the end of the text.

        Tags are passed over, but reading stays before a block of calls and the empty line that belongs to it.
        """
        held = (*marks, EOS, _BEFORE_CALLS + CALLS_OPEN)
        while True:
            places = [(place, mark) for mark in marks if (place := self._text.find(mark, self._at)) >= 0]
            if places:
                place, mark = min(places)
                calls = mark == CALLS_OPEN
                before = self._text[self._at:place]
                text = before.removesuffix(_BEFORE_CALLS) if calls else before
                self._give(text, reasoning)
                self._at += len(text) if calls else len(text) + len(mark)
                return mark
            end = len(self._text) - (0 if self._whole else _overlap(self._text[self._at:], held))
            self._give(self._text[self._at:end], reasoning)
            self._at = end
            if self._whole:
                return ""
            yield

    def _block(self, reasoning: bool) -> Generator[None, None, int]:
        """Read a block of calls; return how many it makes. `_at` moves on only past whole calls."""
        reader, made = _Reader(self), 0
        reader.at = opened = self._text.index(CALLS_OPEN, self._at) - self._at + len(CALLS_OPEN)
        try:
            while (yield from reader.tag((INVOKE_OPEN, CALLS_CLOSE))) == INVOKE_OPEN:
                name, arguments = yield from reader.invoke()
                self._found.append(Delta(call=ToolCall(self.num_calls, name, arguments)))
                self.num_calls, made = self.num_calls + 1, made + 1
                self._at, reader.at = self._at + reader.at, 0
            self._at += reader.at
            yield from self._skip_space()
        except _Malformed as reason:
            self.malformed = self.malformed or str(reason)
            if not made:  # then the opening tag is text
                self._give(self._text[self._at:self._at + opened], reasoning)
                self._at += opened
        return made

    def _skip_space(self) -> _Steps:
        while True:
            rest = self._text[self._at:].lstrip(_SPACE)
            self._at = len(self._text) - len(rest)
            if rest or self._whole:
                return
            yield

    def _give(self, text: str, reasoning: bool) -> None:
        if text:
            self._found.append(Delta(reasoning=text) if reasoning else Delta(content=text))


class _Malformed(Exception):
    """What looked like a call is none: why."""


class _Reader:
    """Reads one invocation, at `at` characters behind the parser's place, which stays until the call is whole."""

    def __init__(self, parser: ChatParser) -> None:
        self._parser, self.at = parser, 0

    def invoke(self) -> Generator[None, None, tuple[str, str]]:
        """Return the name and the arguments, from behind the name's opening quote."""
        name = yield from self._until('">')
        if not name or '"' in name or "\n" in name:
            raise _Malformed(f"a call has the name {name[:60]!r}")
        arguments: dict[str, str] = {}
        while (yield from self.tag((PARAMETER_OPEN, INVOKE_CLOSE))) == PARAMETER_OPEN:
            key = yield from self._until('" string="')
            kind = yield from self._until('">')
            value = yield from self._until(PARAMETER_CLOSE)
            if kind not in ("true", "false"):
                raise _Malformed(f'the parameter {key!r} of {name} has string="{kind[:60]}", not true or false')
            if key in arguments:
                raise _Malformed(f"{name} has the parameter {key!r} twice")
            arguments[key] = json.dumps(value, ensure_ascii=False) if kind == "true" else _checked(key, value)
        pairs = ", ".join(f"{json.dumps(key, ensure_ascii=False)}: {value}" for key, value in arguments.items())
        return name, "{" + pairs + "}"

    def tag(self, tags: Sequence[str]) -> Generator[None, None, str]:
        """Pass over white space and one of the tags; return which."""
        while True:
            rest = self._rest().lstrip(_SPACE)
            for tag in tags:
                if rest.startswith(tag):
                    self.at += len(self._rest()) - len(rest) + len(tag)
                    return tag
            if not any(tag.startswith(rest) for tag in tags):
                raise _Malformed(f"{rest[:60]!r} stands where {' or '.join(tags)} must")
            yield from self._more()

    def _until(self, mark: str) -> Generator[None, None, str]:
        """Return the text up to a mark, which is passed over."""
        seen = 0
        while True:
            rest = self._rest()
            place = rest.find(mark, seen)
            if place >= 0:
                self.at += place + len(mark)
                return rest[:place]
            seen = max(0, len(rest) - len(mark) + 1)
            yield from self._more()

    def _rest(self) -> str:
        return self._parser._text[self._parser._at + self.at:]

    def _more(self) -> _Steps:
        if self._parser._whole:
            raise _Malformed("the completion ends within a call")
        yield


def parse_completion(text: str, *, thinking: bool = False, calls: bool = True) -> Completion:
    """Return a whole completion's parts (see ChatParser)."""
    parser = ChatParser(thinking=thinking, calls=calls)
    deltas = parser.feed(text) + parser.finish()
    return Completion("".join(delta.reasoning for delta in deltas), "".join(delta.content for delta in deltas),
                      tuple(delta.call for delta in deltas if delta.call is not None), parser.malformed)


def _checked(key: str, value: str) -> str:
    """Return a JSON value's text, stripped."""
    try:
        json.loads(value, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _Malformed(f"the parameter {key!r} is not JSON: {error}") from error
    return value.strip()


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _overlap(text: str, marks: Sequence[str]) -> int:
    """Return how many characters at the text's end may be the start of a mark."""
    longest = min(len(text), max(len(mark) for mark in marks) - 1)
    for length in range(longest, 0, -1):
        end = text[-length:]
        if any(mark.startswith(end) for mark in marks):
            return length
    return 0
