"""Anthropic's messages as the chat that the encoder takes."""

from __future__ import annotations

import json
from typing import Any

from .anthropic_schema import Block, Choice, CountRequest, Message
from .chat_prompt import Chat
from .errors import ApiError


def anthropic_chat(body: CountRequest) -> Chat:
    """Return the chat that a request describes. Raises ApiError where a block stands where it cannot."""
    messages: list[dict[str, Any]] = []
    system = body.system if isinstance(body.system, str) else "\n\n".join(block.text for block in body.system or ())
    if system:
        messages.append({"role": "system", "content": system})
    for i, message in enumerate(body.messages):
        messages += _messages(message, f"messages.{i}")
    if messages[-1]["role"] == "assistant":
        messages[-1]["prefix"] = True
    tools = [{"type": "function", "function": {"name": tool.name, "description": tool.description or "",
                                               "parameters": tool.input_schema or {"type": "object"}}}
             for tool in body.tools or ()]
    effort = body.output_config.effort if body.output_config else None
    thinking = None if body.thinking is None else body.thinking.type != "disabled"
    return Chat(messages, tools, _choice(body.tool_choice), thinking, effort, _schema(body))


def _schema(body: CountRequest) -> dict[str, Any] | None:
    wanted = body.output_config.format if body.output_config else None
    if wanted is None:
        return None
    schema = wanted.get("schema")
    if wanted.get("type") != "json_schema" or not isinstance(schema, dict) or not schema:
        raise ApiError(400, "output_config.format must be {'type': 'json_schema', 'schema': {...}}",
                       param="output_config.format")
    return schema


def _choice(choice: Choice | None) -> str | tuple[str, str]:
    if choice is None or choice.type == "auto":
        return "auto"
    if choice.type == "tool":
        if not choice.name:
            raise ApiError(400, "tool_choice of type tool must have a name", param="tool_choice")
        return "name", choice.name
    return "required" if choice.type == "any" else "none"


def _messages(message: Message, where: str) -> list[dict[str, Any]]:
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    if message.role == "user":
        return _user(message.content, where)
    return [_assistant(message.content, where)]


def _user(blocks: list[Block], where: str) -> list[dict[str, Any]]:
    """Texts and tool results in their order, as messages of their own: the encoder puts them into one turn."""
    found: list[dict[str, Any]] = []
    for i, block in enumerate(blocks):
        if block.type == "text":
            found.append({"role": "user", "content": block.text or ""})
        elif block.type == "tool_result":
            found.append({"role": "tool", "tool_call_id": block.tool_use_id or "", "content": block.content or ""})
        else:
            raise ApiError(400, f"{where}.content.{i}: a user's message cannot have a block of type {block.type}",
                           param=where)
    return found or [{"role": "user", "content": ""}]


def _assistant(blocks: list[Block], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {"role": "assistant", "content": "", "reasoning_content": "", "tool_calls": []}
    for i, block in enumerate(blocks):
        if block.type == "text":
            found["content"] += block.text or ""
        elif block.type == "thinking":
            found["reasoning_content"] += block.thinking or ""
        elif block.type == "tool_use" and block.name:
            found["tool_calls"].append({"id": block.id or "", "type": "function", "function": {
                "name": block.name, "arguments": json.dumps(block.input or {}, ensure_ascii=False)}})
        elif block.type != "redacted_thinking":
            raise ApiError(400, f"{where}.content.{i}: an assistant's message cannot have this block of type "
                           f"{block.type}", param=where)
    return found
