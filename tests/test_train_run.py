"""Runs in a folder: the curve after an interruption is the unbroken one, and a kill leaves the last good save."""

import json
import signal
from dataclasses import replace
from shutil import copytree, rmtree

import pytest
import torch
from dying_runs import forked, train_killed, train_on_a_full_disk
from safetensors.torch import load_file
from train_cases import run
from typer.testing import CliRunner

from anychip.chips import open_chip
from anychip.cli import build
from anychip.errors import CheckpointError, InputError
from anychip.serve.models import open_model
from anychip.train import Care, Stopped, Trainer, read_losses, train
from anychip.train.folder import Events
from anychip.train.inject import damage
from anychip.train.saves import saved_steps

CHIP = open_chip("cpu:reference")


class Interrupted(Exception):
    pass


def stop_at(step):
    def report(result):
        if result.step == step:
            raise Interrupted

    return report


def curve(out):
    return [{key: value for key, value in line.items() if key != "time_s"} for line in read_losses(out)]


def weights(checkpoint):
    return load_file(checkpoint / "model.safetensors")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    return out, train(run(), CHIP, out, care=Care(save_every=2, keep=3))


def test_a_run_leaves_its_last_saves_a_checkpoint_with_the_tokenizer_and_one_line_a_step(unbroken):
    out, checkpoint = unbroken
    assert saved_steps(out) == [2, 4, 6] and checkpoint == out / "step-00000006" / "model"
    assert {p.name for p in checkpoint.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json",
                                                      "tokenizer_config.json"}
    assert [line["step"] for line in read_losses(out)] == list(range(6))


@pytest.mark.parametrize("step", [0, 2, 3])  # before the first save, between saves, at one
def test_a_resumed_curve_is_bitwise_the_unbroken_one(unbroken, tmp_path, step):
    with pytest.raises(Interrupted):
        train(run(), CHIP, tmp_path, save_every=2, report=stop_at(step))
    resumed = train(run(), CHIP, tmp_path, save_every=2)
    assert curve(tmp_path) == curve(unbroken[0])
    expected, found = weights(unbroken[1]), weights(resumed)
    assert expected.keys() == found.keys() and all(torch.equal(expected[n], found[n]) for n in expected)


