"""How many steps does Muon need for the loss that AdamW reaches in 1,000?

`tiny` (or another `--preset`) on the shipped corpus, fp32, the same batches, warm-up, decay and losses; only the
optimizer and its rate differ.
Each run's schedule is its own: Muon's ends at `--share` of AdamW's steps (held to: at 0.75 its loss on held-out text is
at most AdamW's). Rates are chosen with `--tune` on another seed (weights, batches) than the one reported, and judged on
another part of the held-out text.

    python -m benchmarks.muon_vs_adamw [--steps 1000 --batch 2 --length 128]
    python -m benchmarks.muon_vs_adamw --tune --steps 200 --optimizer muon --rates 1e-3 2e-3

Rows go to results/cpu.jsonl; the last line printed is one JSON object. Curves are kept in the folder `--curves`: a run
that is there is not done again, so the two can be run apart (`--optimizer`), and the comparison made after.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from anychip.chips import open_chip
from anychip.config import load_config
from anychip.model import Transformer, initialize
from anychip.text import corpus
from anychip.text.batches import TokenBatches, encode_documents
from anychip.text.tokenizer import open_tokenizer
from anychip.train import Trainer, TrainSettings, mean_loss

from .rows import append, row

JUDGED = 8192  # tokens of held-out text: these for the reported runs, the next as many for choosing rates


def texts() -> tuple[Tensor, Tensor]:
    """Return the training stream and the held-out one."""
    words = open_tokenizer("anychip-4096")
    return tuple(encode_documents(words, corpus.documents(split)) for split in corpus.SPLITS)  # type: ignore[return-value]


def run(preset: str, settings: TrainSettings, texts: tuple[Tensor, Tensor], every: int) -> list[dict[str, float]]:
    """Train on the first text; return the held-out loss and CPU seconds every `every` steps and after the last."""
    chip = open_chip("cpu")
    model = Transformer(load_config(preset), chip.ops())
    initialize(model, settings.seed)
    batches = TokenBatches(texts[0], settings.batch, settings.length, settings.seed)
    trainer, curve, started = Trainer(model, chip, batches, settings), [], time.process_time()
    for step in range(1, settings.steps + 1):
        result = trainer.step()
        if step % every == 0 or step == settings.steps:
            curve.append({"step": step, "loss": mean_loss(model, texts[1], settings.length, 16),
                          "train_loss": result.loss, "cpu_s": time.process_time() - started})
            print(settings.optimizer, settings.learning_rate, json.dumps(curve[-1]), file=sys.stderr, flush=True)
    return curve


def settings_of(args: argparse.Namespace, optimizer: str, rate: float, steps: int) -> TrainSettings:
    """Return one run's settings; the MTP block is left out of both to save time."""
    return TrainSettings(steps, args.batch, args.length, seed=1 if args.tune else 0, learning_rate=rate,
                         warmup_steps=max(steps // 20, 1), optimizer=optimizer, mtp_weight=0.0)


def kept(args: argparse.Namespace, plan: TrainSettings, texts: tuple[Tensor, Tensor], every: int
         ) -> list[dict[str, float]]:
    """Return a run's curve, from the folder of curves where it is there."""
    path = args.curves / f"{args.preset}-{plan.optimizer}.json"
    about = json.loads(json.dumps(asdict(plan)))
    if path.is_file() and (found := json.loads(path.read_text()))["settings"] == about:
        return list(found["curve"])
    curve = run(args.preset, plan, texts, every)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"settings": about, "curve": curve}, indent=1) + "\n")
    return curve


def compare(args: argparse.Namespace, stream: Tensor, held_out: Tensor) -> dict[str, Any]:
    """Run both optimizers and return what they reached."""
    every, last = max(args.steps // 20, 1), round(args.share * args.steps)
    plans = {"adamw": settings_of(args, "adamw", args.adamw_rate, args.steps),
             "muon": settings_of(args, "muon", args.muon_rate, last)}
    curves = {name: kept(args, plan, (stream, held_out[:JUDGED]), every) for name, plan in plans.items()
              if args.optimizer in (None, name)}
    if len(curves) < len(plans):
        return {name: curve[-1] for name, curve in curves.items()}
    wanted = curves["adamw"][-1]["loss"]
    found = {"preset": args.preset, "adamw_loss": wanted, "adamw_steps": args.steps,
             "muon_loss": curves["muon"][-1]["loss"], "muon_steps": last,
             "reached": curves["muon"][-1]["loss"] <= wanted,
             "first_step_at_adamws_loss": next((p["step"] for p in curves["muon"] if p["loss"] <= wanted), None),
             "tokens_a_step": args.batch * args.length, "adamw_rate": args.adamw_rate, "muon_rate": args.muon_rate,
             "cpu_s": {name: curve[-1]["cpu_s"] for name, curve in curves.items()}}
    shape = f"{args.preset}, {args.batch}x{args.length} tokens a step, seed 0"
    append([row("muon_vs_adamw", f"{name} held-out loss after {curve[-1]['step']} steps", [curve[-1]["loss"]],
                "nats/token", shape) for name, curve in curves.items()])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, kind, default in (("steps", int, 1000), ("batch", int, 2), ("length", int, 128), ("share", float, 0.75),
                                ("adamw-rate", float, 3e-3), ("muon-rate", float, 3e-3)):
        parser.add_argument(f"--{name}", type=kind, default=default)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--curves", type=Path, default=Path("out/muon_vs_adamw"), help="folder of the curves")
    parser.add_argument("--tune", action="store_true", help="only try --rates of one --optimizer, on another seed")
    parser.add_argument("--optimizer", choices=("muon", "adamw"), help="only this one")
    parser.add_argument("--rates", type=float, nargs="+", default=[])
    args = parser.parse_args()
    stream, held_out = texts()
    if not args.tune:
        print(json.dumps(compare(args, stream, held_out)))
        return
    args.optimizer = args.optimizer or "muon"
    other = stream, held_out[JUDGED : 2 * JUDGED]
    found = {rate: run(args.preset, settings_of(args, args.optimizer, rate, args.steps), other, args.steps)[-1]["loss"]
             for rate in args.rates}
    print(json.dumps({"tuned": args.optimizer, "steps": args.steps, "loss_by_rate": found}))


if __name__ == "__main__":
    main()
