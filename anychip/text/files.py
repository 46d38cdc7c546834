"""The user's own text: a `.txt` file (UTF-8), or a `.jsonl` file, an object with a "text" field a line."""

from __future__ import annotations

import json
from pathlib import Path

from anychip.errors import InputError

MAX_REASONS = 5  # of a file with many bad lines only the first ones are listed, and their count


def read_text(path: str | Path) -> str:
    """All text of the file, documents joined by an empty line. Raises InputError as `read_documents`."""
    return "\n\n".join(read_documents(path))


def read_documents(path: str | Path) -> list[str]:
    """The documents of the file: one for `.txt`, one a line for `.jsonl` (empty lines are skipped).

    Text is kept as it is, line ends included; a byte order mark at its start is dropped.
    Raises InputError when the file is missing, unreadable, of another kind, not UTF-8, malformed (with the
    first bad lines) or without text.
    """
    path = Path(path)
    if path.suffix not in (".txt", ".jsonl"):
        raise InputError(
            f"cannot read text from {path}: the name must end in .txt or .jsonl, not {path.suffix!r}"
        )
    text = read_text_file(path)
    documents = [text] if path.suffix == ".txt" else _json_lines(path, text)
    if not any(document.strip() for document in documents):
        raise InputError(f"{path} holds no text; give a file with at least one word")
    return documents


def read_text_file(path: Path) -> str:
    """The whole text of a UTF-8 file, without a byte order mark. Raises InputError where it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror or error}; give the path of a text file"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x} ({error.reason}); "
            f"convert it, for example: iconv -f latin1 -t utf-8 {path.name}"
        ) from error


def _json_lines(path: Path, text: str) -> list[str]:
    documents, reasons = [], []
    # Only \n ends a record: JSON strings may hold the other characters at which str.splitlines breaks.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        document, reason = read_document(line)
        if reason:
            reasons.append(f"line {number}: {reason}")
        else:
            documents.append(document)
    if reasons:
        more = f"\n  and {len(reasons) - MAX_REASONS} more" if len(reasons) > MAX_REASONS else ""
        listed = "\n  ".join(reasons[:MAX_REASONS])
        raise InputError(f'{path}: every line must be an object like {{"text": "..."}}\n  {listed}{more}')
    return documents


def read_document(line: str) -> tuple[str, str]:
    """The text of one line of a `.jsonl` file and an empty reason, or an empty text and why there is none."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        return "", f"not JSON ({error.msg} at column {error.colno})"
    if not isinstance(value, dict):
        return "", f"of type {type(value).__name__}, not an object"
    if "text" not in value:
        return "", f'no field "text"; its fields are {", ".join(map(repr, value)) or "none"}'
    if not isinstance(value["text"], str):
        return "", f'"text" is of type {type(value["text"]).__name__}, not a string'
    return value["text"], ""
