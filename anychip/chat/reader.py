"""Reading a block of calls, pausing where more text is needed."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from typing import Protocol

SPACE = " \t\r\n"
Steps = Generator[None, None, None]
Call = Generator[None, None, tuple[str, str]]  # gives a call's name and its arguments as a JSON object's text


class Malformed(Exception):
    """What looked like a call is none: why."""


class Source(Protocol):
    """Where a reader reads: text from a place on, and whether it is all there."""

    @property
    def rest(self) -> str:
        """The text behind the place."""

    @property
    def whole(self) -> bool:
        """Whether no more text will come."""


class Reader:
    """Reads calls, at `at` characters behind the source's place, which stays until a call is whole.

    types: the JSON type that a tool's schema declares for a parameter, by (tool, parameter).
    """

    def __init__(self, source: Source, types: dict[tuple[str, str], str]) -> None:
        self._source, self.types, self.at = source, types, 0

    def tag(self, tags: Sequence[str]) -> Generator[None, None, str]:
        """Pass over white space and one of the tags; return which."""
        while True:
            rest = self._rest().lstrip(SPACE)
            for tag in tags:
                if rest.startswith(tag):
                    self.at += len(self._rest()) - len(rest) + len(tag)
                    return tag
            if not any(tag.startswith(rest) for tag in tags):
                raise Malformed(f"{rest[:60]!r} stands where {' or '.join(tags)} must")
            yield from self._more()

    def until(self, mark: str) -> Generator[None, None, str]:
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
        return self._source.rest[self.at:]

    def _more(self) -> Steps:
        if self._source.whole:
            raise Malformed("the completion ends within a call")
        yield


def checked_name(name: str) -> str:
    """Return a call's name. Raises Malformed where it cannot be one."""
    if not name or '"' in name or "\n" in name:
        raise Malformed(f"a call has the name {name[:60]!r}")
    return name


def checked_json(what: str, value: str) -> str:
    """Return a JSON value's text, stripped. Raises Malformed where it is none."""
    try:
        json.loads(value, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{what} is not JSON: {error}") from error
    return value.strip()


def checked_object(what: str, value: str) -> str:
    """Return a JSON object's text, stripped. Raises Malformed where it is none."""
    text = checked_json(what, value)
    if not text.startswith("{"):
        raise Malformed(f"{what} is {text[:60]!r}, not a JSON object")
    return text


def json_object(pairs: dict[str, str]) -> str:
    """Return a JSON object's text from keys and the JSON text of their values."""
    return "{" + ", ".join(f"{json.dumps(key, ensure_ascii=False)}: {value}" for key, value in pairs.items()) + "}"


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")
