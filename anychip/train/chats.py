"""Fine-tuning samples from chats: the model's own format, with a loss on what the assistant says and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..chat import ChatFormat, chat_format
from ..errors import InputError
from ..text.files import MAX_REASONS
from ..text.packing import Numbers, SampleRows
from ..text.sources import check_json, json_lines, parquet_rows
from ..text.tokenizer import Tokenizer

_FIELDS = ("messages", "tools", "thinking", "effort")
Piece = tuple[str, bool]  # a run of text, and whether the assistant says it


def chat_rows(path: str | Path, tokenizer: Tokenizer, length: int, family: str = "v4") -> SampleRows:
    """Return the chats of a file as packed rows of `length` tokens, in the chat format of a family and its tokenizer.

    A `.jsonl` line or a `.parquet` row (columns of the same names) has `messages` in OpenAI's form (reasoning as
    `reasoning_content`), and perhaps `tools`, `thinking` (default: whether there is reasoning) and `effort`. Raises
    InputError, with the first reasons, for chats that cannot be encoded, have no assistant or are too long.
    """
    form = chat_format(family, template=tokenizer.chat_template, specials=tokenizer.specials)
    samples: list[tuple[Numbers, Numbers]] = []
    reasons: list[str] = []
    for where, chat, reason in _chats(Path(path)):
        try:
            if reason:
                raise InputError(reason)
            samples += [_sample(pieces, tokenizer) for pieces in chat_pieces(chat, form)]
        except InputError as error:
            reasons.append(f"{where}: {error}")
    if reasons:
        more = f"\n  and {len(reasons) - MAX_REASONS} more" if len(reasons) > MAX_REASONS else ""
        raise InputError(f"{path} cannot be learnt from:\n  " + "\n  ".join(reasons[:MAX_REASONS]) + more)
    return SampleRows(samples, length, tokenizer.eos_id)


def chat_pieces(chat: Mapping[str, Any], form: ChatFormat) -> list[list[Piece]]:
    """Return a chat's samples as pieces of text.

    One sample holds all turns where each goes on from the one before. Where the format drops earlier reasoning, a
    turn's prompt is not what came before it: it begins a sample of its own, as it will be met. The assistant says what
    ends its turn, too. Raises InputError.
    """
    unknown = [name for name in chat if name not in _FIELDS]
    messages = chat.get("messages")
    if unknown or not isinstance(messages, list):
        raise InputError(f"a chat has the fields {', '.join(_FIELDS)}, and messages is a list; this has "
                         f"{', '.join(chat)}")
    options: dict[str, Any] = {"tools": chat.get("tools") or None, "effort": chat.get("effort"),
                               "thinking": chat.get("thinking", any(_reasons(message) for message in messages))}
    form.encode(messages, **options)  # says what is wrong with any of them
    samples: list[list[Piece]] = []
    so_far = None
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = form.encode(messages[:i], **options) if i else ""
        whole = form.encode(messages[: i + 1], **options)
        if not whole.startswith(prompt):
            raise InputError(f"messages[{i}]: the chat template does not begin this turn as it asks for it; give the "
                             "turn its reasoning_content, or the chat thinking=false")
        if so_far is None or not prompt.startswith(so_far):
            samples.append([])
            so_far = ""
        samples[-1] += [(prompt[len(so_far) :], False), (whole[len(prompt) :], True)]
        so_far = whole
    if not samples:
        raise InputError("no message of the assistant to learn from")
    return [_with_ends(pieces, form.syntax.ends) for pieces in samples]


def _with_ends(pieces: list[Piece], ends: tuple[str, ...]) -> list[Piece]:
    """Give the assistant the text that ends each of its turns, where the format has that as the next turn's opening."""
    found: list[Piece] = []
    for text, said in [*pieces, (ends[0], False)]:
        if found and not said and not found[-1][0].rstrip("\n").endswith(ends):
            end = next((end for end in ends if text.startswith(end)), "")
            found[-1] = (found[-1][0] + end, True)
            text = text.removeprefix(end)
        found.append((text, said))
    return found[:-1]


def _reasons(message: Any) -> bool:
    return isinstance(message, Mapping) and bool(message.get("reasoning_content") or message.get("reasoning"))


def _sample(pieces: list[Piece], tokenizer: Tokenizer) -> tuple[Numbers, Numbers]:
    """Inputs and targets of one sample; only what the assistant says is a target."""
    parts = [(tokenizer.encode(text), said) for text, said in pieces]
    ids = np.array([token for tokens, _ in parts for token in tokens], np.int64)
    said = np.array([said for tokens, said in parts for _ in tokens])
    return ids[:-1], np.where(said[1:], ids[1:], -1)


def _chats(path: Path) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Where each chat stands, the chat, and why it is none."""
    if path.suffix == ".parquet":
        for number, messages in enumerate(parquet_rows(path, "messages"), start=1):
            said = [{name: value for name, value in message.items() if value is not None} for message in messages]
            yield f"row {number}", {"messages": said}, ""
    elif path.suffix == ".jsonl":
        for number, line in json_lines(path):
            value, reason = check_json(line)
            yield f"line {number}", value or {}, reason
    else:
        raise InputError(f"cannot read chats from {path}: the name must end in .jsonl or .parquet, not {path.suffix!r}")
