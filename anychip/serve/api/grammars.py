"""What an answer must look like, as a grammar over the model's text, its reasoning and calls included."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...chat.layout import END_THINK
from ...chat.syntax import V4, Syntax
from ...text.tokenizer import Tokenizer
from ..request import Grammar
from ..structured import JSON_RULES


def answer_grammar(schema: Mapping[str, Any], tokenizer: Tokenizer, syntax: Syntax = V4, *, reasons: bool,
                   calls: bool) -> Grammar:
    """Return the grammar of an answer that is JSON of a schema ({}: any object).

    reasons: reasoning and `</think>` come first, free. calls: calls of tools may stand in the answer's place, free.
    """
    if not reasons and not calls:
        return Grammar("json_schema", json.dumps(schema)) if schema else Grammar("json")
    body = "%json " + json.dumps({**(schema or {"type": "object"}), "x-guidance": JSON_RULES})
    pad = r" /\n{0,2}/" if syntax.pad else ""
    rules = ["start: " + (f"reasoning {_literal(END_THINK, tokenizer)}{pad} answer" if reasons else "answer"),
             "answer: value" + (" | calls" if calls else ""), f"value: {body}"]
    if reasons:
        rules.append(r"reasoning: /(.|\n)*/")
    if calls:
        opening = syntax.before + syntax.block
        rules += [f"calls: {_literal(opening, tokenizer)} rest", _free_text(syntax, tokenizer)]
    return Grammar("lark", "\n".join(rules))


def _free_text(syntax: Syntax, tokenizer: Tokenizer) -> str:
    """Any text, with the special tokens of the calls' tags in it where the tokenizer has such."""
    tags = tokenizer.encode(syntax.forced("") + syntax.call + syntax.close)
    special = sorted({token for token in tags if tokenizer.is_special(token)})
    return r"rest: (/(.|\n)+/" + "".join(f" | <[{token}]>" for token in special) + ")*"


def _literal(text: str, tokenizer: Tokenizer) -> str:
    """Return the grammar's form of a fixed text: special tokens by their id, the rest as strings."""
    found, plain = list[str](), list[int]()
    for token in [*tokenizer.encode(text), None]:
        if token is not None and not tokenizer.is_special(token):
            plain.append(token)
            continue
        if plain:
            found.append(json.dumps(tokenizer.decode(plain), ensure_ascii=False))
            plain = []
        found += [] if token is None else [f"<[{token}]>"]
    return " ".join(found)
