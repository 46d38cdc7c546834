"""What can be asked: a model on one of our chips, or an endpoint that speaks OpenAI's or Anthropic's protocol.

A system is named in one word:

    nano@cpu                                        a model (name or folder) on a chip
    openai:MODEL  or  openai:MODEL@http://host/v1   chat completions (GPT, GLM, Qwen, DeepSeek, vLLM, `anychip serve`)
    anthropic:MODEL  or  anthropic:MODEL@http://host
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from ..errors import AnychipError, InputError, NotSupported
from .replies import Reply
from .tasks import Question

PROVIDERS = ("openai", "anthropic")
RETRIES = 8  # of one request: rate limits and server errors, with the client's growing pauses


class Unanswered(AnychipError):
    """A request that got no reply after all retries: the run can be taken up again later."""


class Rejected(AnychipError):
    """A request that the system will never answer (bad key, unknown model, no credit): going on would be useless."""


@dataclass(frozen=True)
class Ask:
    """How every system is asked: at most `max_tokens` of reply; `temperature` None leaves it to each endpoint (some
    take none) and decodes local models greedily; `thinking` lets local models reason first."""

    max_tokens: int = 256
    temperature: float | None = None
    thinking: bool = False


class System(Protocol):
    """Something that answers. `parallel` requests may be under way at once."""

    name: str
    parallel: int

    @property
    def identity(self) -> dict[str, Any]:
        """Everything but the prompt that a reply depends on: what kept replies are found by."""
        ...

    def ask(self, question: Question) -> Reply:
        """Return the reply. Raises Unanswered or Rejected."""
        ...

    def close(self) -> None:
        """Free what the system holds."""
        ...


def open_system(text: str, how: Ask, key: Callable[[str], str | None], parallel: int = 8) -> System:
    """Open a system by its name. `key(provider)` gives the API key of `openai` or `anthropic`.

    Raises InputError for a malformed name, and what opening a model or a chip raises.
    """
    provider, _, rest = text.partition(":")
    if provider in PROVIDERS:
        model, _, url = rest.partition("@")
        if not model:
            raise InputError(f"{text!r} names no model; write {provider}:MODEL or {provider}:MODEL@URL")
        endpoint = Endpoint(text, provider, model, url or None, how, parallel)
        endpoint.connect(key(provider))
        return endpoint
    model, _, chip = text.rpartition("@")
    if not model or not chip:
        raise InputError(f"{text!r} names no system; write MODEL@CHIP (nano@cpu), or "
                         + " or ".join(f"{name}:MODEL@URL" for name in PROVIDERS))
    return Local(text, model, chip, how)


class Local:
    """A model in the embedded engine on one of our chips, asked in its family's chat format."""

    parallel = 32

    def __init__(self, name: str, model: str, chip_name: str, how: Ask) -> None:
        from ..chat import chat_format
        from ..checkpoint.digest import digest
        from ..chips import open_chip
        from ..serve.engine import Engine
        from ..serve.models import open_model

        self.name, self.how = name, how
        chip = open_chip(chip_name)
        network, tokenizer = open_model(model, chip)
        self._tokenizer, self._format = tokenizer, chat_format(
            network.config.family, template=tokenizer.chat_template, specials=tokenizer.specials)
        self._identity = {"model": digest(network), "chip": chip.name, "tokenizer": tokenizer.digest}
        if tokenizer.chat_template is not None:
            self._identity["template"] = tokenizer.chat_template
        self._engine = Engine.start(network, chip, tokenizer)

    @property
    def identity(self) -> dict[str, Any]:
        return {**self._identity, "ask": asdict(self.how)}

    def ask(self, question: Question) -> Reply:
        from ..chat import parse_completion
        from ..serve.request import Request, Sampling

        prompt = self._format.encode([{"role": "user", "content": question.prompt}], thinking=self.how.thinking)
        ids = self._tokenizer.encode(prompt)
        started = time.perf_counter()
        sampling = Sampling(temperature=self.how.temperature or 0.0, max_tokens=self.how.max_tokens)
        outputs = list(self._engine.submit(Request(tuple(ids), sampling)))
        text = parse_completion("".join(output.text for output in outputs), thinking=self._format.reasons(prompt),
                                syntax=self._format.syntax).content
        return Reply(text, len(ids), sum(output.token_id is not None for output in outputs),
                     time.perf_counter() - started, outputs[-1].finish_reason or "stop")

    def close(self) -> None:
        self._engine.stop()


