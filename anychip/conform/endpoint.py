"""An OpenAI-compatible endpoint as an implementation under test: `/v1/completions` with log-probabilities.

The prompt's own log-probabilities are used where the server gives them (`prompt_logprobs`, or `echo`): one request a
case. Else each position is a request for one token. Prompts are token ids where the server takes them, else text that
the model's tokenizer turns into the same ids.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..text.tokenizer import Tokenizer
from .answers import Row, Vocabulary, generated_rows, prompt_rows
from .cases import TOP, Case
from .judge import Seen, Unable, Wrong

_PROBE = (5, 6, 7, 8)  # ids of a first request, which shows what the server can do
_TOPS = (TOP, 10, 5, 1)  # alternatives a token: servers set limits of their own
_POSITIONS = 8  # of a case, where each is a request


class Refused(Exception):
    """The server answered with an HTTP error: its words."""


@dataclass(frozen=True)
class Server:
    """Where the server is, which of its models is asked, and the key, if it wants one."""

    url: str
    model: str
    key: str | None
    timeout_s: float

    def complete(self, prompt: Any, **options: Any) -> list[dict[str, Any]]:
        """Return the choices for one or several prompts, in order. Raises Refused, or InputError where none answers."""
        asked = {"model": self.model, "prompt": prompt, "max_tokens": 1, "temperature": 0, **options}
        found = _request(f"{self.url}/completions", self.key, self.timeout_s, asked)
        answers = found if isinstance(found, list) else [found]  # llama.cpp: one document a prompt
        choices = [choice for answer in answers for choice in answer.get("choices", [])]
        return choices if isinstance(found, list) else sorted(choices, key=lambda choice: choice.get("index", 0))


@dataclass(frozen=True)
class Endpoint:
    """A server whose abilities are known: `top` alternatives, of the prompt too (`whole`), prompts as ids or text."""

    server: Server
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    top: int
    whole: dict[str, Any] | None  # the options that make it give the prompt's log-probabilities; None: it cannot
    as_ids: bool
    fresh: dict[str, Any]  # the options that keep it from reusing a cached prefix; empty: it knows none

    def run(self, case: Case) -> Seen:
        """Ask for a case, without cached prefixes where the server can.

        Chunks are growing prompts (a prefix cache continues them), packed samples one request of several prompts, and
        `shrinking` asks longer prompts first, from the cache, which has to be cut then.
        """
        if case.kind == "mtp":
            raise Unable("an endpoint does not show what the MTP block predicts")
        try:
            if case.kind == "whole" and self.whole is not None and len(case.tokens) > 1:
                return _seen(case, self._whole(case, self.whole | self.fresh))
            return _seen(case, self._batch(case) if case.kind == "packed" else self._one_by_one(case))
        except Refused as words:
            raise Wrong(f"the server refused: {words}") from words

    def describe(self) -> str:
        """Return how the server is asked, in words."""
        how = "the prompt's log-probabilities" if self.whole is not None else "one token at each position"
        return f"{self.top} alternatives, {how}, prompts as {'ids' if self.as_ids else 'text'}"

    def _whole(self, case: Case, options: dict[str, Any]) -> dict[int, Row]:
        choice = self.server.complete(self._prompt(case.tokens), logprobs=self.top, **options)[0]
        rows = prompt_rows(choice, len(case.tokens), self.vocabulary)
        if rows is None:
            raise Wrong("the answer does not hold one log-probability for each of the prompt's tokens")
        return dict(enumerate(rows))

    def _one_by_one(self, case: Case) -> dict[int, Row]:
        """Each position by a request of its own."""
        found: dict[int, Row] = {}
        for position in sorted(_spread(case.positions), reverse=case.kind == "shrinking"):
            options = self.fresh if case.kind == "whole" or not found else {}
            choice = self.server.complete(self._prompt(case.tokens[: position + 1]), logprobs=self.top, **options)[0]
            found[position] = next(iter(generated_rows(choice, self.vocabulary)), {})
        return found

    def _batch(self, case: Case) -> dict[int, Row]:
        positions = _spread(case.positions)
        starts = [sum(len(piece) for piece in case.pieces[:i]) for i in range(len(case.pieces))]
        prompts = [self._prompt(case.tokens[max(start for start in starts if start <= position) : position + 1])
                   for position in positions]
        try:
            choices = self.server.complete(prompts, logprobs=self.top, **self.fresh)
        except Refused as words:
            raise Unable(f"the server takes no several prompts at once: {words}") from words
        if len(choices) != len(prompts):
            raise Wrong(f"{len(prompts)} prompts in one request got {len(choices)} answers")
        return {position: next(iter(generated_rows(choice, self.vocabulary)), {})
                for position, choice in zip(positions, choices, strict=True)}

    def _prompt(self, ids: tuple[int, ...]) -> Any:
        if self.as_ids:
            return list(ids)
        text = self.tokenizer.decode(ids)
        if self.tokenizer.encode(text) != list(ids):
            raise Unable("the server takes text only, and this case's ids are not what its text is encoded to")
        return text


def connect(url: str, model: str | None, key: str | None, tokenizer: Tokenizer, timeout_s: float = 120) -> Endpoint:
    """Ask a server what it can do. `url` is its root, with or without `/v1`; `model` None: the first that it lists.

    Raises InputError where it does not answer, refuses, or gives no log-probabilities.
    """
    root = url.rstrip("/")
    root = root if root.endswith("/v1") else root + "/v1"
    server = Server(root, model or _first_model(root, key, timeout_s), key, timeout_s)
    problems = []
    for as_ids in (True, False):
        prompt: Any = list(_PROBE) if as_ids else tokenizer.decode(_PROBE)
        for top in _TOPS:
            try:
                choice = server.complete(prompt, logprobs=top)[0]
            except Refused as words:
                problems.append(str(words))
                continue
            vocabulary = Vocabulary(tokenizer)
            if not generated_rows(choice, vocabulary):
                raise InputError(f"{root}/completions gives no log-probabilities for logprobs={top}: start the server "
                                 "with them enabled, or judge the model by `anychip conform FILE.py`")
            return Endpoint(server, tokenizer, vocabulary, top, _whole_options(server, prompt, top, vocabulary), as_ids,
                            _fresh_options(server, prompt, top))
    raise InputError(f"{root}/completions refused every request for log-probabilities: {problems[0]}")


def _whole_options(server: Server, prompt: Any, top: int, vocabulary: Vocabulary) -> dict[str, Any] | None:
    for options in ({"prompt_logprobs": top}, {"echo": True}):
        try:
            choice = server.complete(prompt, logprobs=top, **options)[0]
        except Refused:
            continue
        if prompt_rows(choice, len(_PROBE), vocabulary) is not None:
            return options
    return None


def _fresh_options(server: Server, prompt: Any, top: int) -> dict[str, Any]:
    """`cache_prompt` is llama.cpp's; other servers ignore or refuse it."""
    try:
        server.complete(prompt, logprobs=top, cache_prompt=False)
    except Refused:
        return {}
    return {"cache_prompt": False}


