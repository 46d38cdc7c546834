"""Answers that keep a grammar: llguidance says which tokens may come next."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, NotSupported
from ..text.tokenizer import Tokenizer
from .request import Grammar

_PIP = "pip install 'anychip[serve]'"
JSON_RULES = {"whitespace_flexible": False}  # a model may otherwise fill an answer with spaces


class Grammars:
    """Compiles grammars for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._inner: Any = None

    def matcher(self, grammar: Grammar) -> Matcher:
        """Return a matcher at the start of the grammar.

        Raises InputError with the library's words where the grammar is wrong or too large, NotSupported without it.
        """
        try:
            import llguidance
        except ImportError as error:
            raise NotSupported(f"structured output needs llguidance, which is not installed: {_PIP}") from error
        if self._inner is None:
            self._inner = llguidance.LLTokenizer(self._tokenizer.to_json(), n_vocab=self._vocab_size,
                                                 eos_token=self._tokenizer.eos_id)
        try:
            matcher = llguidance.LLMatcher(self._inner, _compiled(llguidance.LLMatcher, grammar), log_level=0)
        except ValueError as error:
            raise InputError(f"the {grammar.kind} cannot be used as a grammar: {error}") from error
        if matcher.is_error():
            raise InputError(f"the {grammar.kind} cannot be used as a grammar: {matcher.get_error()}")
        return Matcher(matcher, self._vocab_size)


def _compiled(maker: Any, grammar: Grammar) -> Any:
    if grammar.kind == "regex":
        return maker.grammar_from_regex(grammar.text)
    if grammar.kind == "lark":
        return maker.grammar_from_lark(grammar.text)
    schema = grammar.text if grammar.kind == "json_schema" else '{"type": "object"}'
    try:
        json.loads(schema)
    except json.JSONDecodeError as error:
        raise InputError(f"the json_schema is not JSON: {error}") from error
    return maker.grammar_from_json_schema(schema, defaults=JSON_RULES)


class Matcher:
    """Where one answer stands in its grammar."""

    def __init__(self, inner: Any, vocab_size: int) -> None:
        self._inner, self._bits = inner, np.zeros((vocab_size + 31) // 32, np.int32)
        self._vocab_size = vocab_size
        self._mask: NDArray[np.int64] | None = None

    def allowed(self) -> NDArray[np.int64]:
        """Return the ids that may come next, the end token's where the text may end here. Worked out once a token."""
        if self._mask is None:
            self._inner.unsafe_compute_mask_ptr(self._bits.__array_interface__["data"][0], self._bits.nbytes)
            mask = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: self._vocab_size]
            self._mask = np.flatnonzero(mask)
        return self._mask

    def consume(self, token: int) -> bool:
        """Go on by an allowed token; False where the grammar grew beyond the library's limits."""
        self._mask = None
        return bool(self._inner.consume_token(token))

    @property
    def finished(self) -> bool:
        """Whether the text is complete and nothing may follow."""
        return bool(self._inner.is_stopped())

    def fork(self) -> Matcher:
        """Return a copy that goes its own way from here."""
        return Matcher(self._inner.deep_copy(), self._vocab_size)
