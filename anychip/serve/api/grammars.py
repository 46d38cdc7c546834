"""What an answer must look like, as a grammar over the model's text, its reasoning and calls included."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ...chat.layout import CALLS_OPEN, DSML, END_THINK
from ...errors import InputError
from ...text.tokenizer import Tokenizer
from ..request import Grammar


def answer_grammar(schema: Mapping[str, Any], tokenizer: Tokenizer, *, reasons: bool, calls: bool) -> Grammar:
    """Return the grammar of an answer that is JSON of a schema ({}: any object).

    reasons: reasoning and `</think>` come first, free. calls: calls of tools may stand in the answer's place, free.
    """
    if not reasons and not calls:
        return Grammar("json_schema", json.dumps(schema)) if schema else Grammar("json")
    body = "%json " + json.dumps(schema or {"type": "object"})
    rules = ["start: " + ("reasoning " + _literal(END_THINK, tokenizer) + " answer" if reasons else "answer"),
             "answer: value" + (" | calls" if calls else ""), f"value: {body}"]
    if reasons:
        rules.append(r"reasoning: /(.|\n)*/")
    if calls:
        rules += [f"calls: {_literal(chr(10) * 2 + CALLS_OPEN, tokenizer)} rest", _free_text(tokenizer)]
    return Grammar("lark", "\n".join(rules))


def _free_text(tokenizer: Tokenizer) -> str:
    """Any text, with the tag's special token in it where the tokenizer has one."""
    token = _special(DSML, tokenizer)
    return r"rest: /(.|\n)*/" if token is None else rf"rest: (/(.|\n)+/ | <[{token}]>)*"


def _literal(text: str, tokenizer: Tokenizer) -> str:
    """Return the grammar's form of a fixed text: special tokens by their id, the rest as a string."""
    parts = [part for part in re.split(f"({re.escape(END_THINK)}|{re.escape(DSML)})", text) if part]
    ids = [_special(part, tokenizer) for part in parts]
    return " ".join(json.dumps(part, ensure_ascii=False) if token is None else f"<[{token}]>"
                    for part, token in zip(parts, ids, strict=True))


def _special(text: str, tokenizer: Tokenizer) -> int | None:
    try:
        token = tokenizer.token_id(text)
    except InputError:
        return None
    return token if tokenizer.is_special(token) else None
