"""The command line as a user meets it: output, exit codes, one clear error for each kind of bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from train_cases import run, small
from typer.testing import CliRunner

from anychip import __version__
from anychip.checkpoint import save_checkpoint
from anychip.chips import open_chip
from anychip.cli import build
from anychip.cli.generate import TextStream
from anychip.doctor import Finding
from anychip.model import Transformer, initialize
from anychip.text import corpus
from anychip.text.tokenizer import open_tokenizer
from anychip.train import train

COMMANDS = ("chips", "gap", "conform", "train", "generate", "convert", "doctor")


def anychip(*arguments):
    return CliRunner().invoke(build(), [str(a) for a in arguments])


def refusal(*arguments):
    """Run a command that must refuse its input; return the one message."""
    result = anychip(*arguments)
    assert result.exit_code == 2 and result.stdout == "", result.output
    assert result.stderr.startswith("anychip: error: ") and "Traceback" not in result.stderr
    return result.stderr


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "model"
    model = Transformer(small(), open_chip("cpu:reference").ops())
    initialize(model, 0)
    save_checkpoint(model, model.config, folder, tokenizer=open_tokenizer("anychip-4096"))
    return folder


@pytest.fixture
def broken(checkpoint, tmp_path):
    """Return a copy of the checkpoint that a test may damage."""
    folder = tmp_path / "broken"
    folder.mkdir()
    for path in checkpoint.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture
def short_corpus(monkeypatch):
    """The shipped text's first pages: tokenising all of it takes seconds."""
    whole = corpus.documents
    monkeypatch.setattr(corpus, "documents", lambda split: [text[:60_000] for text in whole(split)])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    result = anychip(command, "--help")
    assert result.exit_code == 0 and f"anychip {command}" in result.stdout.split("xample")[1]


def test_help_does_not_import_torch():
    code = ("import sys\nfrom anychip.cli import build\ntry: build()(['train', '--help'])\n"
            "except SystemExit: pass\nsys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=Path(__file__).parent.parent
                          ).returncode == 0


def test_the_module_is_the_command():
    result = subprocess.run([sys.executable, "-m", "anychip", "--version"], capture_output=True, text=True,
                            cwd=Path(__file__).parent.parent)
    assert (result.returncode, result.stdout) == (0, f"anychip {__version__}\n")


def test_chips_lists_real_and_virtual_ones_with_reasons():
    found = {row["name"]: row for row in json.loads(anychip("chips", "--json").stdout)}
    assert found["cpu:reference"]["available"] and found["cpu:reference"]["numerics"] == "measured"
    assert found["virtual:ascend910c"]["timing"] == "simulated"
    assert found["npu"]["available"] or "torch_npu" in found["npu"]["reason"]
    table = anychip("chips").stdout
    assert all(name in table for name in found)


def test_doctor_exits_with_1_and_the_command_where_something_is_wrong(monkeypatch):
    wrong = Finding("torch", "1.0", ">=2.6", "wrong", "pip install torch")
    monkeypatch.setattr("anychip.doctor.examine", lambda probe: [wrong])
    result = anychip("doctor")
    assert result.exit_code == 1 and "run this first: pip install torch" in result.stdout
    shown = json.loads(anychip("doctor", "--json").stdout)
    assert shown["healthy"] is False and shown["next_command"] == "pip install torch"


def test_doctor_exits_with_0_where_nothing_is_missing(monkeypatch):
    monkeypatch.setattr("anychip.doctor.examine", lambda probe: [Finding("torch", "2.9", ">=2.6", "ok")])
    assert anychip("doctor").exit_code == 0


def test_generate_streams_the_text_that_the_seed_decides(checkpoint):
    arguments = ("generate", "--model", checkpoint, "--chip", "cpu:reference", "--prompt", "It was", "--seed", 3,
                 "--max-new-tokens", 6)
    shown, document = anychip(*arguments), json.loads(anychip(*arguments, "--json").stdout)
    assert shown.exit_code == 0 and len(document["ids"]) <= 6
    assert shown.stdout == "It was" + document["text"] + "\n"


def test_a_character_in_two_tokens_appears_once_and_whole():
    tokenizer = open_tokenizer("anychip-4096")
    stream, ids = TextStream(tokenizer), tokenizer.encode("day 日本 ☃!")
    pieces = [stream.add(token) for token in ids]
    assert "".join(pieces) + stream.rest() == "day 日本 ☃!" and not any("\ufffd" in piece for piece in pieces)
    stream.add(tokenizer.encode("☃")[0])
    assert stream.rest() == "\ufffd"


