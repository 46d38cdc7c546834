"""Two real ranks under supervision: killed and hung, they end with the weights that one sound process has."""

import os

import pytest
from train_cases import run

from anychip.chips import open_chip
from anychip.train import Care, Stopped, read_losses, train
from anychip.train.folder import Events
from anychip.train.goodput import goodput
from anychip.train.inject import parse_injections
from anychip.train.job import Job
from anychip.train.supervisor import Supervision, supervise

SHAPE = {"batch": 2, "micro_batches": 2, "steps": 6, "optimizer": "adamw"}


def job(out, inject, **settings):
    return Job(run, SHAPE | settings, "cpu:reference", out, Care(save_every=2, inject=parse_injections(inject, 2)),
               threads=1)


def test_ranks_that_are_killed_and_hang_end_as_one_process_that_meets_no_fault(tmp_path):
    train(run(**SHAPE), open_chip("cpu:reference"), tmp_path / "one", care=Care(save_every=2))
    # a slow step of a busy machine is no hang: hence 4 s
    supervise(job(tmp_path / "two", "kill:rank1@step3,hang:rank0@step5"), Supervision(2, hang_s=4.0))
    faults = [(e["kind"], e["ranks"]) for e in Events(tmp_path / "two").all() if e["event"] == "fault"]
    assert faults == [("killed", [1]), ("hang", [0])]
    assert [x["loss"] for x in read_losses(tmp_path / "two")] == pytest.approx(
        [x["loss"] for x in read_losses(tmp_path / "one")], rel=1e-6)
    assert goodput(tmp_path / "two").restarts == 2 and goodput(tmp_path / "two").lost_steps <= 4
    # The run goes on with one process: neither ranks nor layout belong to its identity.
    assert os.listdir(train(run(**SHAPE), open_chip("cpu:reference"), tmp_path / "two", care=Care(save_every=2)))


def test_an_error_that_no_restart_helps_ends_all_ranks_with_its_words(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(Exception, match="holds no training run") as found:
        supervise(job(tmp_path, ""), Supervision(2))
    assert not isinstance(found.value, Stopped)
