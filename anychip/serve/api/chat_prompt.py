"""A chat, in whichever dialect it came, to a prompt and to how its completion is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...chat import ChatFormat, ChatParser, Delta
from ...text.tokenizer import Tokenizer
from ..request import Grammar
from .errors import ApiError
from .grammars import answer_grammar
from .settings import ApiSettings

# What DeepSeek's own API makes of the efforts of other makers.
_EFFORTS = {"minimal": "low", "low": "low", "medium": "high", "high": "high", "xhigh": "high", "max": "max"}


@dataclass(frozen=True)
class Chat:
    """A chat as both dialects give it.

    messages and tools are in OpenAI's form. choice: `auto`, `none`, `required` (some tool is called) or the name of the
    tool to call. thinking None: as the server is set up. schema: the answer must be JSON of it; {}: any JSON object.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    choice: str | tuple[str, str] = "auto"
    thinking: bool | None = None
    effort: str | None = None
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ChatPrompt:
    """A prompt, and how to read what follows it. `forced` is the prompt's end that already belongs to the answer;
    `stop` are the texts that end an answer and are no tokens."""

    ids: tuple[int, ...]
    grammar: Grammar | None
    format: ChatFormat
    text: str
    tools: Sequence[Mapping[str, Any]] = ()
    forced: str = ""
    stop: tuple[str, ...] = ()

    def parser(self) -> tuple[ChatParser, list[Delta]]:
        """Return a parser that stands where the prompt ends, and what it found on the way."""
        parser = self.format.parser(self.text, self.tools)
        return parser, parser.feed(self.forced)


def chat_prompt(chat: Chat, settings: ApiSettings, tokenizer: Tokenizer) -> ChatPrompt:
    """Encode a chat. Raises InputError or ApiError where it cannot be."""
    own = settings.chat
    forced = _forced(chat, own)
    thinking = _thinks(chat, settings) and not forced
    tools = () if chat.choice == "none" else chat.tools
    text = own.encode(_messages(chat.messages), thinking=thinking, effort=_effort(chat.effort, own.efforts),
                      tools=tools, response_format=chat.schema or None)
    grammar = None if chat.schema is None else answer_grammar(
        chat.schema, tokenizer, own.syntax, reasons=own.reasons(text), calls=bool(tools) and not forced)
    stop = tuple(end for end in own.syntax.ends if tokenizer.encode(end) != [tokenizer.eos_id])
    return ChatPrompt(tuple(tokenizer.encode(text + forced)), grammar, own, text, tools, forced, stop)


def _thinks(chat: Chat, settings: ApiSettings) -> bool:
    if chat.thinking is not None:
        return chat.thinking
    return chat.effort != "none" if chat.effort is not None else settings.thinking


def _effort(effort: str | None, efforts: Sequence[str]) -> str | None:
    if effort in (None, "none"):
        return None
    found = _EFFORTS.get(str(effort))
    if found is None:
        raise ApiError(400, f"effort {effort!r} is not one of none, {', '.join(_EFFORTS)}", param="reasoning_effort")
    return found if found in efforts else next(iter(efforts), None)


def _forced(chat: Chat, own: ChatFormat) -> str:
    """Return the start of the call that must be made: the answer begins with it, so nothing else can be answered."""
    names = [str(tool["function"]["name"]) for tool in chat.tools]
    if chat.choice in ("auto", "none"):
        return ""
    if not names:
        raise ApiError(400, "tool_choice asks for a call, and there are no tools", param="tool_choice")
    if chat.choice == "required":
        return own.syntax.forced(names[0] if len(names) == 1 else None)
    name = chat.choice[1]
    if name not in names:
        raise ApiError(400, f"tool_choice names {name!r}; the tools are {', '.join(names)}", param="tool_choice")
    return own.syntax.forced(name)


def _messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """An assistant's last message is continued where `prefix` says so; else something must be there to answer."""
    found = [dict(message) for message in messages]
    last = found[-1]
    if last["role"] == "assistant" and not last.get("task"):
        if not last.get("prefix"):
            raise ApiError(400, "the last message is the assistant's: end with a user's or a tool's, or set "
                           "prefix=true on it to have it continued", param="messages")
        last["wo_eos"] = True
    return found
