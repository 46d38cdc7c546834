"""Messages as the encoder needs them: checked with all reasons at once, tool results merged into user turns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError
from .layout import TASKS

ROLES = ("system", "user", "assistant", "tool", "developer", "latest_reminder")


@dataclass(frozen=True)
class Call:
    """One call of a tool in an assistant's turn: arguments as an object."""

    name: str
    arguments: dict[str, Any]
    call_id: str = ""


@dataclass(frozen=True)
class Message:
    """One turn. `blocks` are a user's texts and tool results ((call id, text), call id None for text)."""

    role: str
    content: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    blocks: tuple[tuple[str | None, str], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    response_format: Any = None
    task: str | None = None
    wo_eos: bool = False


def read_messages(messages: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Return the turns of messages in OpenAI's form, merged and ordered. Raises InputError with every reason."""
    return _ordered(_merged(_checked(messages, [])))


def plain_messages(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return messages as chat templates take them: content as text, calls with objects of arguments, developers as
    system. Raises InputError with every reason, DeepSeek-V4's own additions among them.
    """
    problems: list[str] = []
    given = list(messages)
    for i, message in enumerate(given):
        problems += [f"messages[{i}].{name} is DeepSeek-V4's only" for name in ("task", "tools", "response_format")
                     if message.get(name)]
        if message.get("role") == "latest_reminder":
            problems.append(f"messages[{i}].role is 'latest_reminder', DeepSeek-V4's only")
    found = []
    for turn in _checked(given, problems):
        role = "tool" if turn.blocks and turn.blocks[0][0] is not None else turn.role
        plain: dict[str, Any] = {"role": "system" if role == "developer" else role,
                                 "content": turn.blocks[0][1] if turn.blocks else turn.content}
        if turn.reasoning:
            plain["reasoning_content"] = turn.reasoning
        if turn.calls:
            plain["tool_calls"] = [{"type": "function", "id": call.call_id, "function": {
                "name": call.name, "arguments": call.arguments}} for call in turn.calls]
        if role == "tool":
            plain["tool_call_id"] = turn.blocks[0][0]
        found.append(plain | ({"wo_eos": True} if turn.wo_eos and role == "assistant" else {}))
    return found


def _checked(messages: Iterable[Mapping[str, Any]], problems: list[str]) -> list[Message]:
    """Return each message as a turn. Raises InputError with these reasons and every other."""
    found = []
    for i, message in enumerate(messages):
        before = len(problems)
        turn = _read(message, f"messages[{i}]", problems)
        if len(problems) == before:
            found.append(turn)
    if not found and not problems:
        problems.append("messages is empty: give at least one")
    if problems:
        raise InputError("cannot encode the messages: " + "; ".join(problems))
    return found


def read_tools(tools: Sequence[Mapping[str, Any]], where: str, problems: list[str]) -> tuple[dict[str, Any], ...]:
    """Return the functions of tools in OpenAI's form, adding what is wrong with them to `problems`."""
    found = []
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        problems.append(f"{where} must be a list")
        return ()
    for i, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            problems.append(f"{where}[{i}] must be {{'type': 'function', 'function': {{'name': ..., 'description': "
                            "..., 'parameters': ...}}")
        else:
            found.append(dict(function))
    return tuple(found)


def _read(message: Mapping[str, Any], where: str, problems: list[str]) -> Message:
    role = message.get("role")
    if role not in ROLES:
        problems.append(f"{where}.role is {role!r}; roles are {', '.join(ROLES)}")
        return Message("user")
    task = message.get("task")
    if task is not None and task not in TASKS:
        problems.append(f"{where}.task is {task!r}; tasks are {', '.join(TASKS)}")
    tools = read_tools(message.get("tools") or (), f"{where}.tools", problems)
    content = _text(message.get("content"), f"{where}.content", problems, "\n\n" if role == "tool" else "")
    if role == "developer" and not content:
        problems.append(f"{where} has the role developer, whose content must not be empty")
    blocks: tuple[tuple[str | None, str], ...] = ()
    if role in ("user", "tool"):
        blocks = ((str(message.get("tool_call_id") or "") if role == "tool" else None, content),)
    return Message(role, content, str(message.get("reasoning_content") or message.get("reasoning") or ""),
                   _calls(message, where, problems), blocks, tools, message.get("response_format"), task,
                   bool(message.get("wo_eos")))


def _text(content: Any, where: str, problems: list[str], joint: str) -> str:
    """Return content's text: a string, nothing, or a list of text parts."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, Sequence):
        kinds = [part.get("type") if isinstance(part, Mapping) else type(part).__name__ for part in content]
        other = [kind for kind in kinds if kind != "text"]
        if not other:
            return joint.join(str(part.get("text") or "") for part in content)
        problems.append(f"{where} has a part of type {other[0]!r}; this model reads text only")
        return ""
    problems.append(f"{where} must be a string or a list of text parts, not {type(content).__name__}")
    return ""


def _calls(message: Mapping[str, Any], where: str, problems: list[str]) -> tuple[Call, ...]:
    found = []
    given = message.get("tool_calls") or ()
    if not isinstance(given, Sequence) or isinstance(given, str):
        problems.append(f"{where}.tool_calls must be a list")
        return ()
    for i, call in enumerate(given):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            problems.append(f"{where}.tool_calls[{i}] must have function.name and function.arguments")
            continue
        arguments = function.get("arguments") or {}
        try:
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        except ValueError as error:
            problems.append(f"{where}.tool_calls[{i}].function.arguments is not JSON: {error}")
            continue
        if not isinstance(arguments, Mapping):
            problems.append(f"{where}.tool_calls[{i}].function.arguments must be a JSON object")
            continue
        found.append(Call(function["name"], dict(arguments), str(call.get("id") or "")))
    return tuple(found)


def _merged(messages: list[Message]) -> list[Message]:
    """Tool results, and texts after them or after another user's text, become one user turn (V4 has no tool role)."""
    found: list[Message] = []
    for message in messages:
        last = found[-1] if found else None
        joins = last is not None and last.role == "user" and (message.role == "tool"
                                                               or (message.role == "user" and last.task is None))
        if joins and last is not None:
            found[-1] = replace(last, blocks=last.blocks + message.blocks)
        elif message.role == "tool":
            found.append(Message("user", blocks=message.blocks))
        else:
            found.append(message)
    return found


def _ordered(messages: list[Message]) -> list[Message]:
    """Within a user turn, tool results stand in the order of the calls before them; texts keep their places."""
    order: dict[str, int] = {}
    found = []
    for message in messages:
        if message.role == "assistant" and message.calls:
            order = {call.call_id: i for i, call in enumerate(message.calls) if call.call_id}
        if message.role == "user" and order:
            results = iter(sorted((b for b in message.blocks if b[0] is not None),
                                  key=lambda block: order.get(block[0] or "", 0)))
            message = replace(message, blocks=tuple(b if b[0] is None else next(results) for b in message.blocks))
        found.append(message)
    return found
