"""The shipped corpus: five public-domain works (3.98 MB), each with its last 3 % held out for validation.

`works/sources.toml` records where each came from, its licence, sha256 and split point.
"""

from __future__ import annotations

import hashlib
import lzma
import tomllib
from dataclasses import dataclass
from pathlib import Path

from anychip.errors import InputError, nearest
from anychip.text.files import read_documents, read_text

__all__ = ["Work", "digest", "documents", "load", "names", "read_documents", "read_text", "works"]

FOLDER = Path(__file__).parent / "works"
SPLITS = ("train", "validation")
SEPARATOR = "\n\n"


@dataclass(frozen=True)
class Work:
    """One work of the corpus as `sources.toml` describes it."""

    name: str
    title: str
    author: str
    year: int
    licence: str
    package: str
    package_sha256: str
    package_path: str
    file: str
    text_sha256: str
    text_bytes: int
    validation_from_char: int

    def text(self, split: str) -> str:
        """The work's part of `split`: all before `validation_from_char`, or all from there.

        Raises InputError for an unknown split and for an installed file that is missing or damaged.
        """
        _check_split(split)
        whole = self._read()
        cut = self.validation_from_char
        return whole[:cut] if split == "train" else whole[cut:]

    def _read(self) -> str:
        path = FOLDER / self.file
        try:
            data = lzma.decompress(path.read_bytes())
        except (OSError, lzma.LZMAError) as error:
            raise InputError(
                f"the shipped text {path} cannot be read ({error}); reinstall anychip"
            ) from error
        found = hashlib.sha256(data).hexdigest()
        if found != self.text_sha256:
            raise InputError(
                f"the shipped text {path} has sha256 {found}, sources.toml says {self.text_sha256}; "
                "reinstall anychip"
            )
        return data.decode("utf-8")


def works() -> list[Work]:
    """Every work of the corpus, in the order in which `load` joins them."""
    table = tomllib.loads((FOLDER / "sources.toml").read_text(encoding="utf-8"))
    return [Work(**entry) for entry in table["work"]]


def names() -> list[str]:
    """The short names of the works, such as `moby-dick`."""
    return [work.name for work in works()]


def documents(split: str = "train") -> list[str]:
    """One text per work, for streams that mark where a document begins. Raises InputError as `Work.text`."""
    _check_split(split)
    return [work.text(split) for work in works()]


def load(split: str = "train") -> str:
    """The text of `split`, `train` (3.85 MB) or `validation` (0.13 MB): works joined by an empty line.

    The same on every machine; unpacking takes about 0.1 s. Raises InputError for an unknown split.
    """
    return SEPARATOR.join(documents(split))


def digest(split: str = "train") -> str:
    """Sha256 of the UTF-8 bytes of `load(split)`, hexadecimal."""
    return hashlib.sha256(load(split).encode("utf-8")).hexdigest()


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise InputError(
            f"the corpus has no split {split!r}; the splits are {', '.join(SPLITS)}.{nearest(split, SPLITS)}"
        )
