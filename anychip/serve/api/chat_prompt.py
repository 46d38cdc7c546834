"""A chat, in whichever dialect it came, to a prompt and to how its completion is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...chat import RELEASES, ChatParser, Delta, encode_messages
from ...chat.layout import CALLS_OPEN, INVOKE_OPEN, THINK
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
    """A prompt, and how to read what follows it. `forced` is the prompt's end that already belongs to the answer."""

    ids: tuple[int, ...]
    grammar: Grammar | None
    reasons: bool
    calls: bool
    forced: str = ""

    def parser(self) -> tuple[ChatParser, list[Delta]]:
        """Return a parser that stands where the prompt ends, and what it found on the way."""
        parser = ChatParser(thinking=self.reasons, calls=self.calls)
        return parser, parser.feed(self.forced)


def chat_prompt(chat: Chat, settings: ApiSettings, tokenizer: Tokenizer) -> ChatPrompt:
    """Encode a chat. Raises InputError or ApiError where it cannot be."""
    forced = _forced(chat)
    thinking = _thinks(chat, settings) and not forced
    tools = () if chat.choice == "none" else chat.tools
    text = encode_messages(_messages(chat.messages), thinking=thinking, effort=_effort(chat.effort, settings.release),
                           tools=tools, response_format=chat.schema or None, release=settings.release)
    reasons, calls = text.endswith(THINK), bool(tools)
    grammar = None if chat.schema is None else answer_grammar(chat.schema, tokenizer, reasons=reasons,
                                                              calls=calls and not forced)
    return ChatPrompt(tuple(tokenizer.encode(text + forced)), grammar, reasons, calls, forced)


def _thinks(chat: Chat, settings: ApiSettings) -> bool:
    if chat.thinking is not None:
        return chat.thinking
    return chat.effort != "none" if chat.effort is not None else settings.thinking


def _effort(effort: str | None, release: str) -> str | None:
    if effort in (None, "none"):
        return None
    found = _EFFORTS.get(str(effort))
    if found is None:
        raise ApiError(400, f"effort {effort!r} is not one of none, {', '.join(_EFFORTS)}", param="reasoning_effort")
    return found if found in RELEASES[release] else next(iter(RELEASES[release]))


def _forced(chat: Chat) -> str:
    """Return the start of the call that must be made: the answer begins with it, so nothing else can be answered."""
    names = [str(tool["function"]["name"]) for tool in chat.tools]
    if chat.choice in ("auto", "none"):
        return ""
    if not names:
        raise ApiError(400, "tool_choice asks for a call, and there are no tools", param="tool_choice")
    opening = f"\n\n{CALLS_OPEN}\n{INVOKE_OPEN}"
    if chat.choice == "required":
        return opening + (f'{names[0]}">\n' if len(names) == 1 else "")
    name = chat.choice[1]
    if name not in names:
        raise ApiError(400, f"tool_choice names {name!r}; the tools are {', '.join(names)}", param="tool_choice")
    return f'{opening}{name}">\n'


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
