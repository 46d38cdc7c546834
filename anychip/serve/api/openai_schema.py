"""What OpenAI's endpoints take, and what they answer, as the API page documents it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .options import Body, Options, Whole


class FunctionCall(Body):
    """A function and its arguments, a JSON object's text."""

    model_config = ConfigDict(extra="allow")
    name: str
    arguments: str = ""


class ToolCall(Body):
    """A call that the assistant made."""

    model_config = ConfigDict(extra="allow")
    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Body):
    """One message. reasoning_content, task, prefix and the role latest_reminder are DeepSeek's (docs/api.md)."""

    model_config = ConfigDict(extra="allow")
    role: Literal["system", "developer", "user", "assistant", "tool", "latest_reminder"]
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    task: str | None = None
    prefix: bool | None = None


class Function(Body):
    """A function that may be called; `parameters` is a JSON schema."""

    model_config = ConfigDict(extra="allow")
    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r'^[^"\n<>]+$')]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Body):
    """A tool: a function."""

    type: Literal["function"] = "function"
    function: Function


class FunctionName(Body):
    """The function to call."""

    name: str


class ToolChoice(Body):
    """That one function is to be called."""

    type: Literal["function"] = "function"
    function: FunctionName


class JsonSchema(Body):
    """A schema by its name; the answer always keeps to it, `strict` or not."""

    model_config = ConfigDict(populate_by_name=True)
    name: str = "answer"
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """What the answer must be: text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Thinking(Body):
    """DeepSeek's switch."""

    type: Literal["enabled", "disabled"]


class TemplateOptions(Body):
    """The switches by the names that other servers use."""

    model_config = ConfigDict(extra="forbid")
    thinking: bool | None = None
    enable_thinking: bool | None = None
    reasoning_effort: str | None = None


class ChatRequest(Options):
    """A chat to be continued. Thinking is on where thinking, reasoning_effort or chat_template_kwargs say so."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    tools: Annotated[list[Tool], Field(max_length=512)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    thinking: Thinking | None = None
    chat_template_kwargs: TemplateOptions | None = None
    modalities: list[Literal["text"]] | None = None


class CompletionRequest(Options):
    """Prompts to be continued: a text, texts, token ids, or lists of token ids."""

    prompt: (str | Annotated[list[str], Field(min_length=1, max_length=256)]
             | Annotated[list[Whole], Field(min_length=1)]
             | Annotated[list[Annotated[list[Whole], Field(min_length=1)]], Field(min_length=1, max_length=256)])
    max_tokens: Whole | None = None
    logprobs: Annotated[int, Field(ge=0, le=64)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=64)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    suffix: str | None = None
    response_format: ResponseFormat | None = None


class TokenizeRequest(Body):
    """A prompt, or messages as a chat would encode them; one of the two."""

    model_config = ConfigDict(extra="forbid")
    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    tools: list[Tool] | None = None
    thinking: bool | None = None


class DetokenizeRequest(Body):
    """Token ids whose text is wanted."""

    model_config = ConfigDict(extra="forbid")
    model: str | None = None
    tokens: list[Whole]


class ErrorBody(BaseModel):
    """What was wrong: words, the kind, and the field and code where there is one."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """An answer other than 200."""

    error: ErrorBody


class Usage(BaseModel):
    """Tokens of the request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int] | None = None
    completion_tokens_details: dict[str, int] | None = None


class ChatAnswer(BaseModel):
    """A chat's continuation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: Usage


class CompletionAnswer(BaseModel):
    """Prompts' continuations."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: Usage


class TokenizeAnswer(BaseModel):
    """Token ids of a prompt, how many, and how many the model may see."""

    tokens: list[int]
    count: int
    max_model_len: int


class DetokenizeAnswer(BaseModel):
    """The text of token ids."""

    prompt: str