def test_train_writes_a_checkpoint_that_generate_takes(tmp_path):
    text, config = tmp_path / "text.txt", tmp_path / "config.json"
    text.write_text("One, two, three, four. " * 60)
    config.write_text(json.dumps(small().to_dict()))
    result = anychip("train", "--preset", config, "--out", tmp_path / "run", "--text", text, "--steps", 3, "--batch", 2,
                     "--length", 16, "--chip", "cpu:reference", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["steps"] == 3
    assert len((tmp_path / "run" / "loss.jsonl").read_text().splitlines()) == 3
    shown = anychip("generate", "--model", tmp_path / "run", "--chip", "cpu:reference", "--prompt", "One",
                    "--max-new-tokens", 2)
    assert shown.exit_code == 0 and shown.stdout.startswith("One")


def test_train_reports_held_out_loss_in_nats_a_token_and_a_byte(short_corpus, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(small().to_dict()))
    result = anychip("train", "--preset", config, "--out", tmp_path / "run", "--steps", 1, "--batch", 1, "--length",
                     256, "--chip", "cpu", "--json")
    shown = json.loads(result.stdout)
    assert 8.0 < shown["validation_nats_per_token"] < 8.6 and 6 < shown["unigram_nats_per_token"] < 7
    ratio = shown["validation_nats_per_token"] / shown["validation_nats_per_byte"]
    assert 3 < ratio < 5  # bytes a token of this tokenizer on English


def test_train_fine_tunes_on_chats_from_a_checkpoint(checkpoint, tmp_path):
    chats = tmp_path / "chats.jsonl"
    chats.write_text(json.dumps({"messages": [{"role": "user", "content": "Who?"},
                                              {"role": "assistant", "content": "Ahab."}]}))
    common = ("train", "--sft", chats, "--steps", 2, "--length", 32, "--chip", "cpu:reference")
    result = anychip(*common, "--from", checkpoint, "--out", tmp_path / "run", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["steps"] == 2
    assert "needs a checkpoint to begin from: --from" in refusal(*common, "--out", tmp_path / "other")
    assert "give one of --text and --sft" in refusal(*common, "--out", tmp_path / "other", "--text", chats)


def test_convert_there_and_back_keeps_the_weights(checkpoint, tmp_path):
    there = anychip("convert", checkpoint, tmp_path / "hf", "--to", "transformers", "--json")
    assert there.exit_code == 0 and json.loads(there.stdout)["to"] == "transformers"
    assert anychip("convert", tmp_path / "hf", tmp_path / "back").exit_code == 0
    before, after = (load_file(f / "model.safetensors") for f in (checkpoint, tmp_path / "back"))
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)


def test_an_unknown_chip_is_refused_with_the_nearest_name(checkpoint):
    words = refusal("generate", "--model", checkpoint, "--chip", "virtual:ascend91b", "--prompt", "x")
    assert "Did you mean 'ascend910b'?" in words


def test_a_missing_folder_is_refused(tmp_path):
    assert "there is no model" in refusal("generate", "--model", tmp_path / "none", "--prompt", "x")
    words = refusal("generate", "--model", "v4-flash", "--prompt", "x")
    assert "no trained weights in anychip; only nano" in words


def test_a_truncated_file_is_refused_by_name(broken):
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    words = refusal("generate", "--model", broken, "--chip", "cpu:reference", "--prompt", "x")
    assert "model.safetensors" in words and "truncated or corrupt" in words


def test_wrong_config_fields_are_refused_all_at_once(broken):
    fields = json.loads((broken / "config.json").read_text())
    del fields["head_dim"]
    (broken / "config.json").write_text(json.dumps(fields | {"hidden_sise": 3, "hc_mult": "four"}))
    words = refusal("generate", "--model", broken, "--chip", "cpu:reference", "--prompt", "x")
    assert "hidden_sise: no such field. Did you mean 'hidden_size'?" in words
    assert "hc_mult='four': expected int" in words and "head_dim: missing" in words


def test_another_models_tokenizer_is_refused(broken):
    fields = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(fields | {"eos_token_id": 7}))
    words = refusal("generate", "--model", broken, "--chip", "cpu:reference", "--prompt", "x")
    assert "another model's tokenizer: a text ends with id 1, for the model with 7" in words


def test_weights_that_are_not_finite_are_refused_by_name(broken):
    tensors = load_file(broken / "model.safetensors")
    tensors["layers.1.attn.wkv.weight"][0, 0] = torch.nan
    save_file(tensors, broken / "model.safetensors")
    words = refusal("generate", "--model", broken, "--chip", "cpu:reference", "--prompt", "x")
    assert "layers.1.attn.wkv.weight" in words


def test_an_empty_and_a_too_long_prompt_are_refused_with_numbers(checkpoint):
    model = ("--model", checkpoint, "--chip", "cpu:reference")
    assert "the prompt is empty" in refusal("generate", *model, "--prompt", "")
    words = refusal("generate", *model, "--prompt", "word " * 9000)
    assert "9002 tokens and 64 new ones" in words and "this model's context is 8192" in words


def test_an_unwritable_output_is_refused_and_nothing_is_left(short_corpus, checkpoint, tmp_path):
    occupied = tmp_path / "file"
    occupied.write_text("keep me")
    tiny = ("--steps", 1, "--batch", 1, "--length", 16, "--chip", "cpu:reference")
    assert "cannot write" in refusal("train", "--out", occupied / "run", *tiny)
    refusal("convert", checkpoint, occupied)
    refusal("convert", checkpoint, occupied / "below")
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and occupied.read_text() == "keep me"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(checkpoint, tmp_path):
    tmp_path.chmod(0o500)
    assert "not a folder that you may write to" in refusal("convert", checkpoint, tmp_path / "new")


def test_impossible_settings_and_texts_are_refused(tmp_path):
    assert "steps=0 must be at least 1" in refusal("train", "--out", tmp_path / "run", "--steps", 0)
    words = refusal("train", "--out", tmp_path / "run", "--text", tmp_path / "none.txt", "--chip", "cpu:reference")
    assert "none.txt" in words and not (tmp_path / "run").exists()


def test_a_second_run_with_other_settings_is_refused(short_corpus, tmp_path):
    train(run(steps=1), open_chip("cpu:reference"), tmp_path / "run")
    words = refusal("train", "--out", tmp_path / "run", "--steps", 7, "--chip", "cpu:reference")
    assert "holds another run" in words and "settings.steps: the folder has 1, asked for is 7" in words


def test_usage_errors_exit_with_2():
    assert anychip("generate").exit_code == 2
    assert anychip("train", "--steps", "many", "--out", "x").exit_code == 2