def test_a_resumed_curve_is_bitwise_the_unbroken_one_on_the_cpu_chips_kernels(tmp_path):
    chip = open_chip("cpu")
    whole = train(run(), chip, tmp_path / "whole", save_every=2)
    with pytest.raises(Interrupted):
        train(run(), chip, tmp_path / "cut", save_every=2, report=stop_at(2))
    resumed = train(run(), chip, tmp_path / "cut", save_every=2)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    expected, found = weights(whole), weights(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_finished_run_is_left_as_it_is(unbroken):
    before = (unbroken[0] / "loss.jsonl").read_text()
    assert train(run(), CHIP, unbroken[0], save_every=2) == unbroken[1]
    assert (unbroken[0] / "loss.jsonl").read_text() == before


def test_other_settings_do_not_resume_a_run(unbroken):
    with pytest.raises(InputError, match=r"settings.learning_rate: the folder has 0.003, asked for is 0.1\n"
                                         r"  settings.seed: the folder has 0, asked for is 1"):
        train(run(learning_rate=0.1, seed=1), CHIP, unbroken[0])


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="holds no training run"):
        train(run(), CHIP, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", ["rank-0.bin", "index.pickle", "save.json"])
def test_a_damaged_save_is_set_aside_and_the_one_before_taken(unbroken, tmp_path, name):
    copytree(unbroken[0], tmp_path, dirs_exist_ok=True)
    rmtree(tmp_path / "step-00000006")
    damage(tmp_path / "step-00000004" / name)
    assert train(run(), CHIP, tmp_path, save_every=2) == tmp_path / "step-00000006" / "model"
    assert curve(tmp_path) == curve(unbroken[0]) and (tmp_path / "step-00000004.unreadable").is_dir()
    said = [event["message"] for event in Events(tmp_path).all() if event.get("kind") == "unreadable"]
    assert len(said) == 1 and f"step-00000004/{name} is damaged" in said[0]


def test_a_run_whose_saves_are_all_damaged_stops_and_says_so(unbroken, tmp_path):
    copytree(unbroken[0], tmp_path, dirs_exist_ok=True)
    rmtree(tmp_path / "step-00000006")
    for step in (2, 4):
        (tmp_path / f"step-0000000{step}" / "rank-0.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"none of the saves .*is cut off after 0 of .*starts from step 0"):
        train(run(), CHIP, tmp_path, save_every=2)


def test_lost_loss_lines_are_noticed(tmp_path):
    with pytest.raises(Interrupted):
        train(run(), CHIP, tmp_path, save_every=2, report=stop_at(3))
    (tmp_path / "loss.jsonl").write_text("")
    with pytest.raises(InputError, match="does not hold the 4 steps of the last save"):
        train(run(), CHIP, tmp_path, save_every=2)


def test_divergence_keeps_the_last_good_save(tmp_path):
    wild = run(learning_rate=1e30, warmup_steps=0)
    with pytest.raises(Stopped, match=r"training stopped at step \d.* batches were skipped already"):
        train(wild, CHIP, tmp_path, save_every=100)
    assert saved_steps(tmp_path) == [] and all(line["loss"] == line["loss"] for line in read_losses(tmp_path))


def test_a_weight_that_is_not_finite_is_never_saved(tmp_path, monkeypatch):
    step = Trainer.step

    def overflowing(trainer):  # a finite loss whose update overflows
        result = step(trainer)
        next(trainer.model.parameters()).data[0, 0] = float("inf")
        return result

    monkeypatch.setattr(Trainer, "step", overflowing)
    with pytest.raises(Stopped):
        train(run(), CHIP, tmp_path, save_every=1)
    assert not list(tmp_path.glob("step-*"))


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    plan = run()
    with pytest.raises(InputError, match="the tokenizer has 4096 tokens, the model 1000"):
        train(replace(plan, config=replace(plan.config, vocab_size=1000)), CHIP, tmp_path)


def test_what_a_kill_left_half_written_is_removed(unbroken, tmp_path):
    with pytest.raises(Interrupted):
        train(run(), CHIP, tmp_path, save_every=2, report=stop_at(2))
    (tmp_path / "step-00000004.partial").mkdir()
    with (tmp_path / "loss.jsonl").open("a") as file:
        file.write('{"step": 3, "loss"')
    train(run(), CHIP, tmp_path, save_every=2)
    assert curve(tmp_path) == curve(unbroken[0]) and not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(("moment", "call"), [("_bytes_of", 350), ("write_synced", 4), ("sync", 3)])
def test_kill_9_during_the_second_save_leaves_the_first_and_resumes_exactly(unbroken, tmp_path, moment, call):
    assert forked(train_killed, tmp_path, moment, call).exitcode == -signal.SIGKILL
    assert saved_steps(tmp_path) == [2]
    train(run(), CHIP, tmp_path, save_every=2)
    assert curve(tmp_path) == curve(unbroken[0])


def test_a_disk_that_stays_full_stops_the_run_with_one_error_and_leaves_no_half_save(tmp_path):
    said = tmp_path / "said"
    assert forked(train_on_a_full_disk, tmp_path / "run", 200_000, said).exitcode == 1
    assert "cannot write" in said.read_text() and "Traceback" not in said.read_text()
    assert not list((tmp_path / "run").glob("step-*"))


def test_run_json_names_everything_that_the_losses_depend_on(unbroken):
    found = json.loads((unbroken[0] / "run.json").read_text())
    assert set(found) == {"anychip", "chip", "config", "settings", "start", "tokenizer", "tokens"}


def test_a_runs_saves_are_models_to_convert_before_it_has_finished(unbroken, tmp_path):
    plan = run()
    with pytest.raises(Interrupted):
        train(plan, CHIP, tmp_path / "run", save_every=2, report=stop_at(2))
    with pytest.raises(InputError, match=r"run has not finished: its last save is step-00000002. For that model: "
                                         r"anychip convert \S+ FOLDER. The same `anychip train` command goes on"):
        open_model(tmp_path / "run", CHIP)
    newest, named = tmp_path / "newest", tmp_path / "named"
    assert CliRunner().invoke(build(), ["convert", str(tmp_path / "run"), str(newest)]).exit_code == 0
    save = unbroken[0] / "step-00000002"
    assert CliRunner().invoke(build(), ["convert", str(save), str(named), "--to", "transformers"]).exit_code == 0
    found = [open_model(folder, CHIP) for folder in (newest, named)]
    assert all(torch.equal(a, b) for a, b in zip(*(model.state_dict().values() for model, _ in found), strict=True))
    assert found[0][1].digest == plan.tokenizer.digest
