"""`anychip convert`: a checkpoint in the other naming or another format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .terminal import print_json, progress_bar


def convert(
    source: Annotated[str, typer.Argument(help="A checkpoint folder in either naming, or nano.")],
    target: Annotated[Path, typer.Argument(help="The new folder: it must not exist, or be empty.")],
    to: Annotated[str, typer.Option(help="Naming: publisher or transformers.")] = "publisher",
    format: Annotated[str | None, typer.Option(help="fp32, bf16, fp8 or fp4. Default: as it is stored.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Rewrite a checkpoint between DeepSeek's layout and transformers', or in another number format.

    Example: [bold]anychip convert nano nano-hf --to transformers --format bf16[/bold]
    """
    from ..checkpoint import convert as rewrite
    from ..checkpoint import digest
    from ..serve.models import model_folder

    folder = model_folder(source)
    with progress_bar("converting") as advance:
        rewrite(folder, target, to=to, format=format, progress=lambda done, total: advance(done, total, "bytes"))
    if as_json:
        print_json({"source": str(folder), "target": str(target), "to": to, "format": format, "digest": digest(target)})
    else:
        typer.echo(f"wrote {target}")
