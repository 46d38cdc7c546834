"""Documents of a training set, one after the other: `.txt`, `.jsonl` and `.parquet` files, without holding them all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from anychip.errors import InputError, NotSupported
from anychip.text.files import MAX_REASONS, read_document, read_text_file

KINDS = (".txt", ".jsonl", ".parquet")
_ROWS = 1024  # of a Parquet file held at once


def documents(paths: Sequence[str | Path]) -> Iterator[str]:
    """Yield the documents of the files: one of a `.txt`, one a line of a `.jsonl` ("text"), one a row of a `.parquet`
    (column "text").

    Raises InputError for a file that is missing, of another kind or malformed (the first bad lines, after the last
    good one), NotSupported for Parquet without pyarrow.
    """
    wrong = [f"{path} (ends in {Path(path).suffix!r})" for path in paths if Path(path).suffix not in KINDS]
    if wrong:
        raise InputError(f"cannot read text from {', '.join(wrong)}: a name must end in {', '.join(KINDS)}")
    for path in map(Path, paths):
        yield from _READERS[path.suffix](path)


def _text(path: Path) -> Iterator[str]:
    yield read_text_file(path)


def json_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number and text of each line that is not empty. Raises InputError where the file cannot be read."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                text = line.decode("utf-8").removeprefix("\ufeff" if number == 1 else "")
                if text.strip():
                    yield number, text
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; give the path of a text file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} in line {number + 1}; convert "
                         f"it, for example: iconv -f latin1 -t utf-8 {path.name}") from error


def _jsonl(path: Path) -> Iterator[str]:
    reasons, count = [], 0
    for number, line in json_lines(path):
        document, reason = read_document(line)
        if reason:
            reasons.append(f"line {number}: {reason}")
        else:
            count += 1
            yield document
    if reasons:
        more = f"\n  and {len(reasons) - MAX_REASONS} more" if len(reasons) > MAX_REASONS else ""
        raise InputError(f'{path}: every line must be an object like {{"text": "..."}}\n  '
                         + "\n  ".join(reasons[:MAX_REASONS]) + more)
    if not count:
        raise InputError(f"{path} holds no text; give a file with at least one word")


def _parquet(path: Path) -> Iterator[str]:
    for number, row in enumerate(parquet_rows(path, "text"), start=1):
        if not isinstance(row, str):
            raise InputError(f'{path}, row {number}: "text" is {type(row).__name__}, not a string')
        yield row


def parquet_rows(path: Path, column: str) -> Iterator[Any]:
    """Yield one column's values. Raises NotSupported without pyarrow, InputError for a file that has no such column."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise NotSupported("Parquet files need pyarrow: pip install 'anychip[train]'") from error
    try:
        with parquet.ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                raise InputError(f"{path} has no column {column!r}; its columns are "
                                 f"{', '.join(file.schema_arrow.names)}")
            for batch in file.iter_batches(_ROWS, columns=[column]):
                yield from batch.column(0).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"cannot read {path} as Parquet: {error}") from error


def check_json(line: str) -> tuple[Any, str]:
    """Return a line's value and an empty reason, or None and why it is no JSON object."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        return None, f"not JSON ({error.msg} at column {error.colno})"
    return (value, "") if isinstance(value, dict) else (None, f"of type {type(value).__name__}, not an object")


_READERS = {".txt": _text, ".jsonl": _jsonl, ".parquet": _parquet}
