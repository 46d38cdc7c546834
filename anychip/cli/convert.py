"""`anychip convert`: a checkpoint in the other naming or another format."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from .terminal import print_json, progress_bar


def convert(
    source: Annotated[str, typer.Argument(help="A checkpoint folder in either naming, nano, a training run's folder "
                                               "(its newest save), or one save of it: RUN/step-00000200.")],
    target: Annotated[Path, typer.Argument(help="The new folder: it must not exist, or be empty.")],
    to: Annotated[str, typer.Option(help="Naming: publisher or transformers.")] = "publisher",
    format: Annotated[str | None, typer.Option(help="fp32, bf16, fp8 or fp4. Default: as it is stored.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Rewrite a checkpoint between its publisher's layout and transformers', or in another number format.

    Example: [bold]anychip convert nano nano-hf --to transformers --format bf16[/bold]
    Example: [bold]anychip convert run model --format bf16[/bold]
    """
    from ..checkpoint import convert as rewrite
    from ..checkpoint import digest

    with _checkpoint(source) as (folder, what), progress_bar("converting") as advance:
        rewrite(folder, target, to=to, format=format, progress=lambda done, total: advance(done, total, "bytes"))
    if as_json:
        print_json({"source": str(what), "target": str(target), "to": to, "format": format, "digest": digest(target)})
    else:
        typer.echo(f"wrote {target}")


@contextmanager
def _checkpoint(source: str) -> Iterator[tuple[Path, Path]]:
    """Give the checkpoint's folder, and what it holds: itself, or the save that it was made of and goes with."""
    from ..serve.models import model_folder
    from ..train.export import export_save, find_save
    from ..train.saves import MODEL

    save = find_save(Path(source))
    if save is None:
        folder = model_folder(source)
        yield folder, folder
    elif (save / MODEL).is_dir():
        yield save / MODEL, save
    else:
        with tempfile.TemporaryDirectory(prefix="anychip-convert-") as scratch:
            export_save(save, Path(scratch) / MODEL)
            yield Path(scratch) / MODEL, save
