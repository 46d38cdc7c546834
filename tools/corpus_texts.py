"""How each work's plain text is got from its unpacked Debian package (used by `make_corpus.py`).

All prose is unwrapped: one paragraph a line, an empty line between paragraphs; verse keeps its lines.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import subprocess
import warnings
import zlib
from itertools import groupby
from pathlib import Path

import rdata  # type: ignore[import-not-found]  # needed here only; see make_corpus.py

AUSTEN = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
MELVILLE = "usr/lib/R/site-library/tokenizers/data/Rdata.rdb"
BIBLE = "usr/lib/bible.data"
BIERCE = "usr/share/dictd/devil.dict.dz"

BOOKS = {
    "Ge": "Genesis", "Exo": "Exodus", "Ruth": "Ruth", "1Sm": "1 Samuel", "Psa": "Psalms", "Prv": "Proverbs",
    "Eccl": "Ecclesiastes", "SSol": "Song of Solomon", "Jonah": "Jonah", "Mat": "Matthew", "John": "John",
    "Acts": "Acts",
}  # fmt: skip
VERSE_WIDTH = 60  # a block whose lines are all shorter was not filled to the margin: verse, a list, a heading


def pride_and_prejudice(root: Path) -> str:
    """`Pride and Prejudice`, whole."""
    return unwrap("\n".join(r_strings(root / AUSTEN, "prideprejudice")))


def persuasion(root: Path) -> str:
    """`Persuasion`, whole."""
    return unwrap("\n".join(r_strings(root / AUSTEN, "persuasion")))


def moby_dick(root: Path) -> str:
    """`Moby-Dick` from first page to last, without the licence and notes of the electronic edition."""
    text = r_strings(root / MELVILLE, "mobydick")[0].replace("\r\n", "\n")
    body = between(text, "\nETYMOLOGY.\n", "\nEnd of Project Gutenberg")
    return unwrap(f"MOBY-DICK; OR, THE WHALE\n\nBy Herman Melville\n\nETYMOLOGY.\n{body}")


def king_james(root: Path) -> str:
    """The books in `BOOKS`: a heading for every chapter, then one verse a line with its number."""
    command = [str(root / "usr/bin/bible"), "-p", str(root / "usr/lib"), "-f", "Gen1:1-Rev22:21"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    verse = re.compile(r"(\d?[A-Za-z]+)(\d+):(\d+) (.*)")
    verses = [match.groups() for line in lines if (match := verse.match(line))]
    chapters = groupby((v for v in verses if v[0] in BOOKS), key=lambda v: (v[0], v[1]))
    blocks = []
    for (book, chapter), members in chapters:
        blocks.append(f"{BOOKS[book]} {chapter}\n\n" + "\n".join(f"{v[2]} {v[3].strip()}" for v in members))
    return "\n\n".join(blocks) + "\n"


def devils_dictionary(root: Path) -> str:
    """`The Devil's Dictionary`, preface and entries, without the database's header and trailer."""
    text = gzip.decompress((root / BIERCE).read_bytes()).decode("utf-8")
    body = between(text, "PREFACE\n", "\n abcdefghijklmnopqrstuvwxyz")
    return unwrap(f"THE DEVIL'S DICTIONARY\n\nBy Ambrose Bierce\n\nPREFACE\n{body}")


def between(text: str, start: str, end: str) -> str:
    """The text after the first `start` and before the last `end`; ValueError if either is missing."""
    return text[text.index(start) + len(start) : text.rindex(end)]


def unwrap(text: str) -> str:
    """Join the lines of each paragraph; blocks of verse and other short lines stay as they are set."""
    blocks = re.split(r"\n\s*\n", text.strip("\n"))
    return "\n\n".join(unwrap_block([line.rstrip() for line in block.split("\n")]) for block in blocks) + "\n"


def unwrap_block(lines: list[str]) -> str:
    """One block between empty lines. A single indented line before a filled one begins a new paragraph."""
    lines = [line for line in lines if line]
    if len(lines) > 1 and max(map(len, lines)) < VERSE_WIDTH:
        return "\n".join(set_line(line) for line in lines)
    runs = [(is_verse, list(run)) for is_verse, run in groupby(lines, key=indented)]
    out, opening = "", ""
    for number, (is_verse, run) in enumerate(runs):
        if is_verse and len(run) == 1 and number + 1 < len(runs):
            opening = run[0]
        elif is_verse:
            out += "\n" + "\n".join(set_line(line) for line in run)
        else:
            out += ("\n\n" if opening else "\n") + fill([opening, *run])
            opening = ""
    return out.strip("\n")


def fill(lines: list[str]) -> str:
    """Lines joined to one, with single spaces."""
    return " ".join(" ".join(lines).split())


def indented(line: str) -> bool:
    """True for a line set in from the margin."""
    return line.startswith("  ")


def set_line(line: str) -> str:
    """A line of verse, with its indentation cut to 8 columns (signatures stand at the far right)."""
    indent = min(len(line) - len(line.lstrip()), 8)
    return " " * indent + re.sub(r" {2,}", " ", line.strip())


def r_strings(rdb: Path, name: str) -> list[str]:
    """The character vector `name` of an R lazy-load database (`.rdb` with its `.rdx` index).

    A record is the unpacked length (4 bytes, big-endian), for xz and bzip2 a letter, and the packed R object.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rdata warns of names that do not end in .rds
        index = rdata.conversion.convert(rdata.parser.parse_file(rdb.with_suffix(".rdx")))["variables"]
        offset, length = (int(value) for value in index[name])
        record = rdb.read_bytes()[offset : offset + length]
        return [str(line) for line in rdata.conversion.convert(rdata.parser.parse_data(r_unpack(record)))]


def r_unpack(record: bytes) -> bytes:
    """Unpack one record of an R lazy-load database and check its length."""
    size, kind, body = int.from_bytes(record[:4], "big"), record[4:5], record[4:]
    if kind == b"Z":
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
        data = lzma.decompress(body[1:], format=lzma.FORMAT_RAW, filters=filters)
    elif kind == b"2":
        data = bz2.decompress(body[1:])
    else:
        data = zlib.decompress(body)
    if len(data) != size:
        raise ValueError(f"R record unpacks to {len(data)} bytes, its header says {size}")
    return data
