"""`anychip train`: train a preset on the shipped corpus or your own text, in one process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .terminal import print_json, progress_bar, working

if TYPE_CHECKING:
    from ..chips import Chip
    from ..train import Run, StepResult


def train(
    out: Annotated[Path, typer.Option(help="Folder of the run: loss.jsonl and the saves.")],
    preset: Annotated[str, typer.Option(help="nano, tiny, mini, or the path of a config.json.")] = "nano",
    recipe: Annotated[Path | None, typer.Option(help="A TOML file of training settings; see docs/training.md. "
                                                     "Default: the preset's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the whole run.")] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences a step.")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens a sequence.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak rate of Muon and AdamW.")] = None,
    warmup_steps: Annotated[int | None, typer.Option(help="Steps of linear warm-up.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the weights and of the batches.")] = None,
    text: Annotated[list[Path] | None, typer.Option(help="A .txt, .jsonl or .parquet file, again for more. "
                                                         "Default: the shipped corpus.")] = None,
    sft: Annotated[Path | None, typer.Option(help="Fine-tune on chats: a .jsonl file, an object with messages a line.")
                   ] = None,
    start: Annotated[str | None, typer.Option("--from", help="A checkpoint to begin from: a folder, or nano.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="anychip-4096, deepseek-v4, or a folder. Default: the "
                                                       "checkpoint's, or anychip-4096.")] = None,
    chip: Annotated[str, typer.Option(help="A name that `anychip chips` lists.")] = "cpu",
    save_every: Annotated[int, typer.Option(help="Steps between saves.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object at the end.")] = False,
) -> None:
    """Train a model. Run the same command again to go on after an interruption, bit for bit.

    Example: [bold]anychip train --preset nano --out run --steps 300[/bold]
    Example: [bold]anychip train --sft chats.jsonl --from nano --out tuned[/bold]
    """
    from ..chips import open_chip
    from ..serve.models import model_folder
    from ..train.make import make_run
    from ..train.recipe import make_settings

    given = {"steps": steps, "batch": batch, "length": length, "learning_rate": learning_rate,
             "warmup_steps": warmup_steps, "seed": seed}
    settings, device = make_settings(preset, recipe, given, sft=sft is not None), open_chip(chip)
    with working("reading the text"):
        run = make_run(settings, preset=preset, tokenizer=tokenizer, text=text or (), sft=sft,
                       start=model_folder(start) if start else None)
    checkpoint, last = _train(run, device, out, save_every)
    summary: dict[str, Any] = {"checkpoint": str(checkpoint), "chip": chip, "kind": device.numerics.value,
                               "steps": settings.steps, "loss": last}
    if text is None and sft is None:
        with working("validating"):
            summary |= _validation(run, device, checkpoint)
    print_json(summary) if as_json else _print(summary)


def _train(run: Run, chip: Chip, out: Path, save_every: int) -> tuple[Path, float]:
    """Train with a bar; return the checkpoint and the last step's loss."""
    from ..train import read_losses
    from ..train import train as take_steps

    with progress_bar("training", run.settings.steps) as advance:
        def report(result: StepResult) -> None:
            note = f"loss {result.loss:.3f}, {result.tokens / result.time_s:,.0f} tokens/s of this machine"
            advance(result.step + 1, run.settings.steps, note)

        checkpoint = take_steps(run, chip, out, save_every=save_every, report=report)
    return checkpoint, float(read_losses(out)[-1]["loss"])


def _validation(run: Run, chip: Chip, checkpoint: Path) -> dict[str, float]:
    """The held-out loss of the trained model beside that of token frequencies alone."""
    from ..checkpoint import load_model
    from ..text import corpus
    from ..text.batches import encode_documents
    from ..train import mean_loss, unigram_loss

    documents = corpus.documents("validation")
    ids, num_bytes = encode_documents(run.tokenizer, documents), sum(len(d.encode()) for d in documents)
    model, _ = load_model(checkpoint, chip.ops(), device=chip.device)
    loss = mean_loss(model, ids, run.settings.length)
    trained_on = encode_documents(run.tokenizer, corpus.documents("train"))
    return {"validation_nats_per_token": loss, "validation_nats_per_byte": loss * (ids.numel() - 1) / num_bytes,
            "validation_tokens": ids.numel() - 1,
            "unigram_nats_per_token": unigram_loss(trained_on, ids, run.config.vocab_size)}


def _print(summary: dict[str, Any]) -> None:
    typer.echo(f"trained {summary['steps']} steps; the last loss is {summary['loss']:.3f} nats a token "
               f"({summary['kind']})")
    if "validation_nats_per_token" in summary:
        typer.echo(f"on held-out text: {summary['validation_nats_per_token']:.3f} nats a token "
                   f"({summary['validation_nats_per_byte']:.3f} a byte); token frequencies alone: "
                   f"{summary['unigram_nats_per_token']:.3f} ({summary['kind']})")
    typer.echo(f"checkpoint: {summary['checkpoint']}")
