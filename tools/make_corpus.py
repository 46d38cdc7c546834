"""Rebuild the text that ships in `anychip/text/works/` from pinned Debian packages.

    apt-get download bible-kjv=4.38 bible-kjv-text=4.38 dict-devil=1.0-13.1 \\
        r-cran-janeaustenr=1.0.0-1 r-cran-tokenizers=0.3.0-1
    pip install rdata==1.1.0
    python tools/make_corpus.py --debs .

Every package is checked against its sha256 before it is unpacked, so everyone gets the same text. Needs
`dpkg` (to unpack) and an amd64 machine (to run the `bible` reader). Writes `<work>.txt.xz` for each work, and
`sources.toml`, which says where each came from and where its held-out part begins.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import corpus_texts

OUT = Path(__file__).resolve().parent.parent / "anychip" / "text" / "works"
HELD_OUT = 0.03  # the last 3 % of each work are its validation part
# English prose: no position bits, more literal context. About 2 % smaller than the preset.
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]


@dataclass(frozen=True)
class Package:
    """A Debian package by exact version, and the sha256 of its .deb file."""

    name: str
    version: str
    arch: str
    sha256: str

    @property
    def file(self) -> str:
        """The .deb's name as `apt-get download` gives it."""
        return f"{self.name}_{self.version}_{self.arch}.deb"


@dataclass(frozen=True)
class Work:
    """One work: what to know of it, its package, and how to get its text from the unpacked package."""

    name: str
    title: str
    author: str
    year: int
    package: str
    path: str
    licence: str
    extract: Callable[[Path], str]


PACKAGES = (
    Package("bible-kjv", "4.38", "amd64", "75a49c032a6efa9faa2beb4a9acb70974380122906329d0e100de36cc88ff02d"),
    Package(
        "bible-kjv-text", "4.38", "all", "d61b6aad4c51ba9e2800b825325fa6a09e99a0d02a9bb6dc4724fcc4995a1b7a"
    ),
    Package(
        "dict-devil", "1.0-13.1", "all", "6a535684def2a1f70cd42da16d12d43f0e9dc3e54e4a329178eebab3170e3154"
    ),
    Package(
        "r-cran-janeaustenr",
        "1.0.0-1",
        "all",
        "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
    ),
    Package(
        "r-cran-tokenizers",
        "0.3.0-1",
        "amd64",
        "6312f013ebfde5650235bfd7ba5c44d9e4cf9f2da9855337c9483fe778f0d8c7",
    ),
)

EXPIRED = "public domain: the author died in {died}, copyright has expired"
WORKS = (
    Work("pride-and-prejudice", "Pride and Prejudice", "Jane Austen", 1813, "r-cran-janeaustenr",
         corpus_texts.AUSTEN, EXPIRED.format(died=1817), corpus_texts.pride_and_prejudice),
    Work("persuasion", "Persuasion", "Jane Austen", 1817, "r-cran-janeaustenr",
         corpus_texts.AUSTEN, EXPIRED.format(died=1817), corpus_texts.persuasion),
    Work("moby-dick", "Moby-Dick; or, The Whale", "Herman Melville", 1851, "r-cran-tokenizers",
         corpus_texts.MELVILLE, EXPIRED.format(died=1891), corpus_texts.moby_dick),
    Work("king-james-bible", "The Bible, King James Version (twelve books)", "translators of 1611", 1611,
         "bible-kjv-text", corpus_texts.BIBLE,
         "public domain: copyright has expired (package copyright file)", corpus_texts.king_james),
    Work("devils-dictionary", "The Devil's Dictionary", "Ambrose Bierce", 1911, "dict-devil",
         corpus_texts.BIERCE, "public domain: copyright has expired (package copyright file)",
         corpus_texts.devils_dictionary),
)  # fmt: skip


def unpack(debs: Path, root: Path) -> None:
    """Check all packages in folder `debs`, name each that is missing or differs, unpack them in `root`."""
    wrong = []
    for package in PACKAGES:
        deb = debs / package.file
        if not deb.is_file():
            wrong.append(f"{deb} is missing: apt-get download {package.name}={package.version}")
        elif (found := hashlib.sha256(deb.read_bytes()).hexdigest()) != package.sha256:
            wrong.append(f"{deb} has sha256 {found}, expected {package.sha256}")
    if wrong:
        sys.exit("\n".join(wrong))
    for package in PACKAGES:
        subprocess.run(["dpkg", "-x", str(debs / package.file), str(root)], check=True)


def held_out_from(text: str) -> int:
    """First character of the held-out part: the paragraph border nearest before the last 3 %."""
    return text.rindex("\n\n", 0, round(len(text) * (1 - HELD_OUT))) + 2


def entry(work: Work, text: str) -> str:
    """The `[[work]]` table of `sources.toml`."""
    package = next(p for p in PACKAGES if p.name == work.package)
    fields: dict[str, str | int] = {
        "name": work.name, "title": work.title, "author": work.author, "year": work.year,
        "licence": work.licence, "package": f"{package.name} {package.version} (Debian 12)",
        "package_sha256": package.sha256, "package_path": work.path,
        "file": f"{work.name}.txt.xz", "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "text_bytes": len(text.encode()), "validation_from_char": held_out_from(text),
    }  # fmt: skip
    # A JSON string is also a TOML basic string.
    return "[[work]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in fields.items())


def main() -> None:
    """Write the corpus files and `sources.toml`, and say how large they are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--debs", type=Path, required=True, help="folder with the downloaded .deb files")
    debs = parser.parse_args().debs
    OUT.mkdir(parents=True, exist_ok=True)
    entries = []
    with tempfile.TemporaryDirectory() as root:
        unpack(debs, Path(root))
        for work in WORKS:
            text = work.extract(Path(root))
            packed = lzma.compress(text.encode(), format=lzma.FORMAT_XZ, filters=FILTERS)
            (OUT / f"{work.name}.txt.xz").write_bytes(packed)
            entries.append(entry(work, text))
            print(f"{work.name:22} {len(text.encode()):9,} bytes  packed {len(packed):9,}")
    header = "# Written by tools/make_corpus.py: the works of the shipped corpus, where each came from.\n\n"
    (OUT / "sources.toml").write_text(header + "\n".join(entries), encoding="utf-8")


if __name__ == "__main__":
    main()
