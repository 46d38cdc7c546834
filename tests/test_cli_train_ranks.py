"""`anychip train` on several processes, started by itself and by torchrun: the commands of the docs, on gloo."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import anychip
from train_cases import TEXT, small

from anychip.train import read_losses
from anychip.train.folder import Events

ROOT = Path(__file__).parent.parent
STEP = ("--steps", "4", "--batch", "2", "--length", "24", "--micro-batches", "2", "--save-every", "2")
CHIP = ("--chip", "cpu:reference")


@pytest.fixture(scope="module")
def common(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "config.json").write_text(json.dumps(small().to_dict()))
    (folder / "text.txt").write_text(TEXT)
    return ("train", "--preset", folder / "config.json", "--text", folder / "text.txt", *STEP, *CHIP)


@pytest.fixture(scope="module")
def alone(common, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "run"
    assert anychip(*common, "--out", out).exit_code == 0
    return [line["loss"] for line in read_losses(out)]


def said(out):
    return [(event["kind"], event["ranks"]) for event in Events(out).all() if event["event"] == "fault"]


def test_ranks_started_by_the_command_end_with_the_losses_of_one(common, alone, tmp_path):
    result = anychip(*common, "--out", tmp_path / "run", "--num-processes", 2, "--expert", 2, "--json")
    assert result.exit_code == 0, result.output
    assert [line["loss"] for line in read_losses(tmp_path / "run")] == pytest.approx(alone, rel=1e-6)
    assert json.loads(result.stdout)["goodput"]["restarts"] == 0 and said(tmp_path / "run") == []


def test_under_torchrun_a_rank_that_hangs_is_named_and_ended_and_the_run_goes_on(common, alone, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "2"]
    chosen = ["--out", tmp_path / "run", "--shard", "2", "--hang-seconds", "4", "--inject", "freeze:rank0@step3"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    result = subprocess.run([*torchrun, "-m", "anychip", *map(str, (*common, *chosen))], capture_output=True, text=True,
                            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    assert said(tmp_path / "run") == [("hang", [0])]
    assert [line["loss"] for line in read_losses(tmp_path / "run")] == pytest.approx(alone, rel=1e-6)


def test_every_command_line_of_the_docs_has_options_that_exist():
    found = []
    for name in ("training", "parallel", "reliability"):
        text = (ROOT / "docs" / f"{name}.md").read_text().replace("\\\n", " ")
        found += re.findall(r"anychip train (--[^\n#`]*)", text)
    options = re.findall(r"--[a-z-]+", anychip("train", "--help").output)
    unknown = {word for line in found for word in re.findall(r"--[a-z-]+", line)} - set(options)
    assert len(found) > 8 and not unknown
