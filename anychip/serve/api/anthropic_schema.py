"""What Anthropic's endpoints take, and what they answer, as the API page documents it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .options import Body, Finite, Whole


class Block(Body):
    """One block of content: text, thinking, tool_use or tool_result."""

    model_config = ConfigDict(extra="allow")
    type: Literal["text", "thinking", "redacted_thinking", "tool_use", "tool_result"]
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[dict[str, Any]] | None = None
    is_error: bool | None = None


class Message(Body):
    """One message. An assistant's as the last one is continued."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["user", "assistant"]
    content: str | list[Block]


class SystemBlock(Body):
    """One block of the system text."""

    model_config = ConfigDict(extra="allow")
    type: Literal["text"]
    text: str


class Tool(Body):
    """A tool; `input_schema` is a JSON schema."""

    model_config = ConfigDict(extra="allow")
    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r'^[^"\n<>]+$')]
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    type: Literal["custom"] | None = None


class Choice(Body):
    """Whether a tool is called: auto, any, none, or the one named."""

    type: Literal["auto", "any", "none", "tool"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Body):
    """Whether the assistant reasons first. The budget has no effect: V4 knows efforts, see output_config."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Whole | None = None
    display: str | None = None


class OutputConfig(Body):
    """How much the assistant reasons, and what its answer must be."""

    effort: Literal["none", "low", "medium", "high", "xhigh", "max"] | None = None
    format: dict[str, Any] | None = None


class CountRequest(Body):
    """Messages whose tokens are to be counted."""

    model_config = ConfigDict(extra="forbid")
    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    system: str | list[SystemBlock] | None = None
    tools: Annotated[list[Tool], Field(max_length=512)] | None = None
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountRequest):
    """Messages to be answered. max_tokens beyond the model's context are cut to it. metadata has no effect."""

    max_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)]
    stop_sequences: Annotated[list[str], Field(max_length=16)] | None = None
    stream: bool | None = None
    temperature: Finite | None = None
    top_p: Finite | None = None
    top_k: Whole | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    context_management: dict[str, Any] | None = None


class Usage(BaseModel):
    """Tokens of the request; those from the prefix cache count apart."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0


class MessageAnswer(BaseModel):
    """The assistant's message."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None
    stop_sequence: str | None = None
    usage: Usage


class CountAnswer(BaseModel):
    """How many tokens the messages are."""

    input_tokens: int


class ErrorBody(BaseModel):
    """What was wrong."""

    type: str
    message: str


class ErrorAnswer(BaseModel):
    """An answer other than 200."""

    type: Literal["error"]
    error: ErrorBody
    request_id: str
