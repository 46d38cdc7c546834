"""Messages to the prompt that DeepSeek-V4 was trained on, byte for byte as the publisher's encoding gives it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError
from .layout import (
    ASSISTANT,
    BOS,
    CALLS_CLOSE,
    CALLS_OPEN,
    END_THINK,
    EOS,
    INVOKE_CLOSE,
    INVOKE_OPEN,
    LATEST_REMINDER,
    PARAMETER_CLOSE,
    PARAMETER_OPEN,
    RELEASES,
    RESPONSE_FORMAT,
    TASKS,
    THINK,
    TOOLS,
    USER,
)
from .messages import Call, Message, read_messages, read_tools


def encode_messages(messages: Iterable[Mapping[str, Any]], *, thinking: bool = False, effort: str | None = None,
                    tools: Sequence[Mapping[str, Any]] | None = None, response_format: Any = None,
                    drop_thinking: bool = True, release: str = "preview") -> str:
    """Return the prompt, BOS included, that ends where the assistant is to go on.

    messages: OpenAI's form (role, content, tool_calls, tool_call_id), and the publisher's additions: reasoning_content
    (or reasoning), task (quick instruction), wo_eos (an assistant's turn to be continued), roles developer and
    latest_reminder, and tools and response_format on a system or developer message. Content is a string or a list of
    text parts. tools, response_format: the same for the first system message (an empty one is put first if there is
    none). thinking: the assistant reasons first; `effort` (see RELEASES) then sets how long, None the release's
    least. drop_thinking: leave out the reasoning of turns before the last user's, unless there are tools.

    Raises InputError with every reason why messages cannot be encoded.
    """
    efforts = RELEASES.get(release)
    if efforts is None:
        raise InputError(f"there is no chat format of release {release!r}; use {' or '.join(RELEASES)}")
    if effort is not None and effort not in efforts:
        raise InputError(f"effort={effort!r} is not one of release {release}: {', '.join(efforts)}")
    turns = _with_tools(read_messages(messages), tools or (), response_format)
    drop = drop_thinking and not any(turn.tools for turn in turns)
    if thinking and drop:
        turns = _without_old_reasoning(turns)
    mode = _Mode(thinking, drop, _last_user(turns))
    prefix = efforts[effort] if thinking and effort is not None else ""
    return BOS + prefix + "".join(_turn(i, turns, mode) + _transition(i, turns, mode) for i in range(len(turns)))


def calls_text(calls: Sequence[Call]) -> str:
    """Return the DSML block that makes these calls, as it stands after the content of an assistant's turn."""
    if not calls:
        return ""
    body = "\n".join(f'{INVOKE_OPEN}{call.name}">\n{_parameters(call)}\n{INVOKE_CLOSE}' for call in calls)
    return f"\n\n{CALLS_OPEN}\n{body}\n{CALLS_CLOSE}"


@dataclass(frozen=True)
class _Mode:
    thinking: bool
    drop: bool
    last_user: int


def _turn(i: int, turns: list[Message], mode: _Mode) -> str:
    turn = turns[i]
    if turn.role == "system":
        return turn.content + _instructions(turn)
    if turn.role == "developer":
        return USER + turn.content + _instructions(turn)
    if turn.role == "latest_reminder":
        return LATEST_REMINDER + turn.content
    if turn.role == "user":
        return USER + "\n\n".join(text if call is None else f"<tool_result>{text}</tool_result>"
                                  for call, text in turn.blocks)
    answers_task = i > 0 and turns[i - 1].task is not None
    reasons = mode.thinking and not answers_task and (not mode.drop or i > mode.last_user)
    return ((turn.reasoning + END_THINK if reasons else "") + turn.content + calls_text(turn.calls)
            + ("" if turn.wo_eos else EOS))


def _transition(i: int, turns: list[Message], mode: _Mode) -> str:
    """Return what stands between a turn and an assistant's."""
    if i + 1 < len(turns) and turns[i + 1].role not in ("assistant", "latest_reminder"):
        return ""
    turn = turns[i]
    if turn.task == "action":
        return ASSISTANT + (THINK if mode.thinking else END_THINK) + TASKS["action"]
    if turn.task is not None:
        return TASKS[turn.task]
    if turn.role not in ("user", "developer"):
        return ""
    return ASSISTANT + (THINK if mode.thinking and (not mode.drop or i >= mode.last_user) else END_THINK)


def _instructions(turn: Message) -> str:
    text = ""
    if turn.tools:
        text += "\n\n" + TOOLS.replace("SCHEMAS", "\n".join(_json(tool) for tool in turn.tools))
    if turn.response_format:
        text += "\n\n" + RESPONSE_FORMAT + _json(turn.response_format)
    return text


def _parameters(call: Call) -> str:
    return "\n".join(f'{PARAMETER_OPEN}{name}" string="{"true" if isinstance(value, str) else "false"}">'
                     f"{value if isinstance(value, str) else _json(value)}{PARAMETER_CLOSE}"
                     for name, value in call.arguments.items())


def _with_tools(turns: list[Message], tools: Sequence[Mapping[str, Any]], response_format: Any) -> list[Message]:
    if not tools and not response_format:
        return turns
    problems: list[str] = []
    functions = read_tools(tools, "tools", problems)
    if problems:
        raise InputError("cannot encode the messages: " + "; ".join(problems))
    if turns[0].role != "system":
        turns = [Message("system"), *turns]
    first = turns[0]
    return [replace(first, tools=first.tools + functions, response_format=response_format or first.response_format),
            *turns[1:]]


def _last_user(turns: list[Message]) -> int:
    return max((i for i, turn in enumerate(turns) if turn.role in ("user", "developer")), default=-1)


def _without_old_reasoning(turns: list[Message]) -> list[Message]:
    """Before the last user's turn, assistants lose their reasoning and a developer's turns go altogether."""
    last = _last_user(turns)
    return [turn if i >= last else replace(turn, reasoning="") for i, turn in enumerate(turns)
            if i >= last or turn.role != "developer"]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
