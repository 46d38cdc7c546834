"""The checkpoint that ships: whole, small, reproducible, and better than token frequencies on unseen text."""

import json

import pytest
import torch

from anychip.checkpoint import digest
from anychip.chips import open_chip
from anychip.config import load_config
from anychip.serve.models import model_folder, open_model
from anychip.text import corpus
from anychip.text.tokenizer import open_tokenizer
from anychip.train import mean_loss

FOLDER = model_folder("nano")
MAX_BYTES = 6_000_000


@pytest.fixture(scope="module")
def record():
    return json.loads((FOLDER / "training.json").read_text())


def test_it_takes_at_most_6_mb():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= MAX_BYTES


def test_its_weights_are_those_that_the_record_describes(record):
    assert digest(FOLDER) == record["digest"]
    assert corpus.digest("train") == record["corpus_sha256"]
    assert open_tokenizer(FOLDER).digest == open_tokenizer("anychip-4096").digest == record["tokenizer_sha256"]


def test_it_is_the_preset():
    model, _ = open_model("nano", open_chip("cpu:reference"))
    assert model.config == load_config("nano")


def test_it_predicts_unseen_text_far_better_than_token_frequencies_do(record):
    model, tokenizer = open_model("nano", open_chip("cpu:reference"))
    ids = torch.tensor(tokenizer.encode(corpus.load("validation"))[:4097])
    found = mean_loss(model, ids, 512)
    assert found < record["validation"]["unigram"]["nats_per_token"] - 1.0
    assert found == pytest.approx(record["validation"]["shipped"]["nats_per_token"], abs=0.5)  # other text, less of it


def test_its_curve_falls_and_ends_at_the_last_step(record):
    curve = [json.loads(line) for line in (FOLDER / "loss.jsonl").read_text().splitlines()]
    steps = int(record["command"].split("--steps ")[1].split()[0])
    assert curve[0]["step"] == 0 and curve[-1]["step"] == steps - 1
    assert curve[0]["loss"] == pytest.approx(8.3, abs=0.2) and curve[-1]["loss"] < 5
