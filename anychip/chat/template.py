"""Chat templates: the Jinja text that ships with a checkpoint, rendered as Hugging Face transformers renders it."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from ..errors import InputError


class ChatTemplate:
    """A template in transformers' sandbox: it reads what it is given, changes nothing and reaches nothing else.

    Blocks and their indentation leave no blank lines; `raise_exception`, `strftime_now`, `tojson` (of plain JSON, with
    json.dumps' arguments), `break`, `continue` and `{% generation %}` mean what they mean there. Raises InputError
    where the text is no template.
    """

    def __init__(self, text: str, specials: Mapping[str, str]) -> None:
        """`specials`: special tokens by their role, as the template names them (bos_token, eos_token, ...)."""
        self.text, self._specials = text, dict(specials)
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
        try:
            self._template = environment.from_string(text)
        except jinja2.TemplateSyntaxError as error:
            raise InputError(f"the chat template cannot be read: line {error.lineno}: {error.message}") from error

    def render(self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] | None = None,
               add_generation_prompt: bool = False, **options: Any) -> str:
        """Return the text of messages. Raises InputError, with the template's own reason, where it refuses them."""
        try:
            return self._template.render(messages=messages, tools=tools, documents=None,
                                         add_generation_prompt=add_generation_prompt, **self._specials | options)
        except (jinja2.TemplateError, TypeError, ValueError, AttributeError, KeyError) as error:
            raise InputError(f"the chat template cannot take these messages: {error}") from error


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the assistant says; nobody here asks for the marks."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None,
            separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(format: str) -> str:
    return datetime.datetime.now().strftime(format)
