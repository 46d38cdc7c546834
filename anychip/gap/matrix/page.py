"""A matrix as one HTML file: inline style, no scripts, nothing fetched; pages of two chips in full lie beside it."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from ...record import Kind, Quantity
from ..bundle import write_whole
from ..report.html import page_environment, write_html
from ..report.words import MEANINGS, TAGS
from .block import columns, lines
from .grid import Key, file_name
from .matrix import Matrix
from .show import eval_sentences, title


def write_matrix(matrix: Matrix, path: Path) -> list[Path]:
    """Write the matrix to `path` and each model's two-chip report beside it; return what was written, the matrix first.

    Raises InputError where one cannot be written.
    """
    pages = {key: path.with_name(f"{path.stem}-{file_name(*key).removesuffix('.gap')}.html")
             for key in matrix.comparisons}
    for key, comparison in matrix.comparisons.items():
        write_html(comparison, pages[key])
    write_whole(path, render(matrix, {key: page.name for key, page in pages.items()}).encode())
    return [path, *pages.values()]


def render(matrix: Matrix, pages: dict[Key, str]) -> str:
    """Return the matrix's page. `pages` are the names of the two-chip reports."""
    grid = matrix.grid
    topics = [(topic, list(blocks)) for topic, blocks in groupby(matrix.blocks, key=lambda block: block.topic)]
    template = page_environment().get_template("matrix.html.j2")
    return template.render(
        m=matrix, title=title(matrix), topics=topics, pages=pages,
        columns=lambda block: columns(block, grid.chips), lines=lambda block: lines(block, grid.models, grid.chips),
        sentences=eval_sentences(matrix),
        is_quantity=lambda part: isinstance(part, Quantity),
        legend=[(kind.value, TAGS[kind], MEANINGS[kind]) for kind in Kind])
