"""How each family's answers are written: one table a family, and how one call of a tool is read.

Sources: the publishers' encoding/README.md (DeepSeek-V4, V3.2) and the chat templates that ship with their checkpoints
(DeepSeek-V3 and V3.1, GLM-4.7 and later, Qwen3).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

from .layout import CALLS_CLOSE, CALLS_OPEN, DSML, EOS, INVOKE_CLOSE, INVOKE_OPEN, PARAMETER_CLOSE, PARAMETER_OPEN
from .reader import Call, Malformed, Reader, checked_json, checked_name, checked_object, json_object


@dataclass(frozen=True)
class Syntax:
    """A family's answers. White space that belongs to a tag is no part of the text around it.

    ends: texts that end a completion, an answer's own first (GLM has the next turn's opening instead). block, call,
    close: what a block of calls, each call in it, and its end begin with; where a call stands alone, `close` is empty.
    lead, named: what stands between a block's opening and the first call's name, and behind the name. before: white
    space that belongs to a block. pad: the line end inside and behind `<think>` and `</think>`. opens: the model itself
    may write `<think>` first.
    """

    ends: tuple[str, ...]
    block: str
    call: str
    close: str
    read: Callable[[Reader], Call]
    lead: str
    named: str
    before: str = ""
    pad: str = ""
    opens: bool = False

    def forced(self, name: str | None) -> str:
        """Return the start of an answer that must call a tool: this one, or any (None)."""
        return self.before + self.block + self.lead + (name + self.named if name else "")


def read_dsml(reader: Reader) -> Call:
    """Read one DSML invocation, from behind the name's opening quote."""
    name = checked_name((yield from reader.until('">')))
    arguments: dict[str, str] = {}
    while (yield from reader.tag((PARAMETER_OPEN, INVOKE_CLOSE))) == PARAMETER_OPEN:
        key = yield from reader.until('" string="')
        kind = yield from reader.until('">')
        value = yield from reader.until(PARAMETER_CLOSE)
        if kind not in ("true", "false"):
            raise Malformed(f'the parameter {key!r} of {name} has string="{kind[:60]}", not true or false')
        if key in arguments:
            raise Malformed(f"{name} has the parameter {key!r} twice")
        arguments[key] = json.dumps(value, ensure_ascii=False) if kind == "true" else checked_json(
            f"the parameter {key!r}", value)
    return name, json_object(arguments)


V3_CALL, V3_SEP, V3_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"


def read_v3(reader: Reader) -> Call:
    """Read one call of DeepSeek-V3: `name<sep>arguments` (V3.1), or `function<sep>name` and fenced JSON (V3, R1)."""
    name = yield from reader.until(V3_SEP)
    body = yield from reader.until(V3_END)
    if name.strip() == "function" and "```" in body:
        name, _, body = body.partition("```")
        body = body.removeprefix("json").strip().removesuffix("```")
    name = checked_name(name.strip())
    return name, checked_object(f"what {name} is called with", body)


CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"  # Qwen3 and GLM


def read_qwen3(reader: Reader) -> Call:
    """Read one call of Qwen3: a JSON object with `name` and `arguments`."""
    value = json.loads(checked_object("a call", (yield from reader.until(CALL_CLOSE))))
    name, arguments = value.get("name"), value.get("arguments")
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise Malformed("a call needs a name and an object of arguments")
    return checked_name(name), json.dumps(arguments, ensure_ascii=False)


def read_glm5(reader: Reader) -> Call:
    """Read one call of GLM: the name, then keys and values; a value is JSON unless its type is string."""
    body = yield from reader.until(CALL_CLOSE)
    name, *parts = body.split("<arg_key>")
    name = checked_name(name.strip())
    arguments: dict[str, str] = {}
    for part in parts:
        key, closed, value = part.partition("</arg_key>")
        opening, opened, value = value.partition("<arg_value>")
        value, ended, after = value.partition("</arg_value>")
        if not (closed and opened and ended) or opening.strip() or after.strip():
            raise Malformed(f"{part[:60]!r} of {name} is no key with its value")
        if key in arguments:
            raise Malformed(f"{name} has the argument {key!r} twice")
        arguments[key] = _glm5_value(value, reader.types.get((name, key)))
    return name, json_object(arguments)


def _glm5_value(value: str, declared: str | None) -> str:
    if declared != "string":
        try:
            return checked_json("", value)
        except Malformed:
            pass  # then it is text: the format writes strings without quotes
    return json.dumps(value, ensure_ascii=False)


V4 = Syntax((EOS,), CALLS_OPEN, INVOKE_OPEN, CALLS_CLOSE, read_dsml, lead="\n" + INVOKE_OPEN, named='">\n',
            before="\n\n")
V32 = replace(V4, block=f"<{DSML}function_calls>", close=f"</{DSML}function_calls>")
V3 = Syntax((EOS,), "<｜tool▁calls▁begin｜>", V3_CALL, "<｜tool▁calls▁end｜>", read_v3, lead=V3_CALL, named=V3_SEP)
GLM5 = Syntax(("<|user|>", "<|observation|>", "<|endoftext|>"), CALL_OPEN, CALL_OPEN, "", read_glm5, lead="", named="")
QWEN3 = Syntax(("<|im_end|>", "<|endoftext|>"), CALL_OPEN, CALL_OPEN, "", read_qwen3, lead='\n{"name": "',
               named='", "arguments": ', before="\n", pad="\n", opens=True)
# By `config.family`.
SYNTAXES = {"v4": V4, "v3": V3, "v32": V32, "glm5": GLM5, "qwen3-moe": QWEN3, "qwen3": QWEN3}
