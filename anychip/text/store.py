"""Tokenised documents in a memory-mapped file: text is tokenised once, whatever its size, and read in any order.

    <folder>/tokens.bin   all documents' tokens, one after the other (uint16, or uint32 for large vocabularies)
    <folder>/ends.bin     where each document ends (int64)
    <folder>/store.json   what it was made from

A store appears whole: it is written beside its place and renamed into it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anychip.cpp import cache_folder
from anychip.errors import InputError
from anychip.text.sources import documents
from anychip.text.tokenizer import Tokenizer

_FORMAT = 1
_AT_ONCE = 256  # documents tokenised at once


class TokenStore:
    """Documents as tokens: document i is `tokens[ends[i-1]:ends[i]]`, begin- and end-of-sentence tokens included."""

    def __init__(self, tokens: npt.NDArray[np.integer], ends: npt.NDArray[np.int64], digest: str) -> None:
        """`digest` names the content. Raises InputError where there is no token."""
        if not len(tokens):
            raise InputError("the text holds no tokens: give a file with at least one word")
        self.tokens, self.ends, self.digest = tokens, ends, digest

    @classmethod
    def of(cls, tokenizer: Tokenizer, texts: Iterable[str]) -> TokenStore:
        """Tokenise into memory: for the shipped corpus and other small texts."""
        parts = list(_encoded(tokenizer, texts))
        tokens = np.concatenate(parts) if parts else np.empty(0, _dtype(tokenizer))
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        return cls(tokens, ends, hashlib.sha256(tokens.tobytes() + ends.tobytes()).hexdigest())


def open_store(tokenizer: Tokenizer, paths: Sequence[str | Path], cache: Path | None = None) -> TokenStore:
    """Return the files' documents as tokens, from the cache where these very bytes were tokenised before.

    The cache is `cache`, or the user's cache folder. Raises InputError where a file cannot be read or the cache
    cannot be written.
    """
    key = _key(tokenizer, paths)
    folder = (cache or cache_folder()) / "tokens" / key
    try:
        if not (folder / "store.json").is_file():
            _write(folder, tokenizer, documents(paths))
        about = json.loads((folder / "store.json").read_text())
        tokens = np.memmap(folder / "tokens.bin", about["dtype"], "r", shape=(about["tokens"],))
        return TokenStore(tokens, np.fromfile(folder / "ends.bin", np.int64), key)
    except OSError as error:
        raise InputError(f"cannot keep tokens in {folder}: {error.strerror or error}; free the disk, or name another "
                         "cache folder") from error


def _key(tokenizer: Tokenizer, paths: Sequence[str | Path]) -> str:
    """The hash of the files' bytes, in order, and of what turns them into tokens."""
    digest = hashlib.sha256(f"{_FORMAT} {tokenizer.digest}".encode())
    for path in paths:
        try:
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}; give the path of a text file") from error
        digest.update(Path(path).suffix.encode())
    return digest.hexdigest()[:32]


def _write(folder: Path, tokenizer: Tokenizer, texts: Iterator[str]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}."))
    try:
        ends, total = [], 0
        with (partial / "tokens.bin").open("wb") as file:
            for ids in _encoded(tokenizer, texts):
                file.write(ids.tobytes())
                total += len(ids)
                ends.append(total)
            file.flush()
            os.fsync(file.fileno())
        if not total:
            raise InputError("the text holds no tokens: give a file with at least one word")
        np.array(ends, np.int64).tofile(partial / "ends.bin")
        about = {"format": _FORMAT, "dtype": _dtype(tokenizer).name, "tokens": total, "documents": len(ends),
                 "tokenizer": tokenizer.digest}
        (partial / "store.json").write_text(json.dumps(about, indent=1) + "\n")
        if not folder.exists():  # another process may have made the same one meanwhile
            os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _encoded(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[npt.NDArray[np.integer]]:
    """Each document's tokens between those that begin and end a sentence."""
    source, dtype = iter(texts), _dtype(tokenizer)
    while batch := list(itertools.islice(source, _AT_ONCE)):
        for ids in tokenizer.encode_all(batch):
            yield np.array([*tokenizer.start, *ids, tokenizer.eos_id], dtype)


def _dtype(tokenizer: Tokenizer) -> np.dtype[np.integer]:
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