class Endpoint:
    """A server by its provider's own client library, which keeps to rate limits (Retry-After) by itself."""

    def __init__(self, name: str, provider: str, model: str, url: str | None, how: Ask, parallel: int) -> None:
        self.name, self.provider, self.model, self.url = name, provider, model, url
        self.how, self.parallel = how, parallel
        self._client: Any = None

    @property
    def identity(self) -> dict[str, Any]:
        return {"provider": self.provider, "model": self.model, "url": self.url, "ask": asdict(self.how)}

    def connect(self, key: str | None) -> None:
        """Make the client. Raises NotSupported without the client library, InputError where a key is wanted."""
        try:
            import anthropic
            import openai
        except ImportError as error:
            raise NotSupported("asking endpoints needs their client libraries: pip install 'anychip[eval]'") from error
        if key is None and self.url is None:
            raise InputError(f"{self.name}: {self.provider} wants a key; set {self.provider.upper()}_API_KEY")
        options: dict[str, Any] = {"api_key": key or "none", "max_retries": RETRIES}
        if self.url is not None:
            options["base_url"] = self.url
        self._client = openai.OpenAI(**options) if self.provider == "openai" else anthropic.Anthropic(**options)

    def ask(self, question: Question) -> Reply:
        started = time.perf_counter()
        try:
            found = self._openai(question) if self.provider == "openai" else self._anthropic(question)
        except Exception as error:
            raise _translated(self.name, error) from error
        return Reply(**found, time_s=time.perf_counter() - started)

    def _openai(self, question: Question) -> dict[str, Any]:
        answer = self._client.chat.completions.create(
            model=self.model, messages=[{"role": "user", "content": question.prompt}],
            max_completion_tokens=self.how.max_tokens, extra_body=self._body())
        choice, usage = answer.choices[0], answer.usage
        return {"text": choice.message.content or "", "finish": choice.finish_reason or "stop",
                "input_tokens": usage.prompt_tokens if usage else None,
                "output_tokens": usage.completion_tokens if usage else None}

    def _anthropic(self, question: Question) -> dict[str, Any]:
        answer = self._client.messages.create(
            model=self.model, messages=[{"role": "user", "content": question.prompt}],
            max_tokens=self.how.max_tokens, extra_body=self._body())
        text = "".join(block.text for block in answer.content if block.type == "text")
        return {"text": text, "finish": answer.stop_reason or "stop", "input_tokens": answer.usage.input_tokens,
                "output_tokens": answer.usage.output_tokens}

    def _body(self) -> dict[str, Any]:
        """What the client libraries have no argument for: Anthropic's takes no temperature."""
        return {} if self.how.temperature is None else {"temperature": self.how.temperature}

    def close(self) -> None:
        self._client.close()


def _translated(name: str, error: Exception) -> Exception:
    """Return our error for a client library's; both libraries name theirs alike. Others are bugs: they stay."""
    import anthropic
    import openai

    final = (400, 401, 402, 403, 404, 422)
    if isinstance(error, openai.APIStatusError | anthropic.APIStatusError):
        text = f"{name} answered HTTP {error.status_code}: {error.message}"
        return Rejected(text) if error.status_code in final else Unanswered(f"{text} (after {RETRIES} retries)")
    if isinstance(error, openai.APIError | anthropic.APIError):
        return Unanswered(f"{name} could not be reached: {error} (after {RETRIES} retries)")
    return error
