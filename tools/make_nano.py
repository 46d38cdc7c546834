"""Train the shipped `nano` checkpoint (`anychip/weights/nano`) on the shipped corpus.

    python tools/make_nano.py RUN_FOLDER

Runs the command in TRAIN (again after an interruption: it goes on where it was), converts the last save to the
publisher's FP8 layout, and writes beside it `training.json` (command, versions, held-out losses) and `loss.jsonl`
(every EVERY-th step of the curve). One thread: the number of threads changes the last bits of sums.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from anychip import __version__
from anychip.checkpoint import convert, digest, load_model
from anychip.chips import open_chip
from anychip.model import Transformer, initialize
from anychip.text import corpus
from anychip.text.batches import encode_documents
from anychip.text.tokenizer import open_tokenizer
from anychip.train import mean_loss, read_losses, unigram_loss

OUT = Path(__file__).resolve().parent.parent / "anychip" / "weights" / "nano"
TRAIN = ("anychip train --preset nano --chip cpu --steps 2000 --batch 4 --length 512 --learning-rate 6e-3 "
         "--warmup-steps 100 --seed 0 --save-every 100")
FORMAT = "fp8"  # as the publisher stores matrices; bf16 would exceed the 6 MB that the checkpoint may take
LENGTH = 512  # of the windows of held-out text
EVERY = 5


def main(run: Path) -> None:
    """Train, convert, measure, and put the result in place of the old one."""
    command = [*TRAIN.split(), "--out", str(run), "--json"]
    subprocess.run([sys.executable, "-m", *command], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    losses = read_losses(run)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "nano"
        convert(run / f"step-{len(losses):08d}" / "model", made, format=FORMAT)
        kept = [line for line in losses if line["step"] % EVERY == 0 or line is losses[-1]]
        (made / "loss.jsonl").write_text("".join(json.dumps(_short(line)) + "\n" for line in kept))
        record = _record(run, made, losses)
        (made / "training.json").write_text(json.dumps(record, indent=1) + "\n")
        shutil.rmtree(OUT, ignore_errors=True)
        shutil.copytree(made, OUT)
    print(json.dumps(record, indent=1))


def _short(line: dict[str, Any]) -> dict[str, Any]:
    return {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in line.items()}


def _record(run: Path, made: Path, losses: list[dict[str, Any]]) -> dict[str, Any]:
    """What made the checkpoint, and what it is worth on text that it has not seen."""
    chip = open_chip("cpu")
    saved, _ = load_model(run / f"step-{len(losses):08d}" / "model", chip.ops())
    shipped, _ = load_model(made, chip.ops())
    untrained = Transformer(saved.config, chip.ops())
    initialize(untrained, 0)
    tokenizer = open_tokenizer(made)
    documents = corpus.documents("validation")
    ids = encode_documents(tokenizer, documents)
    train_ids = encode_documents(tokenizer, corpus.documents("train"))
    tokens_a_byte = (ids.numel() - 1) / sum(len(document.encode()) for document in documents)

    def loss(model: Transformer) -> dict[str, float]:
        nats = mean_loss(model, ids, LENGTH)
        return {"nats_per_token": round(nats, 4), "nats_per_byte": round(nats * tokens_a_byte, 4)}

    unigram = unigram_loss(train_ids, ids, saved.config.vocab_size)
    return {
        "command": TRAIN + " --out RUN", "made_by": "python tools/make_nano.py RUN", "format": FORMAT,
        "digest": digest(made), "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "versions": {"anychip": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "commit": _commit(), "source_sha256": _source_digest(), "processor": chip.description, "threads": 1,
        "corpus_sha256": corpus.digest("train"), "tokenizer_sha256": tokenizer.digest,
        "trained_tokens": sum(line["tokens"] for line in losses),
        "train_time_s": round(sum(line["time_s"] for line in losses)),
        "validation": {
            "text": f"held-out split of the corpus, {ids.numel() - 1} tokens in windows of {LENGTH}",
            "shipped": loss(shipped), "before_conversion": loss(saved), "untrained": loss(untrained),
            "unigram": {"nats_per_token": round(unigram, 4), "nats_per_byte": round(unigram * tokens_a_byte, 4)},
        },
    }


def _commit() -> str | None:
    """The checked-out commit, or None outside a repository."""
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=OUT.parent, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def _source_digest() -> str:
    """Sha256 over the package's Python and C++ files, by path: which code made the weights."""
    root, total = OUT.parent.parent, hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".cpp", ".h")):
        total.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return total.hexdigest()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