def _first_model(root: str, key: str | None, timeout_s: float) -> str:
    try:
        found = _request(f"{root}/models", key, timeout_s)
    except Refused as words:
        raise InputError(f"{root}/models refused: {words}; give --model NAME") from words
    models = [str(each["id"]) for each in found.get("data", []) if "id" in each]
    if not models:
        raise InputError(f"{root} lists no models: give --model NAME")
    return models[0]


def _request(address: str, key: str | None, timeout_s: float, body: dict[str, Any] | None = None) -> Any:
    headers = {"Content-Type": "application/json"} | ({} if key is None else {"Authorization": f"Bearer {key}"})
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(address, data, headers), timeout=timeout_s) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        words = error.read().decode(errors="replace").strip()[:300]
        if error.code in (401, 403):
            raise InputError(f"{address} refuses the key ({error.code}): name the variable that holds it, --key-env "
                             "VAR") from error
        raise Refused(f"HTTP {error.code}: {words}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{address} does not answer as an OpenAI-compatible server does: {error}; is it started, and "
                         "is the address right?") from error


def _spread(positions: Tensor) -> list[int]:
    """At most `_POSITIONS` of them, evenly, the last among them."""
    step = max(1, -(-len(positions) // _POSITIONS))
    return [int(p) for p in positions.flip(0)[::step].flip(0)]


def _seen(case: Case, rows: dict[int, Row]) -> Seen:
    values = torch.full(case.ids.shape, torch.nan, dtype=torch.float64)
    for i, position in enumerate(case.positions.tolist()):
        row = rows.get(position, {})
        for j, token in enumerate(case.ids[i].tolist()):
            values[i, j] = row.get(token, torch.nan)
    return Seen(values, ~values.isnan())
