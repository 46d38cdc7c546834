"""The sampling options that OpenAI's endpoints share, as a request gives them, and the engine's Sampling from them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ..request import Grammar, Sampling
from .errors import ApiError

Finite = Annotated[float, Field(allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Body(BaseModel):
    """Part of a request. Types are taken as they are: "1" is no number, 1 is not true."""

    model_config = ConfigDict(strict=True)


class StreamOptions(Body):
    """How a stream is sent. `include_usage` adds a last chunk with the usage; `include_obfuscation` has no effect."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Options(Body):
    """Options of /v1/chat/completions and /v1/completions. An option that is not listed is refused.

    top_k, min_p, repetition_penalty, min_tokens, ignore_eos, stop_token_ids, return_tokens_as_token_ids and
    guided_regex are this server's additions, by the names that other servers use. user, metadata, store, service_tier,
    safety_identifier, prompt_cache_key, prompt_cache_retention and verbosity are taken and have no effect.
    """

    model_config = ConfigDict(extra="forbid")
    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Finite | None = None
    top_p: Finite | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Finite | None = None
    presence_penalty: Finite | None = None
    frequency_penalty: Finite | None = None
    repetition_penalty: Finite | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    stop_token_ids: Annotated[list[Whole], Field(max_length=64)] | None = None
    min_tokens: Whole | None = None
    ignore_eos: bool | None = None
    logit_bias: dict[str, Finite] | None = None
    return_tokens_as_token_ids: bool | None = None
    guided_regex: str | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    verbosity: str | None = None

    def sampling(self, *, max_tokens: int | None, logprobs: int | None, grammar: Grammar | None,
                 ends: tuple[str, ...] = ()) -> Sampling:
        """Return the engine's form; `ends` stop an answer beside what the request names. Raises InputError or ApiError
        where values are out of range."""
        given = {name: value for name in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty",
                                          "repetition_penalty", "min_tokens", "n")
                 if (value := getattr(self, name)) is not None}
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if self.guided_regex is not None and grammar is not None:
            raise ApiError(400, "guided_regex and response_format exclude each other", param="guided_regex")
        if self.guided_regex is not None:
            grammar = Grammar("regex", self.guided_regex)
        return Sampling(seed=self.seed, top_k=max(0, self.top_k or 0), logit_bias=self._bias(), logprobs=logprobs,
                        max_tokens=max_tokens, stop=stop + ends, stop_token_ids=tuple(self.stop_token_ids or ()),
                        ignore_eos=bool(self.ignore_eos), grammar=grammar, **given)

    def _bias(self) -> dict[int, float]:
        try:
            return {int(token): value for token, value in (self.logit_bias or {}).items()}
        except ValueError:
            raise ApiError(400, "logit_bias must have token ids as keys", param="logit_bias") from None

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


def check_stream(options: Options) -> None:
    """Raise ApiError where stream_options come without a stream, as OpenAI's server does."""
    if options.stream_options is not None and not options.stream:
        raise ApiError(400, "stream_options need stream=true", param="stream_options")
