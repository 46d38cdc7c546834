"""`anychip generate`: text from any checkpoint on any chip."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from .terminal import print_json, progress_bar

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer


def generate(
    prompt: Annotated[str, typer.Option(help="The text to continue. Special tokens may be written out.")],
    model: Annotated[str, typer.Option(help="nano, or the folder of a checkpoint or a training run.")] = "nano",
    chip: Annotated[str, typer.Option(help="A name that `anychip chips` lists.")] = "cpu",
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Share of probability to draw from.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed draws the same text.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object at the end instead.")] = False,
) -> None:
    """Continue a prompt, with the publisher's sampling defaults (temperature 1, top-p 1).

    Example: [bold]anychip generate --model nano --prompt "And it came to pass" --max-new-tokens 64[/bold]
    """
    from ..chips import open_chip
    from ..serve.generate import generate as tokens_of
    from ..serve.models import open_model
    from ..serve.request import Sampling

    sampling, device = Sampling(temperature, top_p, seed), open_chip(chip)
    with progress_bar("loading the model") as advance:
        network, tokenizer = open_model(model, device, progress=lambda done, total: advance(done, total, "bytes"))
    started, new, text = time.perf_counter(), [], TextStream(tokenizer)
    for token in tokens_of(network, device, tokenizer.encode(prompt), max_new_tokens, sampling,
                           eos_id=tokenizer.eos_id):
        new.append(token)
        piece = text.add(token)
        if not as_json:
            typer.echo((prompt if len(new) == 1 else "") + piece, nl=False)
    if as_json:
        print_json({"model": model, "chip": chip, "prompt": prompt, "text": tokenizer.decode(new), "ids": new,
                    "seed": seed, "wall_time_s": time.perf_counter() - started})
    else:
        typer.echo(text.rest())


class TextStream:
    """Turns ids into text as they come, holding back a character whose bytes are not all there yet."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._held = tokenizer, list[int]()

    def add(self, token: int) -> str:
        """Return the text that this token completes, which may be none."""
        self._held.append(token)
        text = self._tokenizer.decode(self._held)
        if text.endswith("\ufffd"):
            return ""
        self._held.clear()
        return text

    def rest(self) -> str:
        """Return what was held back, unfinished characters as U+FFFD."""
        return self._tokenizer.decode(self._held) if self._held else ""
