"""`anychip train`: train a preset on the shipped corpus or your own text, in one process or many."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from .terminal import print_json, progress_bar, working
from .train_ranks import is_rank_of_torchrun, run_supervised, run_under_torchrun

if TYPE_CHECKING:
    from ..chips import Chip
    from ..parallel.degrees import Degrees
    from ..train import Run, StepResult
    from ..train.job import Job

LIMIT_STEPS = 100  # in shorter runs the chip's limit is not measured (two seconds on a CPU)


def train(
    out: Annotated[Path, typer.Option(help="Folder of the run: loss.jsonl and the saves.")],
    preset: Annotated[str, typer.Option(help="nano, tiny, mini, v3-nano, qwen3-moe-nano, another that "
                                                 "docs/training.md names, or the path of a config.json.")] = "nano",
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
    micro_batches: Annotated[int | None, typer.Option(help="Equal parts of a step; ranks with other data share them.")
                             ] = None,
    context_blocks: Annotated[int | None, typer.Option(help="Equal parts of a sequence; --context ranks share them.")
                              ] = None,
    num_processes: Annotated[int | None, typer.Option(
        help="Start this many ranks here, look after them and start them again after faults.")] = None,
    shard: Annotated[int | None, typer.Option(help="Ranks that share every parameter (FSDP). Default: what the other "
                                                   "axes leave.")] = None,
    expert: Annotated[int, typer.Option(help="Ranks that share the experts.")] = 1,
    pipeline: Annotated[int, typer.Option(help="Ranks that share the layers.")] = 1,
    context: Annotated[int, typer.Option(help="Ranks that share every sequence's tokens.")] = 1,
    save_every: Annotated[int, typer.Option(help="Steps between saves.")] = 200,
    keep: Annotated[int, typer.Option(help="Saves that are kept.")] = 2,
    check_every: Annotated[int, typer.Option(help="Steps between checks for silent corruption; 0: none.")] = 100,
    spike_nats: Annotated[float, typer.Option(help="A loss so far above the last ones' median is a fault; 0: never.")
                          ] = 1.0,
    anticipate_steps: Annotated[int, typer.Option(help="Steps of anticipatory routing after a spike that comes back; "
                                                       "0: leave its batch out at once.")] = 100,
    anticipate_delay: Annotated[int, typer.Option(help="Anticipatory routing goes by the weights of so many steps "
                                                       "before.")] = 4,
    hang_seconds: Annotated[float, typer.Option(help="A rank silent for so long is ended.")] = 600.0,
    inject: Annotated[str, typer.Option(help="Faults made on purpose: kill:rank1@step30,bitflip:weight@step12; see "
                                             "docs/reliability.md.")] = "",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard files into the folder.")
                           ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object at the end.")] = False,
) -> None:
    """Train a model. Run the same command again to go on after an interruption, bit for bit.

    Example: [bold]anychip train --preset nano --out run --steps 300[/bold]
    Example: [bold]anychip train --sft chats.jsonl --from nano --out tuned[/bold]
    Example: [bold]anychip train --out run --num-processes 2 --micro-batches 2 --inject kill:rank1@step30[/bold]
    """
    from ..chips import open_chip
    from ..config import load_config
    from ..parallel.degrees import Degrees
    from ..serve.models import model_folder
    from ..train import read_losses
    from ..train.care import Care
    from ..train.goodput import goodput
    from ..train.inject import parse_injections
    from ..train.job import Job
    from ..train.make import make_run
    from ..train.recipe import make_settings

    given = {"steps": steps, "batch": batch, "length": length, "learning_rate": learning_rate,
             "warmup_steps": warmup_steps, "seed": seed, "micro_batches": micro_batches,
             "context_blocks": context_blocks}
    folder = model_folder(start) if start else None
    family = load_config(folder or preset).family
    settings, device = make_settings(preset, recipe, given, family=family, sft=sft is not None), open_chip(chip)
    ranks = num_ranks(num_processes)
    if inject and num_processes is None and not is_rank_of_torchrun():
        raise InputError("--inject needs --num-processes (1 is enough) or torchrun: somebody must start again what it "
                         "ends")
    arguments: dict[str, Any] = {"settings": settings, "preset": preset, "tokenizer": tokenizer, "text": text or (),
                                 "sft": sft, "start": folder}
    care = Care(save_every, keep, check_every, spike_nats, anticipate_steps, anticipate_delay,
                parse_injections(inject, ranks), settings.steps >= LIMIT_STEPS, tensorboard)
    job = Job(make_run, arguments, chip, out, care, _degrees(ranks, shard, expert, pipeline, context))
    with working("reading the text"):
        run = make_run(**arguments)
    (job.degrees or Degrees()).check(run.config, settings)
    checkpoint = _train(run, device, job, (num_processes, hang_seconds))
    if checkpoint is None:
        return
    summary: dict[str, Any] = {"checkpoint": str(checkpoint), "chip": chip, "kind": device.numerics.value,
                               "steps": settings.steps, "loss": float(read_losses(out)[-1]["loss"])}
    account = goodput(out)
    summary["goodput"] = account.to_dict() if account else None
    if text is None and sft is None:
        with working("validating"):
            summary |= _validation(run, device, checkpoint)
    if as_json:
        print_json(summary)
    else:
        _print(summary)
        typer.echo("\n".join(account.lines()) if account else "")


def num_ranks(num_processes: int | None) -> int:
    """Return how many ranks the run has: those started here, torchrun's, or one."""
    return int(os.environ["WORLD_SIZE"]) if is_rank_of_torchrun() else num_processes or 1


def _degrees(ranks: int, shard: int | None, expert: int, pipeline: int, context: int) -> Degrees | None:
    """Return the layout; None for one rank. Raises ConfigError where its product is not the number of ranks."""
    from ..parallel.degrees import Degrees

    others = expert * pipeline * context
    degrees = Degrees(shard or max(1, ranks // max(1, others)), expert, pipeline, context)
    degrees.check_ranks(ranks)
    return degrees if ranks > 1 else None


def _train(run: Run, chip: Chip, job: Job, supervision: tuple[int | None, float]) -> Path | None:
    """Train with a bar; return the checkpoint, None on torchrun's ranks but the first."""
    from ..train import train as take_steps

    warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # by DCP, of what was asked for
    if is_rank_of_torchrun():
        return run_under_torchrun(job, supervision[1])
    if supervision[0] is not None:
        return run_supervised(job, supervision[0], supervision[1], run.settings.steps)
    with progress_bar("training", run.settings.steps) as advance:
        def report(result: StepResult) -> None:
            note = f"loss {result.loss:.3f}, {result.tokens / result.time_s:,.0f} tokens/s of this machine"
            advance(result.step + 1, run.settings.steps, note)

        return take_steps(run, chip, job.out, report=report, care=job.care)


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
