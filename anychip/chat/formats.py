"""A model's chat format, whichever family it is of: messages to a prompt, and how its answer is read."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Protocol

from ..errors import InputError, nearest
from .encode import encode_messages
from .layout import BOS, EOS, RELEASES, THINK
from .messages import plain_messages, read_tools
from .parse import ChatParser
from .syntax import SYNTAXES, Syntax
from .template import ChatTemplate

_CUT = "\N{REPLACEMENT CHARACTER}cut\N{REPLACEMENT CHARACTER}"  # ends a turn that is to be continued, then cut away


class Encode(Protocol):
    """Messages to the prompt that ends where the assistant is to go on (see `encode_messages`)."""

    def __call__(self, messages: Iterable[Mapping[str, Any]], *, thinking: bool = False, effort: str | None = None,
                 tools: Sequence[Mapping[str, Any]] | None = None, response_format: Any = None) -> str:
        """Return the prompt. Raises InputError with every reason why messages cannot be encoded."""


@dataclass(frozen=True)
class ChatFormat:
    """How a model chats. efforts: the reasoning efforts that `encode` takes, the least first; empty where none."""

    syntax: Syntax
    encode: Encode
    efforts: tuple[str, ...] = ()

    def parser(self, prompt: str, tools: Sequence[Mapping[str, Any]] = ()) -> ChatParser:
        """Return a parser of what follows this prompt. Without tools, what looks like a call is content."""
        return ChatParser(thinking=self.reasons(prompt), calls=bool(tools), syntax=self.syntax, tools=tools)

    def reasons(self, prompt: str) -> bool:
        """Whether the answer to this prompt begins within reasoning."""
        return prompt.rstrip("\n").endswith(THINK)


def chat_format(family: str, *, template: str | None = None, specials: Mapping[str, str] | None = None,
                release: str = "preview") -> ChatFormat:
    """Return the chat format of a model.

    family: `config.family`. DeepSeek-V4 has its own encoding (`release`: see RELEASES). The others have a template:
    `template`, the checkpoint's own, or the plain one of this package. specials: the tokenizer's special tokens by
    role (bos_token, ...). Raises InputError for an unknown family or release, or a text that is no template.
    """
    syntax = SYNTAXES.get(family)
    if syntax is None:
        raise InputError(f"no chat format of family {family!r}; there are {', '.join(SYNTAXES)}."
                         f"{nearest(family, SYNTAXES)}")
    if family == "v4":
        if release not in RELEASES:
            raise InputError(f"there is no chat format of release {release!r}; use {' or '.join(RELEASES)}")
        return ChatFormat(syntax, functools.partial(encode_messages, release=release), tuple(RELEASES[release]))
    text = template if template is not None else plain_template(family)
    found = ChatTemplate(text, {"bos_token": BOS, "eos_token": EOS} | dict(specials or {}))
    efforts = ("low", "medium", "high") if "reasoning_effort" in text else ()
    return ChatFormat(syntax, functools.partial(_encode, found, efforts), efforts)


def plain_template(family: str) -> str:
    """Return this package's own template in a family's wire format, for models that ship none."""
    name = family.removesuffix("-moe")
    return resources.files("anychip.chat").joinpath(f"templates/{name}.j2").read_text(encoding="utf-8")


def _encode(template: ChatTemplate, efforts: tuple[str, ...], messages: Iterable[Mapping[str, Any]], *,
            thinking: bool = False, effort: str | None = None, tools: Sequence[Mapping[str, Any]] | None = None,
            response_format: Any = None) -> str:
    """Encode by a template. It has no place for `response_format`: only the grammar holds an answer to that."""
    if effort is not None and effort not in efforts:
        raise InputError(f"effort={effort!r}: this model's chat template " + (
            f"knows {', '.join(efforts)}" if efforts else "has no efforts; leave it out"))
    problems: list[str] = []
    read_tools(tools or (), "tools", problems)
    if problems:
        raise InputError("cannot encode the messages: " + "; ".join(problems))
    turns = plain_messages(messages)
    options: dict[str, Any] = {"thinking": thinking, "enable_thinking": thinking}
    if effort is not None:
        options["reasoning_effort"] = effort
    last = turns[-1]
    going_on = last.pop("wo_eos", False)
    if going_on:
        last["content"] += _CUT
    text = _rendered(template, turns, tools=list(tools) if tools else None,
                     add_generation_prompt=last["role"] != "assistant", **options)
    return text[:text.rindex(_CUT)] if going_on else text


def _rendered(template: ChatTemplate, turns: list[dict[str, Any]], **options: Any) -> str:
    """Render; templates of DeepSeek-V3's time take the arguments of calls as JSON text, later ones as objects."""
    try:
        return template.render(turns, **options)
    except InputError as refused:
        if not any("tool_calls" in turn for turn in turns):
            raise
        try:
            return template.render([_with_text_arguments(turn) for turn in turns], **options)
        except InputError:
            raise refused from None


def _with_text_arguments(turn: dict[str, Any]) -> dict[str, Any]:
    calls = [call | {"function": call["function"] | {"arguments": json.dumps(call["function"]["arguments"],
                                                                            ensure_ascii=False)}}
             for call in turn.get("tool_calls", ())]
    return turn | {"tool_calls": calls} if calls else turn
